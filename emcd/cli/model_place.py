"""What the commands of `emcd model` share: the models' folder, progress on a terminal, an id shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emcd.command import CommandContext

if TYPE_CHECKING:
    from emcd.inference.manifest import CheckedManifest

Say = Callable[[str], None]
_PAUSE_S = 5.0
"""Between two lines where they can't be written over each other."""


def find_models_dir(ctx: click.Context) -> Path:
    """The folder that --models-dir names, or that of the configured daemon."""
    given: Path | None = ctx.meta.get("emcd.models_dir")
    context = ctx.find_object(CommandContext)
    assert context is not None
    return given or context.data_dir_or_default() / "models"


def show_hash(manifest: CheckedManifest) -> str:
    """The id of a model as parameters and receipts name it."""
    from emcd.inference.manifest import model_hash

    return f"0x{model_hash(manifest).hex()}"


@contextmanager
def progress(is_quiet: bool) -> Iterator[Say]:
    """Lines on stderr while something takes long: one that changes on a terminal, else one now and then."""
    is_terminal = sys.stderr.isatty()
    last_at = -_PAUSE_S

    def say(line: str) -> None:
        nonlocal last_at
        if is_quiet:
            return
        if is_terminal:
            click.echo(f"\r\x1b[2K{line}", nl=False, err=True)
        elif time.monotonic() - last_at >= _PAUSE_S:
            last_at = time.monotonic()
            click.echo(line, err=True)

    try:
        yield say
    finally:
        if is_terminal and not is_quiet:
            click.echo("\r\x1b[2K", nl=False, err=True)
