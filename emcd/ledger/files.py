"""Files that belong to the ledger: too large to stand in it, named in it with their hash.

Owns the table `ledger_files`. Paths are relative to the ledger's folder. Invariants: a file is whole
and synced before its row is committed; a file that has a row is never changed, only replaced by
another one under another name; backup and restore take the files of the rows, and check them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from sqlite3 import Connection
from typing import NamedTuple

from emcd.errors import ConfigError
from emcd.ledger.migration import Migration

CREATE = Migration(
    3,
    "files that belong to the ledger",
    """
    CREATE TABLE ledger_files (
        path TEXT PRIMARY KEY,
        size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
        sha256 BLOB NOT NULL CHECK (length(sha256) = 32)
    ) STRICT, WITHOUT ROWID;
    """,
)
_READ_BYTES = 1 << 20


class LedgerFile(NamedTuple):
    """A file as it was when its row was written."""

    path: str
    size_bytes: int
    sha256: bytes


def describe_file(folder: Path, path: Path) -> LedgerFile:
    """What the row of a finished file must say. Blocking; reads the whole file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            size += len(piece)
    return LedgerFile(path.relative_to(folder).as_posix(), size, digest.digest())


def insert_file(con: Connection, file: LedgerFile) -> None:
    """Take a finished file into the ledger; one of the same name must be the same."""
    con.execute("INSERT OR REPLACE INTO ledger_files VALUES (?, ?, ?)", file)


def delete_file(con: Connection, path: str) -> None:
    """Forget a file; whoever asked for it removes it afterwards."""
    con.execute("DELETE FROM ledger_files WHERE path = ?", (path,))


def iter_files(con: Connection) -> Iterator[LedgerFile]:
    """Every file, by path. Raises: ConfigError EMC-1217 for a path that leads out of the folder."""
    for row in con.execute("SELECT path, size_bytes, sha256 FROM ledger_files ORDER BY path"):
        path = PurePosixPath(row[0])
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError("EMC-1217", f"{path} is no path in the ledger's folder")
        yield LedgerFile(row[0], row[1], bytes(row[2]))


def has_files(con: Connection) -> bool:
    """Whether this file knows the table at all: older ones do not."""
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'ledger_files'"
    return con.execute(sql).fetchone() is not None


def require_file(folder: Path, wanted: LedgerFile) -> None:
    """Raises: ConfigError EMC-1217 when the file is missing, or not what its row says."""
    path = folder / wanted.path
    try:
        found = describe_file(folder, path)
    except OSError as exc:
        raise ConfigError("EMC-1217", f"{path}: {exc.strerror}") from exc
    if found != wanted:
        raise ConfigError(
            "EMC-1217", f"{path} is not the file that the ledger names: {found.size_bytes} bytes"
        )
