"""`python -m emcd_validator.corpus_tool`: build a private corpus from text files.

Blocking, run by an operator by hand. It reads the files it is given and writes one new file.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from random import Random

import click

from emcd.errors import ConfigError
from emcd_validator.corpus import write_corpus
from emcd_validator.corpus_text import generate_leaves, leaves_of_texts

RECOMMENDED_LEAVES = 20_000


@click.command()
@click.argument("texts", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new corpus file.")
@click.option("--generate", default=0, show_default=True, help="Add so many generated leaves.")
def main(texts: tuple[Path, ...], out: Path, generate: int) -> None:
    """Build a validator's corpus from UTF-8 text files.

    Use text of your own, or text you may use, that is not on the public web: a node that knows
    your corpus can tell probes from users. Every leaf is used once; 20,000 or more are advised.
    """
    random = Random(secrets.randbits(256))  # noqa: S311 (its seed is the system's)
    documents = [path.read_text("utf-8", errors="replace") for path in texts]
    leaves = [*leaves_of_texts(documents, random), *generate_leaves(generate, random)]
    random.shuffle(leaves)
    try:
        count = write_corpus(out, leaves)
    except ConfigError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(f"{out}: {count} leaves")
    if count < RECOMMENDED_LEAVES:
        click.echo(f"{RECOMMENDED_LEAVES} or more are advised: each is used once", err=True)


if __name__ == "__main__":
    main()
