"""Finding, checking and reading the model's files."""

from __future__ import annotations

import importlib.machinery
import json
from pathlib import Path

import numpy as np
import pytest

from emcd.errors import ConfigError
from emcd.inference import weights


def _safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_load_safetensors_reads_values_and_shapes(tmp_path: Path) -> None:
    matrix, ids = np.arange(6, dtype="<f4").reshape(2, 3), np.array([7, 8], "<i8")
    header = {
        "__metadata__": {"format": "pt"},
        "w": _entry("F32", [2, 3], 0, 24),
        "i": _entry("I64", [2], 24, 40),
    }
    path = tmp_path / "m.safetensors"
    path.write_bytes(_safetensors(header, matrix.tobytes() + ids.tobytes()))
    tensors = weights.load_safetensors(path)
    assert set(tensors) == {"w", "i"}
    np.testing.assert_array_equal(tensors["w"], matrix)
    np.testing.assert_array_equal(tensors["i"], ids)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        _safetensors(b"{"),
        _safetensors(b"[]"),
        _safetensors({}, length=1 << 40),
        _safetensors({"w": _entry("F32", [2], 0, 8)}, b"\0" * 4),
        _safetensors({"w": _entry("F32", [3], 0, 8)}, b"\0" * 8),
        _safetensors({"w": _entry("F32", [2], -8, 0)}, b"\0" * 8),
        _safetensors({"w": _entry("F32", [-1, -2], 0, 8)}, b"\0" * 8),
        _safetensors({"w": _entry("BF16", [2], 0, 4)}, b"\0" * 4),
        _safetensors({"w": {"dtype": "F32"}}),
        _safetensors({"w": 3}),
    ],
)
def test_load_safetensors_damaged_file_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        weights.load_safetensors(path)
    assert caught.value.code == "EMC-1603"


def test_find_model_dir_without_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PACKAGE", "gt_no_such_package")
    with pytest.raises(ConfigError, match="gt-no-such-package") as caught:
        weights.find_model_dir()
    assert caught.value.code == "EMC-1601"


def test_find_model_dir_package_without_model_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.machinery.ModuleSpec("x", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(weights, "find_spec", lambda _name: spec)
    with pytest.raises(ConfigError) as caught:
        weights.find_model_dir()
    assert caught.value.code == "EMC-1601"


def test_require_sha256_other_content_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    weights.require_sha256(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    with pytest.raises(ConfigError) as caught:
        weights.require_sha256(path, "0" * 64)
    assert caught.value.code == "EMC-1602"


def test_require_sha256_missing_file_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        weights.require_sha256(tmp_path / "none", "0" * 64)
    assert caught.value.code == "EMC-1601"
