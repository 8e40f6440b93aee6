"""all-MiniLM-L6-v2: its manifest, and its ONNX file built once into a data directory.

Owns the constants of the model and the files under `models_dir`. Invariants: a file appears there
only whole (written beside, synced, renamed); a `.json` next to it holds its sha256 and the hash of
all it was made from, and a file that does not match is built anew. Everything here blocks: call
it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from emcd.errors import ConfigError
from emcd.inference.manifest import GOLDEN_FILE, EmbeddingManifest, canonical_json
from emcd.inference.weights import compute_sha256, find_model_dir, load_safetensors, require_sha256

Variant = Literal["fp32", "int8"]

MINILM_NAME = "all-MiniLM-L6-v2"
MINILM_MANIFEST = EmbeddingManifest(
    name=MINILM_NAME,
    files={
        "golden.json": "488e6c750b2f5bb4f978b104493f760b1dd3d873e7c0a410f2767b62428a489e",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    graph="bert-6x384-mean-l2/1",
    dimension=384,
    max_tokens=256,
    tau_e12=100_000_000,
    golden=GOLDEN_FILE,
)
_FROM_PACKAGE = ("model.safetensors", "tokenizer.json")
_GOLDEN = "golden_vectors/all-MiniLM-L6-v2.json"
_BUILD = 1  # raise it when the same manifest is to give other bytes of ONNX
_lock = threading.RLock()  # roles of one daemon that start together build once


@dataclass(frozen=True)
class ModelFiles:
    """What an embedder opens."""

    onnx: Path
    tokenizer: Path


class _Stamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands beside a built file."""

    made_from: str
    sha256: str


def ensure_minilm(models_dir: Path, variant: Variant = "fp32") -> ModelFiles:
    """Build the ONNX file unless a good one is there; about 1 s, then 0.1 s a start.

    `int8` is quantised dynamically and is NOT the model of the manifest: serving it under that
    name is a cheat that validators must catch; the devnet shows it.

    Raises: ConfigError EMC-1601 to 1604: package missing, another file, damaged, cannot write.
    """
    source = find_model_dir()
    for name in _FROM_PACKAGE:
        require_sha256(source / name, MINILM_MANIFEST.files[name])
    target = models_dir / f"{MINILM_NAME}-{variant}.onnx"
    made_from = hashlib.sha256(canonical_json(MINILM_MANIFEST) + f"|{variant}|{_BUILD}".encode()).hexdigest()
    with _lock:
        if not _is_good(target, made_from):
            _build(source, target, made_from, variant)
    return ModelFiles(target, source / "tokenizer.json")


def read_minilm_golden() -> bytes:
    """The golden vectors that come with this program. Raises: ConfigError EMC-1602 for other ones."""
    data = resources.files("emcd.inference").joinpath(_GOLDEN).read_bytes()
    if (actual := hashlib.sha256(data).hexdigest()) != MINILM_MANIFEST.files[GOLDEN_FILE]:
        raise ConfigError("EMC-1602", f"{_GOLDEN} has sha256 {actual}")
    return data


def _build(source: Path, target: Path, made_from: str, variant: Variant) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if variant == "fp32":
            _build_fp32(source / "model.safetensors", target, made_from)
        else:
            _build_int8(ensure_minilm(target.parent).onnx, target, made_from)
    except OSError as exc:
        raise ConfigError("EMC-1604", f"{target}: {exc}") from exc


def _is_good(target: Path, made_from: str) -> bool:
    try:
        stamp = msgspec.json.decode(_stamp_path(target).read_bytes(), type=_Stamp)
    except (OSError, msgspec.MsgspecError, ValueError):
        return False
    return target.is_file() and stamp.made_from == made_from and stamp.sha256 == compute_sha256(target)


def _stamp_path(target: Path) -> Path:
    return target.with_suffix(".json")


def _build_fp32(weights: Path, target: Path, made_from: str) -> None:
    from emcd.inference.bert_graph import BertShape, build_bert  # onnx is slow to import, and rarely needed

    try:
        model = build_bert(
            load_safetensors(weights), BertShape(layers=6, heads=12, hidden=MINILM_MANIFEST.dimension)
        )
    except KeyError as exc:
        raise ConfigError("EMC-1603", f"{weights} has no tensor {exc}") from exc
    with _written(target, made_from) as part:
        part.write_bytes(model.SerializeToString())


def _build_int8(fp32: Path, target: Path, made_from: str) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(fp32)
    # Shapes are known already; without this mark the quantiser advises on the root logger.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with _written(target, made_from) as part:
        quantize_dynamic(model, part, weight_type=QuantType.QInt8)


@contextmanager
def _written(target: Path, made_from: str) -> Iterator[Path]:
    """A path to write to, which becomes `target` whole: file first, stamp last, both synced."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
        part = Path(folder) / target.name
        yield part
        stamp = part.with_suffix(".json")
        stamp.write_bytes(msgspec.json.encode(_Stamp(made_from, compute_sha256(part))))
        for path in (part, stamp):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(target)
        stamp.replace(_stamp_path(target))
