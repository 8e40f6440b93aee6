"""Opening SQLite connections the one way the ledger has them, and naming SQLite's errors.

Owns pragmas, registered functions and the translation of foreign errors. Invariants: every
connection has foreign keys on and rows by name; a writer syncs fully; a reader can't write.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from emcd.errors import FatalError
from emcd.money import decode_wei, encode_wei

SQLITE_VERSION = sqlite3.sqlite_version_info
_FATAL = {
    sqlite3.SQLITE_FULL: "EMC-1204",
    sqlite3.SQLITE_IOERR: "EMC-1205",
    sqlite3.SQLITE_READONLY: "EMC-1205",
    sqlite3.SQLITE_CANTOPEN: "EMC-1205",
    sqlite3.SQLITE_PERM: "EMC-1205",
    sqlite3.SQLITE_CORRUPT: "EMC-1206",
    sqlite3.SQLITE_NOTADB: "EMC-1206",
}
_PRIMARY_CODE = 0xFF
"""SQLite's extended result codes keep the primary one in the low byte."""


class _WeiSum:
    """`wei_sum(amount)`: the exact sum of 32-byte amounts as such a blob.

    Like SQL's sum it is NULL without any row: `coalesce(wei_sum(x), zeroblob(32))`.
    """

    def __init__(self) -> None:
        self._total = 0

    def step(self, blob: bytes | None) -> None:
        if blob is not None:
            self._total += decode_wei(blob)

    def finalize(self) -> bytes:
        return encode_wei(self._total)


def wei_text(blob: bytes | None) -> str | None:
    """`wei_text(amount)` in SQL: the amount as decimal digits, for people."""
    return None if blob is None else str(decode_wei(blob))


def open_writer(path: Path) -> sqlite3.Connection:
    """The one connection that writes. Raises: FatalError EMC-1205, EMC-1206."""
    try:
        con = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        _prepare(con)
        con.execute("PRAGMA auto_vacuum = INCREMENTAL")  # holds for a new file alone
        con.execute("PRAGMA journal_mode = WAL")
        con.execute("PRAGMA synchronous = FULL")
        con.execute("PRAGMA journal_size_limit = 67108864")
        con.execute("PRAGMA cache_size = -16384")
        con.execute("PRAGMA temp_store = MEMORY")  # else a file is made for every statement's own journal
    except sqlite3.Error as exc:
        raise as_fatal(exc, str(path)) from exc
    return con


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that can't write. Raises: FatalError EMC-1205, EMC-1206."""
    try:
        con = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=5,
        )
        _prepare(con)
        con.execute("PRAGMA query_only = ON")
    except sqlite3.Error as exc:
        raise as_fatal(exc, str(path)) from exc
    return con


def _prepare(con: sqlite3.Connection) -> None:
    con.row_factory = sqlite3.Row
    con.execute("PRAGMA foreign_keys = ON")
    con.create_aggregate("wei_sum", 1, _WeiSum)  # type: ignore[arg-type]
    con.create_function("wei_text", 1, wei_text, deterministic=True)


def find_fatal(exc: BaseException) -> FatalError | None:
    """The fault that stops the daemon, when SQLite's error is one: disk full, IO, corruption."""
    code = getattr(exc, "sqlite_errorcode", None)
    if not isinstance(exc, sqlite3.Error) or code is None:
        return None
    number = _FATAL.get(code & _PRIMARY_CODE)
    return FatalError(number, f"{exc} ({exc.sqlite_errorname})") if number else None


def as_fatal(exc: sqlite3.Error, where: str) -> FatalError:
    """Any SQLite error as the fault that stops the daemon."""
    return find_fatal(exc) or FatalError("EMC-1205", f"{where}: {exc}")
