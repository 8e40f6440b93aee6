"""From a configured model to what serves it: nothing is sold that is not here, or goes by another name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from emcd.errors import ConfigError
from emcd.inference.manifest import EngineManifest, TextManifest
from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME
from emcd.inference.model_folder import hash_files, write_model_folder
from emcd_node.config import ModelConfig
from emcd_node.embedded_model import EmbeddedModel
from emcd_node.engine_model import EngineModel
from emcd_node.model_choice import make_model
from emcd_node.text_model import TextModel

FILES: dict[str, bytes | Path] = {"model.onnx": b"none", "tokenizer.json": b"{}", "golden.json": b"{}"}
TEXT = TextManifest(
    name="writer",
    files=hash_files(FILES),
    context_tokens=64,
    vocab_tokens=16,
    bos_token=None,
    stop_tokens=(),
    engine="vllm",
    sampler="engine",
)
EMBEDDER = msgspec.structs.replace(MINILM_MANIFEST, name="other", files=hash_files(FILES))
URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    write_model_folder(tmp_path, "writer", TEXT, FILES)
    write_model_folder(tmp_path, "other", EMBEDDER, FILES)
    write_model_folder(tmp_path, "renamed", TEXT, FILES)
    return tmp_path


def test_model_of_the_program_needs_no_folder(tmp_path: Path) -> None:
    model = make_model(ModelConfig("embedded", MINILM_NAME), tmp_path)
    assert isinstance(model, EmbeddedModel)
    assert model.manifest == MINILM_MANIFEST
    assert not model.is_available()


def test_folder_is_served_by_its_kind(models_dir: Path) -> None:
    writer, other = (make_model(ModelConfig("embedded", name), models_dir) for name in ("writer", "other"))
    assert isinstance(writer, TextModel)
    assert isinstance(other, EmbeddedModel)
    assert (writer.manifest, other.manifest) == (TEXT, EMBEDDER)


def test_engine_sells_a_manifest_where_it_is_told_to(models_dir: Path) -> None:
    named = make_model(ModelConfig("engine", "writer", url=URL), models_dir)
    sold = make_model(ModelConfig("engine", "writer", url=URL, manifest="renamed"), models_dir)
    assert isinstance(named, EngineModel)
    assert named.manifest == EngineManifest(name="writer")
    assert sold.manifest == TEXT


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (ModelConfig("embedded", "nobody"), "EMC-1631"),
        (ModelConfig("embedded", "renamed"), "EMC-2012"),
        (ModelConfig("engine", "writer", url=URL, manifest="nobody"), "EMC-1631"),
        (ModelConfig("engine", "llama", url=URL, manifest="writer"), "EMC-2012"),
    ],
)
def test_model_that_is_not_here_or_has_another_name_is_refused(
    models_dir: Path, model: ModelConfig, code: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make_model(model, models_dir)
    assert error.value.code == code
