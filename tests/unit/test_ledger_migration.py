"""Migrations: numbering, checksums, copies, rules, and refusing a newer file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from emcd.errors import ConfigError, FatalError
from emcd.ledger import Migration
from emcd.ledger.migration import split_statements
from emcd.testing import temporary_ledger

FIRST = Migration(1, "first", "CREATE TABLE x_one (a INTEGER PRIMARY KEY) STRICT")
SECOND = Migration(2, "second", "ALTER TABLE x_one ADD COLUMN b TEXT; INSERT INTO x_one VALUES (1, 'b')")

BROKEN_REFERENCE = """
CREATE TABLE x_a (a INTEGER PRIMARY KEY, b INTEGER REFERENCES x_a (a)) STRICT;
PRAGMA defer_foreign_keys = ON;
INSERT INTO x_a VALUES (1, 9)
"""


async def migrate(
    folder: Path, *steps: Migration, kind: str = "x"
) -> tuple[list[tuple[str, int]], Path | None]:
    async with temporary_ledger(folder, {kind: steps}) as ledger:
        applied = [(component, step.number) for component, step in ledger.migrated.applied]
        return [(c, n) for c, n in applied if c != "core"], ledger.migrated.copy


async def test_migrate_new_file_applies_all_without_a_copy(tmp_path: Path) -> None:
    assert await migrate(tmp_path, FIRST, SECOND) == ([("x", 1), ("x", 2)], None)
    assert await migrate(tmp_path, FIRST, SECOND) == ([], None)


async def test_migrate_existing_file_is_copied_first(tmp_path: Path) -> None:
    await migrate(tmp_path, FIRST)
    applied, copy = await migrate(tmp_path, FIRST, SECOND)
    assert applied == [("x", 2)]
    assert copy is not None
    con = sqlite3.connect(copy)
    assert [row[1] for row in con.execute("PRAGMA table_info(x_one)")] == ["a"]
    con.close()
    assert copy.stat().st_mode & 0o777 == 0o600


async def test_migrate_failing_again_and_again_keeps_one_copy(tmp_path: Path) -> None:
    await migrate(tmp_path, FIRST)
    broken = Migration(2, "broken", "SELECT no_such_function()")
    for _ in range(3):
        with pytest.raises(FatalError, match="EMC-1203"):
            await migrate(tmp_path, FIRST, broken)
    assert [path.name for path in (tmp_path / "ledger-copies").iterdir()] == ["ledger-before-x-2.db"]


async def test_migrate_failing_step_changes_nothing(tmp_path: Path) -> None:
    await migrate(tmp_path, FIRST)
    broken = Migration(2, "broken", "INSERT INTO x_one VALUES (7); INSERT INTO x_one VALUES ('no number')")
    with pytest.raises(FatalError):
        await migrate(tmp_path, FIRST, broken)
    assert (await migrate(tmp_path, FIRST, SECOND))[0] == [("x", 2)]
    con = sqlite3.connect(tmp_path / "ledger.db")
    assert con.execute("SELECT a FROM x_one").fetchall() == [(1,)]
    con.close()


async def test_migrate_newer_file_is_refused(tmp_path: Path) -> None:
    await migrate(tmp_path, FIRST, SECOND)
    with pytest.raises(FatalError, match=r"EMC-1202.*x 2 \(second\)"):
        await migrate(tmp_path, FIRST)


async def test_migrate_edited_step_is_refused(tmp_path: Path) -> None:
    await migrate(tmp_path, FIRST)
    edited = Migration(1, "first", "CREATE TABLE x_one (a TEXT PRIMARY KEY) STRICT")
    with pytest.raises(FatalError, match="EMC-1203.*edited"):
        await migrate(tmp_path, edited)


async def test_migrate_indentation_changed_is_the_same_step(tmp_path: Path) -> None:
    await migrate(tmp_path, Migration(1, "first", "CREATE TABLE x_one (\n    a INTEGER\n) STRICT"))
    applied, _ = await migrate(
        tmp_path, Migration(1, "first", "\nCREATE TABLE x_one (\n  a INTEGER\n) STRICT\n")
    )
    assert applied == []


@pytest.mark.parametrize("numbers", [(2,), (1, 3), (2, 1), (1, 1)])
async def test_migrate_holes_are_refused(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    steps = [Migration(n, f"step {n}", f"CREATE TABLE x_{i} (a) STRICT") for i, n in enumerate(numbers)]
    with pytest.raises(ConfigError, match="EMC-1203"):
        await migrate(tmp_path, *steps)


@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        ("CREATE TABLE x_one (a INTEGER)", "without STRICT"),
        ("CREATE TABLE y_one (a INTEGER) STRICT", "not one of its own"),
        ("ALTER TABLE sign_once ADD COLUMN b TEXT", "not one of its own"),
        ("DROP TABLE chain_cursors", "not one of its own"),
        (
            BROKEN_REFERENCE,
            "foreign key",
        ),
        ("CREATE TABLE x_b (a INTEGER REFERENCES x_b (a) DEFERRABLE INITIALLY DEFERRED) STRICT", "DEFERRED"),
        ("CREATE TABLE x_one (a TEXT) STRICT; INSERT INTO x_one VALUES ('a", "unfinished"),
    ],
)
async def test_migrate_step_against_the_rules_is_refused(tmp_path: Path, sql: str, complaint: str) -> None:
    with pytest.raises(FatalError, match=f"EMC-1203.*{complaint}"):
        await migrate(tmp_path, Migration(1, "bad", sql))
    assert (await migrate(tmp_path, FIRST))[0] == [("x", 1)]


def test_split_statements_keeps_triggers_and_quotes_whole() -> None:
    trigger = "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; SELECT 2; END;"
    assert list(split_statements(f"SELECT ';' ; -- a; b\n{trigger}\n")) == [
        "SELECT ';' ;",
        f"-- a; b\n{trigger}",
    ]
