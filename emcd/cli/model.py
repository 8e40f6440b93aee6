"""`emcd model`: the models of this machine, made, looked at and checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emcd.cli.model_calibrate import calibrate
from emcd.cli.model_place import find_models_dir, progress, show_hash
from emcd.command import emit, json_option
from emcd.errors import ConfigError, EmcdError

if TYPE_CHECKING:
    from emcd.inference.manifest import CheckedManifest


@click.group()
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where models are kept, instead of `models` in the configured data directory.",
)
@click.pass_context
def model(ctx: click.Context, models_dir: Path | None) -> None:
    """Add, list, verify, calibrate and train models.

    A model is a folder: manifest.json and the files that it names by their sha256. The hash of the
    manifest is the id that users buy and receipts name, so one changed byte is another model. A node
    serves a folder by its name (kind = "embedded", name = "NAME"), a validator judges it by the same
    name (models = ["NAME"]); both check the files and run the golden vectors first.

    all-MiniLM-L6-v2 comes with the program and needs no folder.
    """
    ctx.meta["emcd.models_dir"] = models_dir


model.add_command(calibrate)


@model.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", default="", help="What users ask for; default: the folder's name.")
@click.option(
    "--context",
    default=0,
    type=click.IntRange(0, 2**31 - 1),
    help="Longest prompt and answer, in tokens; default: as config.json says.",
)
@click.option(
    "--stop-token",
    "stops",
    multiple=True,
    type=click.IntRange(0),
    help="Id of a token that ends an answer; default: eos_token_id of generation_config.json or config.json. May repeat.",
)
@click.option(
    "--class",
    "numeric_class",
    type=click.Choice(("fp32", "fp16", "bf16")),
    default="fp32",
    show_default=True,
    help="The arithmetic that nodes promise: what the thresholds belong to.",
)
@click.option(
    "--quantization", default="", help="Of the weights that are sold, such as int8: a word in lower case."
)
@click.option(
    "--engine",
    default="emcd-onnx",
    show_default=True,
    help="What nodes compute it with. Another than emcd-onnx (such as vllm) samples as it likes: judged by its "
    "log-probabilities, and at temperature 0 by its tokens.",
)
@click.option("--engine-versions", default="", help="Which versions of the engine, such as '>=0.6,<0.8'.")
@click.option("--replace", is_flag=True, help="Take the place of a model of that name.")
@json_option
@click.pass_context
def add(
    ctx: click.Context,
    /,
    folder: Path,
    name: str,
    stops: tuple[int, ...],
    replace: bool,
    as_json: bool,
    **said: Any,
) -> None:
    """Take the export in FOLDER as a model.

    FOLDER is what `optimum-cli export onnx` writes: model.onnx (weights inside, or in files beside it),
    tokenizer.json, config.json, and a chat template in chat_template.jinja or tokenizer_config.json where
    the model can chat. A decoder must have its KV cache (task text-generation-with-past); an embedder must
    give one vector a text. Only files that answers depend on are taken. Sixteen golden vectors are made
    here, and become part of the manifest.

    The thresholds are those of the class until `emcd model calibrate` has measured the model.

    \b
    emcd model add exports/SmolLM2-135M-Instruct
    emcd model add exports/qwen --name qwen-small --context 4096 --stop-token 151645
    """
    from emcd.inference.model_export import ExportWishes, read_export
    from emcd.inference.model_folder import write_model_folder

    wishes = ExportWishes(
        name=name or folder.resolve().name,
        context_tokens=said["context"],
        stop_tokens=stops,
        numeric_class=said["numeric_class"],
        quantization=said["quantization"],
        engine=said["engine"],
        engine_versions=said["engine_versions"],
    )
    with progress(as_json) as say:
        say("reading the export and making its golden vectors")
        export = read_export(folder, wishes)
        say("writing the model's folder")
        made = write_model_folder(
            find_models_dir(ctx), wishes.name, export.manifest, export.files, replace=replace
        )
    shown = {"folder": str(made.path), **describe(wishes.name, made.manifest)}
    text = (
        f"{wishes.name} is a {shown['kind']} model now, in {made.path}\n"
        f"  id          {shown['model_hash']}\n"
        f"  asked at    {', '.join(shown['endpoints'])}\n"
        f"  thresholds  those of class {made.manifest.numeric_class}: run `emcd model calibrate {wishes.name}`\n"
        "It is in shadow until the network's parameters name its id: a FAIL is written down and costs nothing."
    )
    emit(shown, text, as_json)


@model.command(name="list")
@json_option
@click.pass_context
def list_them(ctx: click.Context, as_json: bool) -> None:
    """List the models of this machine with their ids."""
    from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME
    from emcd.inference.model_folder import list_models, read_manifest

    models_dir = find_models_dir(ctx)
    rows = [{**describe(MINILM_NAME, MINILM_MANIFEST), "folder": None}]
    for name in list_models(models_dir):
        try:
            rows.append({**describe(name, read_manifest(models_dir, name)), "folder": str(models_dir / name)})
        except ConfigError as exc:
            rows.append(
                {"name": name, "folder": str(models_dir / name), "error": f"{exc.code}: {exc.detail}"}
            )
    emit(rows, "\n".join(map(_line, rows)), as_json)


@model.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1, 256), help="Cores that the check uses."
)
@json_option
@click.pass_context
def verify(ctx: click.Context, names: tuple[str, ...], threads: int, as_json: bool) -> None:
    """Check the files of models by their sha256, and run their golden vectors on this machine.

    Without a NAME all models are checked. What a node does before it serves and a validator before it
    judges is the same. Exits with 1 when one of them does not pass.
    """
    from emcd.inference.golden import check_model
    from emcd.inference.minilm import MINILM_NAME
    from emcd.inference.model_folder import list_models

    models_dir = find_models_dir(ctx)
    rows = []
    with progress(as_json) as say:
        for name in names or (MINILM_NAME, *list_models(models_dir)):
            say(f"{name}: hashing its files, running its golden vectors")
            rows.append(_verify_one(name, partial(check_model, models_dir, name, threads=threads)))
    lines = [f"{'passed' if row['ok'] else 'FAILED'}  {row['name']}: {row['detail']}" for row in rows]
    emit(rows, "\n".join(lines), as_json)
    if not all(row["ok"] for row in rows):
        raise click.exceptions.Exit(1)


@model.command()
@json_option
@click.pass_context
def train(ctx: click.Context, as_json: bool) -> None:
    """Train emcd-tiny-1 on this machine: about a minute on two cores.

    A text model of a million weights that learned the documentation of Python's standard library. It is
    what the devnet serves, small enough for every test, and good for nothing else. A model that is there
    and gives its golden vectors is kept as it is.

    The same Python, numpy and kind of processor give the same model on any number of cores; others give
    one of the same quality with another id. To sell one model on several machines, copy its folder.
    """
    from emcd.inference.model_folder import load_model_folder
    from emcd.inference.training.tiny import ensure_tiny

    with progress(as_json) as say:
        path = ensure_tiny(find_models_dir(ctx), say)
    folder = load_model_folder(path.parent, path.name)
    shown = {"folder": str(path), **describe(path.name, folder.manifest)}
    emit(shown, f"{path.name} is in {path}\n  id  {shown['model_hash']}", as_json)


def describe(name: str, manifest: CheckedManifest) -> dict[str, Any]:
    """What a manifest says, as --json shows it."""
    import msgspec

    from emcd.inference.manifest import EmbeddingManifest

    kind = "embedding" if isinstance(manifest, EmbeddingManifest) else "text"
    known = manifest.calibration
    return {
        "name": name,
        "kind": kind,
        "model_hash": show_hash(manifest),
        "numeric_class": manifest.numeric_class,
        "endpoints": sorted(endpoint.path for endpoint in manifest.list_endpoints()),
        "calibration": None if isinstance(known, msgspec.UnsetType) else msgspec.to_builtins(known),
        "manifest": msgspec.to_builtins(manifest),
    }


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    known = row["calibration"]
    measured = (
        f"calibrated on {known['answers']} answers of {known['machines']} machine(s)"
        if known
        else "not calibrated"
    )
    return f"{row['name']}  {row['kind']}, {row['numeric_class']}, {measured}\n  {row['model_hash']}"


def _verify_one(name: str, check: Callable[[], Any]) -> dict[str, Any]:
    try:
        found = check()
    except EmcdError as exc:
        return {"name": name, "ok": False, "detail": f"{exc.code}: {exc.detail}", "worst_share": None}
    return {"name": name, "ok": found.ok, "detail": found.detail, "worst_share": found.worst_e12 / 1e12}
