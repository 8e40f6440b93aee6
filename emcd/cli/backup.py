"""`emcd backup` and `emcd restore`: copies of the ledger and of the files that belong to it."""

from __future__ import annotations

from pathlib import Path

import click

from emcd.command import CommandContext, emit, json_option, pass_command_context


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@json_option
@pass_command_context
def backup(context: CommandContext, target: Path, as_json: bool) -> None:
    """Copy the ledger to TARGET and its bundles to TARGET.files/, also while the daemon runs.

    The copy is consistent and synced; bundles are hard links where TARGET is on the same disk, so that
    they cost no room: copy both elsewhere for a disk that breaks. It holds no keys: save the keystores
    and deployment.json of the data directory once, by hand.
    """
    from emcd.ledger.backup import backup_file

    source = context.load_daemon().data_dir / "ledger.db"
    files = backup_file(source, target)
    size = target.stat().st_size
    data = {"source": str(source), "target": str(target), "bytes": size, "files": files}
    emit(data, f"{target}: {size:,} bytes" + (f", and {files} files beside it" if files else ""), as_json)


@click.command()
@click.argument("copy", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_command_context
def restore(context: CommandContext, copy: Path, yes: bool, as_json: bool) -> None:
    """Put COPY in the place of the ledger, and its files in theirs; the daemon must be stopped.

    Everything is checked first: the copy's pages and references, the size and hash of every file.
    The present ledger is kept in ledger-copies/, and what it recorded as signed is carried over, so
    that nothing is signed twice. Everything else that happened since the copy is forgotten: calls,
    credits, rounds. Without the present ledger do not run a validator before the round is over in
    which it last signed.
    """
    from emcd.ledger.backup import restore_file

    ledger = context.load_daemon().data_dir / "ledger.db"
    if not yes:
        click.confirm(f"Replace {ledger} by {copy}?", abort=True, err=True)
    done = restore_file(ledger, copy)
    data = {
        "ledger": str(ledger),
        "copy": str(copy),
        "replaced": None if done.replaced is None else str(done.replaced),
        "kept_signatures": done.kept_signatures,
        "files": done.files,
    }
    text = f"{ledger} is {copy} again; {done.kept_signatures} signatures carried over, {done.files} files checked"
    if done.replaced is not None:
        text += f"; the ledger of before is {done.replaced}"
    emit(data, text, as_json)
