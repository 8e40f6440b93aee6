"""`emcd corpus`: build a validator's private corpus from text files, and look at one.

Blocking, run by an operator by hand. It reads the files it is given and writes one new file.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from random import Random

import click

from emcd.command import emit, json_option
from emcd.errors import ConfigError
from emcd_validator.corpus import Leaf, decode_leaf, load_corpus, write_corpus
from emcd_validator.corpus_build import build_leaves, limit_languages
from emcd_validator.corpus_report import CorpusReport, inspect_leaves
from emcd_validator.corpus_source import Document, read_documents
from emcd_validator.corpus_text import generate_leaves
from emcd_validator.corpus_tree import MAX_LEAVES
from emcd_validator.profile import Profile, load_profile

MAX_TEXT_FILES = 1_000_000

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("corpus")
def corpus() -> None:
    """Build and inspect a validator's private corpus: what its probes ask."""


@corpus.command("build")
@click.argument("texts", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new corpus file.")
@click.option("--profile", "profile_file", type=_file, help="The traffic profile (TOML).")
@click.option("--leaves", default=MAX_LEAVES, type=click.IntRange(2, MAX_LEAVES), help="At most so many.")
@click.option(
    "--generate", default=0, type=click.IntRange(0, MAX_LEAVES), help="Add generated leaves (weak)."
)
@json_option
def build(
    texts: tuple[Path, ...],
    out: Path,
    profile_file: Path | None,
    leaves: int,
    generate: int,
    as_json: bool,
) -> None:
    """Build a corpus from text files (or folders of them): prose, markdown, code, chat logs.

    Use text of your own, or text you may use, that is like what your users send and is not on the public
    web: a node that knows your corpus can tell probes from users. A log with "User:" and "Assistant:"
    before the turns gives conversations, as do JSON lines with "messages". Each passage is used once, and
    texts that are almost one are used once.
    """
    random = Random(secrets.randbits(256))  # noqa: S311 (its seed is the system's)
    try:
        profile = load_profile(profile_file)
        built = _build(_read_all(texts), profile, random)[:leaves]
        built += generate_leaves(generate, random, profile)
        random.shuffle(built)
        if len(built) < 2:
            raise ConfigError("EMC-1861", "the files give fewer than two leaves")
        write_corpus(out, built)
    except ConfigError as exc:
        raise click.ClickException(str(exc)) from exc
    report = inspect_leaves(built)
    if generate:
        click.echo("generated leaves are weak: a node learns their patterns; for a devnet only", err=True)
    emit({"file": str(out), **report.to_json()}, f"{out}: {len(built)} leaves\n{_describe(report)}", as_json)


@corpus.command("inspect")
@click.argument("file", type=_file)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Say what a corpus looks like, and what a node could know it by."""
    try:
        leaves = [decode_leaf(data) for data in load_corpus(file).leaves]
    except ConfigError as exc:
        raise click.ClickException(str(exc)) from exc
    report = inspect_leaves(leaves)
    emit({"file": str(file), **report.to_json()}, _describe(report), as_json)


def _read_all(paths: tuple[Path, ...]) -> list[Document]:
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if file.is_file()]
    if len(files) > MAX_TEXT_FILES:
        raise ConfigError("EMC-1861", f"{len(files)} files, more than {MAX_TEXT_FILES}")
    documents: list[Document] = []
    given = set(paths)
    with click.progressbar(files, label="reading", file=sys.stderr) as shown:
        for file in shown:
            try:
                documents += read_documents(file)
            except ConfigError:
                if file in given:
                    raise
    return documents


def _build(documents: list[Document], profile: Profile, random: Random) -> list[Leaf]:
    with click.progressbar(length=len(documents), label="cutting", file=sys.stderr) as shown:
        leaves = list(build_leaves(documents, profile, random, shown.update))
    return limit_languages(leaves, profile.languages)


def _describe(report: CorpusReport) -> str:
    shortest, median, mean, longest = report.words

    def line(shares: dict[str, float] | dict[int, float]) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:8]) or "-"

    lines = [
        f"leaves      {report.leaves}, {report.texts} texts",
        f"words       {shortest} to {longest}, median {median}, mean {mean:.0f}",
        f"languages   {line(report.languages)}",
        f"endpoints   {line(report.endpoints)}; streamed {report.streams:.0%}, T=0 {report.greedy:.0%}",
        f"turns       {line(report.turns)}; with a system prompt {report.systems:.0%}",
        f"inputs      {line(report.inputs)}",
        f"long        {report.long:.1%}",
        f"duplicates  {report.duplicates}",
        f"generated   {report.generated:.0%} look so",
        *(f"warning: {text}" for text in report.warnings),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    corpus()
