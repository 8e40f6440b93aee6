"""Looking into a ledger file from outside the daemon: tables, rows, schema, steps taken. Read-only.

Blocking; for commands. Works beside a running daemon. sqlite_utils does the reading of the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from emcd.errors import ConfigError
from emcd.ledger.connection import open_reader
from emcd.ledger.migration import list_applied
from emcd.money import WEI_BLOB_BYTES, decode_wei


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: str
    required: bool
    primary_key: bool


@dataclass(frozen=True)
class Table:
    """One table: its columns, how many rows it has, what it points to."""

    name: str
    rows: int
    columns: tuple[Column, ...]
    references: tuple[str, ...]


@contextmanager
def open_inspection(path: Path) -> Iterator[Database]:
    """A read-only view of a ledger file. Raises: ConfigError EMC-1213 when there is none."""
    if not path.is_file():
        raise ConfigError("EMC-1213", f"{path} does not exist")
    con = open_reader(path)
    try:
        yield Database(con)
    finally:
        con.close()


def list_tables(database: Database) -> list[Table]:
    """Every table, by name."""
    return [
        Table(
            table.name,
            table.count,
            tuple(
                Column(column.name, column.type, bool(column.notnull), bool(column.is_pk))
                for column in table.columns
            ),
            tuple(f"{key.column} -> {key.other_table}.{key.other_column}" for key in table.foreign_keys),
        )
        for table in sorted(database.tables, key=lambda table: table.name)
    ]


def list_rows(database: Database, name: str, *, limit: int, newest: bool = True) -> list[dict[str, Any]]:
    """Rows of a table as people and JSON can read them: wei as digits, other bytes as hex.

    Raises: ConfigError EMC-1214 when there is no such table.
    """
    table = require_table(database, name)
    order = ", ".join(f'"{key}" {"DESC" if newest else "ASC"}' for key in table.pks)
    return [
        {column: _to_plain(column, value) for column, value in row.items()}
        for row in table.rows_where(order_by=order, limit=limit)
    ]


def read_schema(database: Database, name: str | None = None) -> str:
    """The SQL of one table with its indexes and triggers, or of all. Raises: ConfigError EMC-1214."""
    if name is None:
        return database.schema
    table = require_table(database, name)
    rows = database.query(
        "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY rowid", [table.name]
    )
    return "\n".join(f"{row['sql']};" for row in rows)


def list_steps(database: Database) -> list[dict[str, Any]]:
    """Every migration that was applied."""
    return [
        {name: row[name] for name in ("component", "number", "name", "program", "applied_at_ms")}
        for row in list_applied(database.conn)
    ]


def require_table(database: Database, name: str) -> Any:
    """The table. Raises: ConfigError EMC-1214 when there is none of this name."""
    if name not in database.table_names():
        raise ConfigError("EMC-1214", f"the ledger has no table {name!r}")
    return database.table(name)


def _to_plain(column: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    if column.endswith("_wei") and len(value) == WEI_BLOB_BYTES:
        return str(decode_wei(value))
    return "0x" + value.hex()
