"""`emcd ledger`: look into the daemon's memory, also while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from emcd.command import CommandContext, emit, json_option, pass_command_context

MAX_CELL = 48
"""Characters of a cell; --json shows all."""


@click.group()
@click.option("--file", type=click.Path(path_type=Path), help="A ledger file, instead of the configured one.")
@click.pass_context
def ledger(ctx: click.Context, file: Path | None) -> None:
    """Look into the ledger: tables, rows, schema, migrations.

    Reads only, and may be used while the daemon runs.
    """
    ctx.meta["emcd.ledger"] = file


@ledger.command()
@json_option
@pass_command_context
def tables(context: CommandContext, as_json: bool) -> None:
    """List the tables with their columns and number of rows."""
    from emcd.ledger.inspection import list_tables, open_inspection

    with open_inspection(_find_file(context)) as database:
        found = list_tables(database)
    lines = [
        f"{table.name} ({table.rows} rows): " + ", ".join(column.name for column in table.columns)
        for table in found
    ]
    emit([asdict(table) for table in found], "\n".join(lines), as_json)


@ledger.command()
@click.argument("table")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100_000), help="Rows to show.")
@click.option("--oldest", is_flag=True, help="Begin with the lowest primary key, not the highest.")
@json_option
@pass_command_context
def show(context: CommandContext, table: str, limit: int, oldest: bool, as_json: bool) -> None:
    """Show rows of TABLE, newest first; amounts in wei as digits, other bytes as hex."""
    from emcd.ledger.inspection import list_rows, open_inspection

    with open_inspection(_find_file(context)) as database:
        rows = list_rows(database, table, limit=limit, newest=not oldest)
    emit(rows, _to_table(rows), as_json)


@ledger.command()
@click.argument("table", required=False)
@json_option
@pass_command_context
def schema(context: CommandContext, table: str | None, as_json: bool) -> None:
    """Print the SQL of TABLE, or of the whole ledger."""
    from emcd.ledger.inspection import open_inspection, read_schema

    with open_inspection(_find_file(context)) as database:
        sql = read_schema(database, table)
    emit({"schema": sql}, sql, as_json)


@ledger.command()
@json_option
@pass_command_context
def migrations(context: CommandContext, as_json: bool) -> None:
    """List the migrations that were applied to this file."""
    from emcd.ledger.inspection import list_steps, open_inspection

    with open_inspection(_find_file(context)) as database:
        steps = list_steps(database)
    emit(steps, _to_table(steps), as_json)


def _find_file(context: CommandContext) -> Path:
    explicit = click.get_current_context().meta.get("emcd.ledger")
    return Path(explicit) if explicit else context.load_daemon().data_dir / "ledger.db"


def _to_table(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "no rows"
    shown = [list(rows[0]), *[[_cut(value) for value in row.values()] for row in rows]]
    widths = [max(len(line[i]) for line in shown) for i in range(len(shown[0]))]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in shown
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cut(value: object) -> str:
    text = "" if value is None else str(value).replace("\n", " ")
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."
