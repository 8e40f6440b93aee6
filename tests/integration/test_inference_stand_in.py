"""The devnet's cheaper models: built once, under the honest manifest, and found out by the golden vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from emcd.errors import ConfigError
from emcd.inference.golden import require_golden
from emcd.inference.golden_tokens import check_text_golden
from emcd.inference.manifest import TextManifest
from emcd.inference.model_folder import ModelFolder, list_models, load_model_folder
from emcd.inference.stand_in import StandIn, build_stand_in
from tests.support.decoder_model import tiny_folder

__all__ = ["tiny_folder"]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> ModelFolder:
    shutil.copytree(tiny_folder, tmp_path / tiny_folder.name)
    return load_model_folder(tmp_path, tiny_folder.name)


@pytest.mark.parametrize("kind", ["int8", "fewer-layers"])
def test_stand_in_is_sold_as_the_model_and_does_not_give_its_golden_vectors(
    folder: ModelFolder, kind: StandIn
) -> None:
    cheaper = build_stand_in(folder, kind)

    assert (cheaper.manifest, cheaper.model_hash) == (folder.manifest, folder.model_hash)
    assert cheaper.file("model.onnx").stat().st_size < folder.file("model.onnx").stat().st_size
    assert cheaper.file("tokenizer.json").read_bytes() == folder.file("tokenizer.json").read_bytes()
    assert isinstance(folder.manifest, TextManifest)
    assert not check_text_golden(folder.manifest, cheaper.file("model.onnx"), folder.read_golden()).ok
    require_golden(folder)


def test_stand_in_is_built_once_and_is_no_model(folder: ModelFolder) -> None:
    made = build_stand_in(folder, "fewer-layers").file("model.onnx").stat().st_ino
    assert build_stand_in(folder, "fewer-layers").file("model.onnx").stat().st_ino == made
    assert list_models(folder.path.parent) == (folder.path.name,)

    (folder.path.with_name(f"{folder.path.name}.fewer-layers") / "made-from").write_text("another model")
    assert build_stand_in(folder, "fewer-layers").file("model.onnx").stat().st_ino != made


def test_stand_in_of_unknown_layers_is_refused_and_leaves_nothing(folder: ModelFolder) -> None:
    other = msgspec.structs.replace(folder.manifest, name="other")
    with pytest.raises(ConfigError) as error:
        build_stand_in(ModelFolder(other, folder.model_hash, folder.path), "fewer-layers")
    assert error.value.code == "EMC-1637"
    assert [path.name for path in folder.path.parent.iterdir()] == [folder.path.name]
