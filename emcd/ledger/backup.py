"""Copies of a ledger file, and putting one back without forgetting what was signed.

Blocking; for commands. A copy is consistent whether or not the daemon runs. Invariant: putting an
older copy back keeps every row of the present file's sign_once table: a validator that forgot what
it signed would sign a second outcome and be slashed for it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from emcd.errors import ConfigError, FatalError
from emcd.ledger.connection import as_fatal, open_reader, open_writer
from emcd.ledger.lock import LedgerLock
from emcd.ledger.migration import copy_file, copy_to

_KEEP_SIGNED = """
INSERT INTO sign_once SELECT * FROM present.sign_once WHERE true ON CONFLICT DO NOTHING
"""
_CONTRADICTIONS = """
SELECT count(*) FROM sign_once AS s JOIN present.sign_once AS p USING (signer, purpose, slot)
WHERE s.digest <> p.digest
"""


@dataclass(frozen=True)
class Restored:
    """What a restore did: the file it replaced (None: there was none), the signatures it kept."""

    replaced: Path | None
    kept_signatures: int


def backup_file(ledger: Path, target: Path) -> None:
    """Copy a ledger, also under a running daemon.

    Raises: ConfigError EMC-1213 (no ledger), EMC-1215 (the target exists or can't be written).
    """
    if not ledger.is_file():
        raise ConfigError("EMC-1213", f"{ledger} does not exist")
    con = open_reader(ledger)
    try:
        copy_to(con, target)
    except FileExistsError as exc:
        raise ConfigError("EMC-1215", f"{target} exists already") from exc
    except OSError as exc:
        raise ConfigError("EMC-1215", f"{target}: {exc.strerror}") from exc
    except sqlite3.Error as exc:
        raise as_fatal(exc, str(target)) from exc
    finally:
        con.close()


def restore_file(ledger: Path, copy: Path) -> Restored:
    """Put a copy in the ledger's place; the present file is kept beside it.

    Raises: FatalError EMC-1201 (a daemon runs on it), ConfigError EMC-1213 (no such copy), EMC-1216
    (the copy is damaged, no ledger, or contradicts what was signed since).
    """
    require_sound(copy)
    ledger.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = LedgerLock(ledger)
    try:
        fresh = ledger.with_suffix(".restoring")
        fresh.unlink(missing_ok=True)
        backup_file(copy, fresh)
        kept = _keep_signed(fresh, ledger) if ledger.is_file() else 0
        replaced = _set_aside(ledger) if ledger.is_file() else None
        for suffix in ("-wal", "-shm"):
            ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)
        fresh.replace(ledger)
        _sync_folder(ledger.parent)
        return Restored(replaced, kept)
    finally:
        lock.release()


def require_sound(copy: Path) -> None:
    """Raises: ConfigError EMC-1213, or EMC-1216 when the file is damaged or no ledger."""
    if not copy.is_file():
        raise ConfigError("EMC-1213", f"{copy} does not exist")
    try:
        con = open_reader(copy)
        try:
            (verdict,) = con.execute("PRAGMA integrity_check(1)").fetchone()
            con.execute("SELECT count(*) FROM ledger_migrations").fetchone()
        finally:
            con.close()
    except (sqlite3.Error, FatalError) as exc:
        raise ConfigError("EMC-1216", f"{copy}: {exc}") from exc
    if verdict != "ok":
        raise ConfigError("EMC-1216", f"{copy}: {verdict}")


def _keep_signed(fresh: Path, present: Path) -> int:
    con = open_writer(fresh)
    try:
        con.execute("ATTACH DATABASE ? AS present", (str(present),))
        (contradictions,) = con.execute(_CONTRADICTIONS).fetchone()
        if contradictions:
            raise ConfigError(
                "EMC-1216", f"{contradictions} signatures of the copy contradict those of the present ledger"
            )
        kept = con.execute(_KEEP_SIGNED).rowcount
        con.execute("DETACH DATABASE present")
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as exc:
        raise ConfigError("EMC-1216", f"the present ledger's signatures can't be read: {exc}") from exc
    finally:
        con.close()
    return kept


def _set_aside(ledger: Path) -> Path:
    con = open_reader(ledger)
    try:
        return copy_file(con, ledger, time.strftime("replaced-%Y%m%dT%H%M%SZ", time.gmtime()))
    finally:
        con.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
