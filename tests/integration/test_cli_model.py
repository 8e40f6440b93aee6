"""`emcd model`: exports in, ids out; what does not pass says so with its exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from emcd.cli.model import model
from emcd.command import CommandContext
from emcd.errors import ConfigError
from emcd.inference.manifest import TextManifest, model_hash
from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME, ModelFiles
from emcd.inference.model_folder import load_model_folder, read_manifest
from tests.support.decoder_model import TOY, ToyDecoder, toy_decoder
from tests.support.inference_model import fp32_files

__all__ = ["fp32_files", "toy_decoder"]


class Models:
    """The command, with a models folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str) -> Result:
        context = CommandContext(None, lambda *_: 0, _no_config)
        return CliRunner().invoke(model, ["--models-dir", str(self.folder), *arguments], obj=context)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


def _no_config() -> Any:
    raise AssertionError("the configuration was read")


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path / "models")


@pytest.fixture
def export(tmp_path: Path, toy_decoder: ToyDecoder) -> Path:
    """The toy as optimum would have written it."""
    folder = tmp_path / "an-export"
    shutil.copytree(toy_decoder.folder, folder)
    (folder / "config.json").write_text(
        json.dumps({"max_position_embeddings": TOY.context, "eos_token_id": 3})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 3]}))
    (folder / "README.md").write_text("not a part of the model")
    return folder


def test_add_takes_what_the_export_says(models: Models, export: Path) -> None:
    shown = models.json("add", str(export))

    folder = load_model_folder(models.folder, "an-export")
    manifest = folder.manifest
    assert isinstance(manifest, TextManifest)
    assert (manifest.name, manifest.context_tokens, manifest.vocab_tokens) == (
        "an-export",
        TOY.context,
        TOY.vocab,
    )
    assert (manifest.stop_tokens, manifest.bos_token, manifest.sampler) == ((3, 7), None, "emcd-gumbel-v1")
    assert sorted(manifest.files) == ["chat_template.jinja", "golden.json", "model.onnx", "tokenizer.json"]
    assert shown["model_hash"] == f"0x{model_hash(manifest).hex()}"
    assert shown["endpoints"] == ["/v1/chat/completions", "/v1/completions"]
    assert models.json("verify", "an-export")[0]["ok"] is True


def test_add_takes_what_the_person_says_instead(models: Models, export: Path) -> None:
    for name in ("config.json", "generation_config.json", "chat_template.jinja"):
        (export / name).unlink()
    (export / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ messages[0]['content'] }}"})
    )
    models.json("add", str(export), "--name", "small", "--context", "64", "--stop-token", "9", "--class", "bf16",
                "--quantization", "int8", "--engine", "vllm", "--engine-versions", ">=0.6")  # fmt: skip

    manifest = read_manifest(models.folder, "small")
    assert isinstance(manifest, TextManifest)
    assert (manifest.context_tokens, manifest.stop_tokens, manifest.quantization) == (64, (9,), "int8")
    assert (manifest.engine, manifest.engine_versions, manifest.sampler) == ("vllm", ">=0.6", "engine")
    assert manifest.thresholds.d_e12 == 20_000_000_000
    assert manifest.can_chat


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (lambda f: (f / "model.onnx").unlink(), "EMC-1635", "no model.onnx"),
        (lambda f: (f / "tokenizer.json").unlink(), "EMC-1635", "no tokenizer.json"),
        (lambda f: (f / "config.json").unlink(), "EMC-1635", "--context"),
        (lambda f: (f / "config.json").write_text("[]"), "EMC-1635", "config.json"),
        (lambda f: (f / "model.onnx").write_bytes(b"no graph"), "EMC-1606", "model.onnx"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "EMC-1652", "tokenizer.json"),
        (lambda f: (f / "chat_template.jinja").write_text("{% if %}"), "EMC-1653", ""),
    ],
)
def test_add_of_a_broken_export_leaves_nothing(
    models: Models, export: Path, harm: Any, code: str, words: str
) -> None:
    harm(export)
    done = models.run("add", str(export))
    assert isinstance(done.exception, ConfigError)
    assert done.exception.code == code
    assert words in done.exception.detail
    assert not models.folder.exists()


def test_add_twice_needs_a_word(models: Models, export: Path) -> None:
    models.json("add", str(export))
    again = models.run("add", str(export))
    assert isinstance(again.exception, ConfigError)
    assert again.exception.code == "EMC-1633"
    models.json("add", str(export), "--replace")


def test_add_of_an_embedder_that_pools_in_its_graph(
    models: Models, tmp_path: Path, fp32_files: ModelFiles
) -> None:
    folder = tmp_path / "embedder"
    folder.mkdir()
    shutil.copyfile(fp32_files.onnx, folder / "model.onnx")
    shutil.copyfile(fp32_files.tokenizer, folder / "tokenizer.json")
    shown = models.json("add", str(folder), "--context", "64")

    assert (shown["kind"], shown["endpoints"]) == ("embedding", ["/v1/embeddings"])
    assert (shown["manifest"]["dimension"], shown["manifest"]["max_tokens"]) == (384, 64)
    assert shown["manifest"]["normalise"] is True
    assert models.json("verify", "embedder")[0]["ok"] is True


def test_list_names_the_model_of_the_program_and_what_can_not_be_read(models: Models, export: Path) -> None:
    models.json("add", str(export))
    (models.folder / "broken").mkdir()
    (models.folder / "broken" / "manifest.json").write_text("{}")
    rows = {row["name"]: row for row in models.json("list")}

    assert sorted(rows) == [MINILM_NAME, "an-export", "broken"]
    assert rows[MINILM_NAME]["model_hash"] == f"0x{model_hash(MINILM_MANIFEST).hex()}"
    assert rows["broken"]["error"].startswith("EMC-1632")
    text = models.run("list").stdout
    assert "an-export  text, fp32, not calibrated" in text


def test_verify_of_a_changed_file_fails_and_says_which(models: Models, export: Path) -> None:
    models.json("add", str(export))
    (models.folder / "an-export" / "tokenizer.json").write_text("{}")
    done = models.run("verify", "an-export")

    assert done.exit_code == 1
    assert done.stdout.startswith("FAILED  an-export: EMC-1602")
    assert "tokenizer.json" in done.stdout


def test_verify_of_a_model_that_is_not_here_fails(models: Models) -> None:
    done = models.run("verify", "nobody", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)[0]["detail"].startswith("EMC-1631")


def test_calibrate_measures_merges_and_writes_another_model(
    models: Models, export: Path, tmp_path: Path
) -> None:
    before = models.json("add", str(export))["model_hash"]
    own = tmp_path / "own.json"
    first = models.json("calibrate", "an-export", "--answers", "24", "--out", str(own))
    assert (first["answers"], first["machines"], first["is_enough"], first["is_written"]) == (
        24,
        1,
        False,
        False,
    )
    assert first["thresholds"] == first["thresholds_before"]
    assert first["cheats"]["int8-dynamic"]["times_the_threshold"] > 1
    assert models.json("list")[1]["model_hash"] == before

    others = []
    for name in ("two", "three"):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({**json.loads(own.read_text()), "machine": name, "answers": 1500}))
        others += ["--merge", str(file)]
    done = models.json("calibrate", "an-export", "--answers", "0", "--merge", str(own), *others, "--write")
    assert (done["machines"], done["is_enough"], done["is_written"]) == (3, True, True)
    assert done["thresholds"]["d"] < done["thresholds_before"]["d"]
    assert done["calibrated_hash"] != before
    row = models.json("list")[1]
    assert (row["model_hash"], row["calibration"]) == (
        done["calibrated_hash"],
        {"answers": 3024, "machines": 3},
    )
    assert models.json("verify", "an-export")[0]["ok"] is True


def test_calibrate_shows_the_known_cheats_in_words(models: Models, export: Path) -> None:
    models.json("add", str(export))
    text = models.run("calibrate", "an-export", "--answers", "6").stdout

    assert "6 honest answers of 1 machine(s)" in text
    assert "dynamic int8: d at least" in text
    assert "would be, with --write, another model: 0x" in text


@pytest.mark.parametrize("arguments", [("--answers", "0"), ("--answers", "0", "--merge", "none.json")])
def test_calibrate_of_nothing_is_refused(
    models: Models, export: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    models.json("add", str(export))
    (tmp_path / "none.json").write_text("{}")
    done = models.run(
        "calibrate", "an-export", *(a.replace("none.json", str(tmp_path / "none.json")) for a in arguments)
    )
    assert isinstance(done.exception, ConfigError)
    assert done.exception.code == "EMC-1636"


def test_calibrate_does_not_write_into_the_program(models: Models) -> None:
    done = models.run("calibrate", MINILM_NAME, "--answers", "0", "--write")
    assert isinstance(done.exception, ConfigError)
    assert done.exception.code == "EMC-1636"
