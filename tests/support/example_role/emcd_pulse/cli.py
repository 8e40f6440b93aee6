"""The command `emcd pulse`."""

from __future__ import annotations

import click

from emcd.command import CommandContext, emit, json_option, pass_command_context


@click.group()
def pulse() -> None:
    """Look at the beats of the example role."""


@pulse.command()
@json_option
@pass_command_context
def count(context: CommandContext, as_json: bool) -> None:
    """Count the beats in the ledger."""
    from emcd.ledger.inspection import open_inspection, require_table

    with open_inspection(context.load_daemon().data_dir / "ledger.db") as database:
        beats = require_table(database, "pulse_beats").count
    emit({"beats": beats}, f"{beats} beats", as_json)
