"""`emcd model calibrate`: how far honest answers stray, on several machines, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emcd.cli.model_place import Say, find_models_dir, progress, show_hash
from emcd.command import emit, json_option

if TYPE_CHECKING:
    from emcd.inference.calibration import Measurement
    from emcd.inference.manifest import CheckedManifest

DEFAULT_ANSWERS = 2_000


@click.command()
@click.argument("name")
@click.option(
    "--answers",
    default=DEFAULT_ANSWERS,
    show_default=True,
    type=click.IntRange(0, 10_000_000),
    help="Honest answers to measure here; 0: only merge.",
)
@click.option(
    "--seed",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="Which texts: give every machine another.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write this machine's measurement to a file, to be merged elsewhere.",
)
@click.option(
    "--merge",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A measurement of another machine. May repeat.",
)
@click.option(
    "--write",
    is_flag=True,
    help="Write the manifest with the new thresholds: from then on it is another model.",
)
@json_option
@click.pass_context
def calibrate(
    ctx: click.Context,
    name: str,
    answers: int,
    seed: int,
    out: Path | None,
    merge: tuple[Path, ...],
    write: bool,
    as_json: bool,
) -> None:
    """Measure how far honest answers of the model NAME lie from the reference run.

    Answers are computed with several thread counts, optimisation levels, batch sizes and paddings, and
    compared as a validator compares. Each threshold becomes twice the largest value of all machines; with
    fewer than three machines or 2,000 answers it is not made narrower than its class's. The known cheats are
    run, too: how far the nearest one is says what the model can be told apart from.

    \b
    on each machine   emcd model calibrate NAME --seed 7 --out seven.json
    on one of them    emcd model calibrate NAME --answers 0 --merge six.json --merge seven.json --write

    Thresholds are part of the manifest, so the calibrated model has another id: nodes and validators need
    the new folder, and the network's parameters must name the new id.
    """
    from emcd.inference.calibration import calibrate as calibrated
    from emcd.inference.calibration import decode_measurement, encode_measurement, merge_measurements

    models_dir = find_models_dir(ctx)
    manifest = _find_manifest(models_dir, name, write)
    measured = [decode_measurement(path.read_bytes(), str(path)) for path in merge]
    if answers:
        with progress(as_json) as say:
            own = _measure(models_dir, name, answers, seed, say)
        measured.append(own)
        if out is not None:
            out.write_bytes(encode_measurement(own))
    found = merge_measurements(measured)
    fresh = calibrated(manifest, found)
    if write:
        _rewrite(models_dir, name, fresh)
    shown = _show(manifest, fresh, found, write)
    emit(shown, _tell(name, shown), as_json)


def _find_manifest(models_dir: Path, name: str, write: bool) -> CheckedManifest:
    from emcd.errors import ConfigError
    from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME
    from emcd.inference.model_folder import load_model_folder

    if name != MINILM_NAME:
        return load_model_folder(models_dir, name).manifest
    if write:
        raise ConfigError("EMC-1636", f"the manifest of {name} is part of the program")
    return MINILM_MANIFEST


def _measure(models_dir: Path, name: str, answers: int, seed: int, say: Say) -> Measurement:
    from emcd.inference.calibration_run import measure_embedder, measure_text_model
    from emcd.inference.golden import embedder_files
    from emcd.inference.manifest import GRAPH_FILE, TOKENIZER_FILE, EmbeddingManifest
    from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME, ensure_minilm
    from emcd.inference.model_folder import load_model_folder

    if name == MINILM_NAME:
        files = ensure_minilm(models_dir)
        return measure_embedder(MINILM_MANIFEST, files, answers=answers, seed=seed, say=say)
    folder = load_model_folder(models_dir, name)
    manifest = folder.manifest
    if isinstance(manifest, EmbeddingManifest):
        return measure_embedder(manifest, embedder_files(folder), answers=answers, seed=seed, say=say)
    graph, tokenizer = folder.file(GRAPH_FILE), folder.file(TOKENIZER_FILE)
    return measure_text_model(manifest, graph, tokenizer, answers=answers, seed=seed, say=say)


def _rewrite(models_dir: Path, name: str, manifest: CheckedManifest) -> None:
    from emcd.inference.model_folder import write_model_folder

    files = {file: models_dir / name / file for file in manifest.files}
    write_model_folder(models_dir, name, manifest, files, replace=True)


def _show(
    before: CheckedManifest, after: CheckedManifest, found: Measurement, is_written: bool
) -> dict[str, Any]:
    import msgspec

    from emcd.inference.calibration import count_machines, is_enough, list_thresholds

    old, new = list_thresholds(before), list_thresholds(after)
    return {
        "model_hash": show_hash(before),
        "calibrated_hash": show_hash(after),
        "is_written": is_written,
        "answers": found.answers,
        "machines": count_machines(found),
        "is_enough": is_enough(found),
        "runs": found.runs,
        "honest": {name: value / 1e12 for name, value in found.most_e12.items()},
        "thresholds_before": {name: value / 1e12 for name, value in old.items()},
        "thresholds": {name: value / 1e12 for name, value in new.items()},
        "cheats": {
            name: {
                "statistic": near.statistic,
                "least": near.least_e12 / 1e12,
                "times_the_threshold": near.least_e12 / new[near.statistic],
                "answers": near.answers,
            }
            for name, near in sorted(found.cheats.items(), key=lambda item: item[1].least_e12)
        },
        "manifest": msgspec.to_builtins(after),
    }


def _tell(name: str, shown: dict[str, Any]) -> str:
    from emcd.inference.cheaper_graph import WORDS

    lines = [f"{name}: {shown['answers']} honest answers of {shown['machines']} machine(s)"]
    lines += [
        f"  {key:<6} at most {shown['honest'].get(key, 0):.1e}: threshold {value:.1e},"
        f" before {shown['thresholds_before'][key]:.1e}"
        for key, value in shown["thresholds"].items()
    ]
    lines += [
        f"  {WORDS.get(cheat, cheat)}: {near['statistic']} at least {near['least']:.1e},"
        f" {near['times_the_threshold']:.3g} times the threshold"
        + ("" if near["times_the_threshold"] > 1 else ": NOT caught")
        for cheat, near in shown["cheats"].items()
    ]
    if not shown["is_enough"]:
        lines.append("  too few machines or answers to go below the thresholds of the class")
    if shown["calibrated_hash"] != shown["model_hash"]:
        done = "is now" if shown["is_written"] else "would be, with --write,"
        lines += [
            f"{name} {done} another model: {shown['calibrated_hash']}",
            f"  (before: {shown['model_hash']})",
        ]
    return "\n".join(lines)
