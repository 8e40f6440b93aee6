"""Copies of a ledger with the files that belong to it, and putting one back.

Blocking; for commands. A copy is consistent whether or not the daemon runs: the files are those
that the copied ledger names, in a folder beside it. Invariants: nothing is put back that was not
checked whole; putting an older copy back keeps every row of the present file's sign_once table: a validator that forgot what
it signed would sign a second outcome and be slashed for it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from emcd.errors import ConfigError, FatalError
from emcd.ledger.connection import as_fatal, open_reader, open_writer
from emcd.ledger.files import LedgerFile, has_files, iter_files, require_file
from emcd.ledger.lock import LedgerLock
from emcd.ledger.migration import copy_file, copy_to

_KEEP_SIGNED = """
INSERT INTO sign_once SELECT * FROM present.sign_once WHERE true ON CONFLICT DO NOTHING
"""
_CONTRADICTIONS = """
SELECT count(*) FROM sign_once AS s JOIN present.sign_once AS p USING (signer, purpose, slot)
WHERE s.digest <> p.digest
"""


_ATTEMPTS = 5
"""A daemon may replace a file between the copy of the ledger and that of the file: then both anew."""


@dataclass(frozen=True)
class Restored:
    """What a restore did: the file it replaced (None: there was none), the signatures it kept.

    `files` is how many files of the ledger were checked and are in their places.
    """

    replaced: Path | None
    kept_signatures: int
    files: int


def folder_of(copy: Path) -> Path:
    """Where the files of a copy are."""
    return copy.with_name(f"{copy.name}.files")


def backup_file(ledger: Path, target: Path) -> int:
    """Copy a ledger and its files, also under a running daemon. Returns: the number of files.

    Files are hard links where that is possible: they are never changed.

    Raises: ConfigError EMC-1213 (no ledger), EMC-1215 (the target exists or can't be written),
        EMC-1217 (a file that the ledger names is not there).
    """
    if not ledger.is_file():
        raise ConfigError("EMC-1213", f"{ledger} does not exist")
    folder = folder_of(target)
    if folder.exists():
        raise ConfigError("EMC-1215", f"{folder} exists already")
    for attempt in range(1, _ATTEMPTS + 1):
        _copy_ledger(ledger, target)
        try:
            return _copy_files(_list_files(target), [ledger.parent], folder)
        except FileNotFoundError as exc:
            target.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            if attempt == _ATTEMPTS:
                raise ConfigError("EMC-1217", str(exc)) from exc
        except OSError as exc:
            raise ConfigError("EMC-1215", f"{folder}: {exc.strerror}") from exc
    raise AssertionError("unreachable")


def _copy_ledger(ledger: Path, target: Path) -> None:
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


def _list_files(ledger: Path) -> list[LedgerFile]:
    con = open_reader(ledger)
    try:
        return list(iter_files(con)) if has_files(con) else []
    finally:
        con.close()


def _copy_files(files: list[LedgerFile], sources: list[Path], folder: Path) -> int:
    """Put files into a folder, from the first source that has each. Raises: OSError."""
    for file in files:
        source = next((path for root in sources if (path := root / file.path).is_file()), None)
        if source is None:
            raise FileNotFoundError(f"{sources[0] / file.path} does not exist")
        target = folder / file.path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = target.with_name(f"{target.name}.partial")
        fresh.unlink(missing_ok=True)
        try:
            os.link(source, fresh)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, fresh)
            _sync(fresh)
        fresh.replace(target)
    for parent in {(folder / file.path).parent for file in files}:
        _sync(parent)
    return len(files)


def restore_file(ledger: Path, copy: Path) -> Restored:
    """Put a copy in the ledger's place; the present file is kept beside it.

    Raises: FatalError EMC-1201 (a daemon runs on it), ConfigError EMC-1213 (no such copy), EMC-1216
    (the copy is damaged, no ledger, or contradicts what was signed since), EMC-1217 (one of its files
    is missing or damaged).
    """
    require_sound(copy)
    for file in _list_files(copy):
        require_file(_find_root(file, copy, ledger), file)
    ledger.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = LedgerLock(ledger)
    try:
        fresh = ledger.with_suffix(".restoring")
        fresh.unlink(missing_ok=True)
        _copy_ledger(copy, fresh)
        files = _bring_files(copy, ledger)
        kept = _keep_signed(fresh, ledger) if ledger.is_file() else 0
        replaced = _set_aside(ledger) if ledger.is_file() else None
        for suffix in ("-wal", "-shm"):
            ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)
        fresh.replace(ledger)
        _sync(ledger.parent)
        return Restored(replaced, kept, files)
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
            orphan = con.execute("PRAGMA foreign_key_check").fetchone()
        finally:
            con.close()
    except (sqlite3.Error, FatalError) as exc:
        raise ConfigError("EMC-1216", f"{copy}: {exc}") from exc
    if verdict != "ok":
        raise ConfigError("EMC-1216", f"{copy}: {verdict}")
    if orphan is not None:
        raise ConfigError(
            "EMC-1216", f"{copy}: a row of {orphan[0]} refers to one of {orphan[2]} that is not there"
        )


def _find_root(file: LedgerFile, copy: Path, ledger: Path) -> Path:
    """Where a file of a copy is: beside it, or still in the place it would be brought to."""
    beside = folder_of(copy)
    return beside if (beside / file.path).is_file() else ledger.parent


def _bring_files(copy: Path, ledger: Path) -> int:
    """Put the files of a copy in their places. Raises: ConfigError EMC-1217."""
    files = _list_files(copy)
    missing = [file for file in files if _find_root(file, copy, ledger) != ledger.parent]
    try:
        _copy_files(missing, [folder_of(copy)], ledger.parent)
    except OSError as exc:
        raise ConfigError("EMC-1217", f"{ledger.parent}: {exc.strerror}") from exc
    return len(files)


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
