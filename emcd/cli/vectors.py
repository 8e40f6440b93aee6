"""`emcd vectors`: does this program reproduce the conformance vectors?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from emcd.accounting.conformance import VectorOutcome, check_vectors
from emcd.command import emit, json_option
from emcd.errors import ConfigError


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@json_option
def vectors(files: tuple[Path, ...], as_json: bool) -> None:
    """Recompute conformance vectors of any kind and name the first difference.

    Kinds are known by their content: emission, settlement, messages (types, hashes, digests,
    signatures), batch trees, reward trees, bundles, assignments. Exits with 1 at a difference.
    """
    outcomes = [(path, _check_file(path)) for path in files]
    rows = [
        {
            "file": str(path),
            "kind": outcome.kind,
            "checked": outcome.checked,
            "difference": outcome.difference,
        }
        for path, outcome in outcomes
    ]
    text = "\n".join(f"{path}: {outcome.kind}, {_verdict(outcome)}" for path, outcome in outcomes)
    emit({"files": rows, "ok": not any(row["difference"] for row in rows)}, text, as_json)
    if any(outcome.difference for _, outcome in outcomes):
        raise click.exceptions.Exit(1)


def _check_file(path: Path) -> VectorOutcome:
    try:
        table = json.loads(path.read_bytes())
    except OSError as exc:
        raise ConfigError("EMC-1950", f"{path}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError("EMC-1950", f"{path} is not JSON: {exc}") from exc
    try:
        return check_vectors(table)
    except ConfigError as exc:
        raise ConfigError(exc.code, f"{path}: {exc.detail}") from exc


def _verdict(outcome: VectorOutcome) -> str:
    if outcome.difference:
        return f"DIFFERENCE at check {outcome.checked}: {outcome.difference}"
    return f"{outcome.checked} values reproduced"
