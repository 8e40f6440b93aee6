"""Model folders: whole or not at all, and nothing read that the manifest does not name."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import msgspec
import pytest

from emcd.errors import ConfigError
from emcd.inference import model_folder
from emcd.inference.manifest import EngineManifest, TextManifest, canonical_json, model_hash
from emcd.inference.model_folder import (
    hash_files,
    list_models,
    load_model_folder,
    read_manifest,
    write_model_folder,
)

FILES: dict[str, bytes | Path] = {
    "model.onnx": b"graph",
    "tokenizer.json": b"{}",
    "golden.json": b"golden",
}


def manifest_of(files: dict[str, bytes | Path], **said: object) -> TextManifest:
    manifest = TextManifest(
        name="writer",
        files=hash_files(files),
        context_tokens=64,
        vocab_tokens=16,
        bos_token=None,
        stop_tokens=(),
    )
    return msgspec.structs.replace(manifest, **said)


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    write_model_folder(tmp_path / "models", "writer", manifest_of(FILES), FILES)
    return tmp_path / "models"


def code_of(error: pytest.ExceptionInfo[ConfigError]) -> str:
    return error.value.code


def test_load_gives_what_was_written(models_dir: Path) -> None:
    folder = load_model_folder(models_dir, "writer")

    assert folder.manifest == read_manifest(models_dir, "writer") == manifest_of(FILES)
    assert folder.model_hash == model_hash(folder.manifest)
    assert folder.file("model.onnx").read_bytes() == b"graph"
    assert folder.read_golden() == b"golden"
    assert list_models(models_dir) == ("writer",)
    with pytest.raises(KeyError):
        folder.file("manifest.json")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.json"])
def test_load_changed_file_is_refused(models_dir: Path, name: str) -> None:
    path = models_dir / "writer" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ConfigError) as error:
        load_model_folder(models_dir, "writer")
    assert code_of(error) == "EMC-1602"
    assert name in error.value.detail


def test_load_missing_file_is_refused(models_dir: Path) -> None:
    (models_dir / "writer" / "model.onnx").unlink()
    with pytest.raises(ConfigError) as error:
        load_model_folder(models_dir, "writer")
    assert code_of(error) == "EMC-1601"


@pytest.mark.parametrize("name", ["", ".", "..", "../models/writer", "a/b", "/etc", ".writer", "x" * 129])
def test_name_that_leads_elsewhere_is_refused(models_dir: Path, name: str) -> None:
    for act in (
        lambda: load_model_folder(models_dir, name),
        lambda: write_model_folder(models_dir, name, manifest_of(FILES), FILES),
    ):
        with pytest.raises(ConfigError) as error:
            act()
        assert code_of(error) == "EMC-1631"


def test_load_of_nothing_is_told(models_dir: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_model_folder(models_dir, "other")
    assert code_of(error) == "EMC-1631"
    assert list_models(models_dir / "nowhere") == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 9999,
        canonical_json(manifest_of(FILES)) + b"\n",
        canonical_json(EngineManifest(name="m")),
    ],
)
def test_manifest_that_is_none_of_a_model_is_refused(models_dir: Path, data: bytes) -> None:
    (models_dir / "writer" / "manifest.json").write_bytes(data)
    with pytest.raises(ConfigError) as error:
        load_model_folder(models_dir, "writer")
    assert code_of(error) == "EMC-1632"


def test_write_over_a_folder_needs_a_word(models_dir: Path) -> None:
    other: dict[str, bytes | Path] = {**FILES, "model.onnx": b"another"}
    with pytest.raises(ConfigError) as error:
        write_model_folder(models_dir, "writer", manifest_of(other), other)
    assert code_of(error) == "EMC-1633"
    assert load_model_folder(models_dir, "writer").manifest == manifest_of(FILES)

    write_model_folder(models_dir, "writer", manifest_of(other), other, replace=True)
    assert load_model_folder(models_dir, "writer").file("model.onnx").read_bytes() == b"another"
    assert [path.name for path in models_dir.iterdir()] == ["writer"]


@pytest.mark.parametrize("files", [{**FILES, "more": b""}, {"model.onnx": b"graph"}])
def test_write_other_files_than_the_manifest_names_is_refused(
    tmp_path: Path, files: dict[str, bytes | Path]
) -> None:
    with pytest.raises(ConfigError) as error:
        write_model_folder(tmp_path, "writer", manifest_of(FILES), files)
    assert code_of(error) == "EMC-1632"
    assert list(tmp_path.iterdir()) == []


def test_write_manifest_that_nobody_would_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        write_model_folder(tmp_path, "writer", manifest_of(FILES, vocab_tokens=0), FILES)
    assert code_of(error) == "EMC-1632"


def test_write_that_fails_leaves_the_old_folder_and_nothing_else(models_dir: Path) -> None:
    wrong: dict[str, bytes | Path] = {**FILES, "tokenizer.json": b"not what the manifest says"}
    with pytest.raises(ConfigError) as error:
        write_model_folder(models_dir, "writer", manifest_of(FILES), wrong, replace=True)
    assert code_of(error) == "EMC-1602"
    assert load_model_folder(models_dir, "writer").manifest == manifest_of(FILES)
    assert [path.name for path in models_dir.iterdir()] == ["writer"]


@pytest.mark.parametrize("is_killed", [False, True])
def test_write_that_stops_between_its_renames_keeps_the_old_model(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """A rename that fails is undone at once; after a crash, when nothing is undone, at the next look."""
    other: dict[str, bytes | Path] = {**FILES, "model.onnx": b"another"}
    rename, renamed = Path.rename, list[Path]()

    def stop(self: Path, target: Path) -> Path:
        renamed.append(self)
        if len(renamed) == 2 or (len(renamed) > 2 and is_killed):
            raise KeyboardInterrupt if is_killed else OSError(errno.ENOSPC, "no space left")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt if is_killed else ConfigError):
            write_model_folder(models_dir, "writer", manifest_of(other), other, replace=True)
    assert len(renamed) >= 2
    assert (models_dir / "writer").exists() is not is_killed

    assert load_model_folder(models_dir, "writer").manifest == manifest_of(FILES)
    assert [path.name for path in models_dir.iterdir()] == ["writer"]


def test_list_finds_what_a_crash_left_as_well(models_dir: Path) -> None:
    (models_dir / "writer").rename(models_dir / ".old-writer")
    assert list_models(models_dir) == ("writer",)


@pytest.mark.parametrize("has_new", [False, True])
def test_what_a_crash_left_is_brought_back_or_goes_with_the_next_write(
    models_dir: Path, has_new: bool
) -> None:
    old = models_dir / ".old-writer"
    if has_new:
        shutil.copytree(models_dir / "writer", old)
        other: dict[str, bytes | Path] = {**FILES, "model.onnx": b"another"}
        write_model_folder(models_dir, "writer", manifest_of(other), other, replace=True)
        assert load_model_folder(models_dir, "writer").manifest == manifest_of(other)
    else:
        (models_dir / "writer").rename(old)
        with pytest.raises(ConfigError, match="EMC-1633"):
            write_model_folder(models_dir, "writer", manifest_of(FILES), FILES)
        assert load_model_folder(models_dir, "writer").manifest == manifest_of(FILES)
    assert [path.name for path in models_dir.iterdir()] == ["writer"]


def test_write_takes_large_files_of_the_folder_by_link(models_dir: Path) -> None:
    paths: dict[str, bytes | Path] = {name: models_dir / "writer" / name for name in FILES}
    before = (models_dir / "writer" / "model.onnx").stat().st_ino
    write_model_folder(models_dir, "writer", manifest_of(FILES, context_tokens=32), paths, replace=True)

    assert load_model_folder(models_dir, "writer").file("model.onnx").stat().st_ino == before


def test_golden_file_without_bound_is_refused(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "MAX_GOLDEN_BYTES", 3)
    with pytest.raises(ConfigError) as error:
        load_model_folder(models_dir, "writer").read_golden()
    assert code_of(error) == "EMC-1630"
