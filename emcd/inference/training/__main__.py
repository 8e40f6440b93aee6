"""`python -m emcd.inference.training FOLDER`: train emcd-tiny-1 into FOLDER/emcd-tiny-1."""

from __future__ import annotations

from pathlib import Path

import click

from emcd.errors import EmcdError
from emcd.inference.training.tiny import ensure_tiny


@click.command()
@click.argument("models_dir", type=click.Path(file_okay=False, path_type=Path))
def main(models_dir: Path) -> None:
    """Train the tiny text model unless a good one is there; about a minute on two cores."""
    try:
        click.echo(ensure_tiny(models_dir, click.echo))
    except EmcdError as exc:
        raise click.ClickException(str(exc)) from exc


if __name__ == "__main__":
    main()
