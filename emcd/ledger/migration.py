"""Numbered steps that bring a ledger file to the program's schema.

Owns the table `ledger_migrations`. Every component (a role's kind, or "core") counts its own
steps from 1 without holes. Invariants: a step and its record commit together; a released step is
never edited (its checksum is compared); an existing file is copied before the first step; a file
with steps this program does not know is refused; a component creates STRICT tables that carry
its prefix and touches no others.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emcd import __version__
from emcd.errors import ConfigError, FatalError
from emcd.ledger.connection import as_fatal, find_fatal

if TYPE_CHECKING:
    from sqlite_utils import Database

_RECORDS = """
CREATE TABLE IF NOT EXISTS ledger_migrations (
    component TEXT NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    checksum BLOB NOT NULL CHECK (length(checksum) = 32),
    program TEXT NOT NULL,
    applied_at_ms INTEGER NOT NULL,
    PRIMARY KEY (component, number)
) STRICT
"""
CORE_PREFIXES = ("sign_once", "chain_", "ledger_")


@dataclass(frozen=True)
class Migration:
    """One step of a component: `sql` is one or more statements, never edited after release."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> bytes:
        """32 bytes over the statements; layout and comments' edges do not count."""
        text = "\n".join(line.strip() for line in self.sql.strip().splitlines() if line.strip())
        return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class Migrated:
    """What `migrate` did: the steps taken, and the copy of the file made before them."""

    applied: tuple[tuple[str, Migration], ...]
    copy: Path | None


def migrate(con: sqlite3.Connection, path: Path, components: Mapping[str, Sequence[Migration]]) -> Migrated:
    """Bring the file up to date. Blocking.

    Raises: FatalError EMC-1202 (the file is newer than the program), EMC-1203 (a released step was
    edited, or a step breaks the rules), EMC-1204/1205 (disk).
    """
    for component, steps in components.items():
        _require_numbered(component, steps)
    try:
        existing = _is_used(con)
        con.execute(_RECORDS)
        pending = [
            (component, step)
            for component, steps in components.items()
            for step in _list_pending(con, component, steps)
        ]
        copy = None
        if existing and pending:
            component, step = pending[0]
            copy = copy_file(con, path, f"before-{component}-{step.number}")
        for component, step in pending:
            _apply(con, component, step)
    except sqlite3.Error as exc:
        raise as_fatal(exc, str(path)) from exc
    except OSError as exc:
        raise FatalError("EMC-1205", f"the ledger can't be copied: {exc.strerror}") from exc
    return Migrated(tuple(pending), copy)


def list_applied(con: sqlite3.Connection) -> list[sqlite3.Row]:
    """Every recorded step, in the order of component and number."""
    return con.execute("SELECT * FROM ledger_migrations ORDER BY component, number").fetchall()


def copy_file(con: sqlite3.Connection, path: Path, label: str) -> Path:
    """Copy the ledger into ledger-copies/ beside it, whole and synced. Returns: the copy's path.

    A copy of the same label is replaced: a migration that fails at every restart must not fill the
    disk with copies.
    """
    folder = path.parent / "ledger-copies"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{path.stem}-{label}{path.suffix}"
    fresh = target.with_suffix(".partial")
    fresh.unlink(missing_ok=True)
    copy_to(con, fresh)
    fresh.replace(target)
    return target


def copy_to(con: sqlite3.Connection, target: Path) -> None:
    """Write a consistent copy of the database to a new file, synced. Blocking."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.close(descriptor)
    with sqlite3.connect(target) as copy:
        con.backup(copy, pages=4096)
    copy.close()
    for place in (target, target.parent):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_used(con: sqlite3.Connection) -> bool:
    return con.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' LIMIT 1").fetchone() is not None


def _require_numbered(component: str, steps: Sequence[Migration]) -> None:
    numbers = [step.number for step in steps]
    if numbers != list(range(1, len(steps) + 1)):
        raise ConfigError(
            "EMC-1203", f"the migrations of {component} are numbered {numbers}: holes or disorder"
        )


def _list_pending(con: sqlite3.Connection, component: str, steps: Sequence[Migration]) -> Iterator[Migration]:
    rows = con.execute(
        "SELECT number, name, checksum, program FROM ledger_migrations WHERE component = ? ORDER BY number",
        (component,),
    ).fetchall()
    if len(rows) > len(steps):
        number, name, _, program = rows[-1]
        raise FatalError(
            "EMC-1202",
            f"the ledger has {component} {number} ({name}) of emcd {program}; this is {__version__}",
        )
    for row, step in zip(rows, steps, strict=False):
        if row["checksum"] != step.checksum:
            raise FatalError(
                "EMC-1203", f"{component} {step.number} ({step.name}) was edited after it was applied"
            )
    yield from steps[len(rows) :]


def _apply(con: sqlite3.Connection, component: str, step: Migration) -> None:
    from sqlite_utils import Database  # 0.2 s to import: only a start that migrates pays

    database = Database(con)
    before = {table.name: table.schema for table in database.tables}
    label = f"{component} {step.number} ({step.name})"
    with database.atomic():
        try:
            for statement in split_statements(step.sql):
                con.execute(statement)
        except sqlite3.Error as exc:
            raise find_fatal(exc) or FatalError("EMC-1203", f"{label}: {exc}") from exc
        _require_rules(database, before, component, label)
        con.execute(
            "INSERT INTO ledger_migrations VALUES (?, ?, ?, ?, ?, ?)",
            (component, step.number, step.name, step.checksum, __version__, time.time_ns() // 1_000_000),
        )


def _require_rules(database: Database, before: dict[str, str], component: str, label: str) -> None:
    prefixes = CORE_PREFIXES if component == "core" else (f"{component}_",)
    after = {table.name: table.schema for table in database.tables}
    for name in before.keys() | after.keys():
        if before.get(name) == after.get(name):
            continue
        if not name.startswith(prefixes):
            raise FatalError("EMC-1203", f"{label} changes table {name}, which is not one of its own")
        if name in after and not database.table(name).strict:
            raise FatalError("EMC-1203", f"{label} makes table {name} without STRICT")
        if "DEFERRED" in after.get(name, "").upper():  # would fail a commit that others share
            raise FatalError("EMC-1203", f"{label} makes table {name} with a DEFERRED constraint")
    broken = database.execute("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise FatalError("EMC-1203", f"{label} leaves {len(broken)} rows with a broken foreign key")


def split_statements(sql: str) -> Iterator[str]:
    """The single statements of a script; `executescript` would commit the open transaction."""
    statement = ""
    for piece in sql.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \t\n;"):
                yield statement.strip()
            statement = ""
    if statement.strip(" \t\n;"):
        raise FatalError("EMC-1203", f"unfinished statement: {statement.strip()[:60]}")
