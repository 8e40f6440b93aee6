"""Graphs that a cheating node runs instead of the model it sells: every row of VERIFICATION 2 and 3.

They are written once into a folder of the test's and opened by name. Text models are cheapened matrix by
matrix or layer by layer; all-MiniLM-L6-v2 likewise, from its own tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from emcd.inference.bert_graph import BertShape, build_bert
from emcd.inference.cheaper_graph import CHEATS, write_cheaper_graph
from emcd.inference.decoder_graph import DecoderShape, build_decoder, read_tensors
from emcd.inference.variant import build_cheaper, round_bf16, round_fp16, round_int4, round_int8
from emcd.inference.weights import Tensors, find_model_dir, load_safetensors

Matrix = np.ndarray[Any, np.dtype[np.float32]]
TRUE: Final = "true"


class TextGraphs:
    """Cheaper graphs of one text model.

    Args:
        shape: of its decoder; `small`: the graph of a small model of the same vocabulary, where there is one.
    """

    def __init__(self, source: Path, shape: DecoderShape, folder: Path, small: Path | None = None) -> None:
        self._source, self._shape, self._folder, self._small = source, shape, folder, small

    def path(self, kind: str) -> Path:
        """`true`, `small`, `layers-N`, `fp16`, `bf16`, or a cheat of `emcd model calibrate`."""
        if kind == TRUE:
            return self._source
        if kind == "small" and self._small is not None:
            return self._small
        target = self._folder / kind / "model.onnx"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            self._write(kind, target)
        return target

    def _write(self, kind: str, target: Path) -> None:
        if kind in CHEATS:
            write_cheaper_graph(self._source, target, kind)
            return
        if kind == "int8-dynamic-per-tensor":
            _quantise(self._source, target, per_channel=False)
            return
        tensors, shape = read_tensors(self._source), self._shape
        if kind.startswith("layers-"):
            tensors, shape = build_cheaper(tensors, shape, "fewer-layers", layers=int(kind[7:]))
        else:
            tensors, shape = build_cheaper(tensors, shape, "fp16" if kind == "fp16" else "bf16")
        target.write_bytes(build_decoder(tensors, shape).SerializeToString())


def _round_group(weight: Matrix, steps: int) -> Matrix:
    rows = weight.reshape(-1, 32)
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(steps)
    scales[scales == 0] = 1
    rounded: Matrix = (np.rint(rows / scales) * scales).reshape(weight.shape)
    return rounded


def _prune(share: float) -> Callable[[Matrix], Matrix]:
    def prune(weight: Matrix) -> Matrix:
        kept: Matrix = np.where(np.abs(weight) <= np.quantile(np.abs(weight), share), np.float32(0), weight)
        return kept

    return prune


def _round_fp8(weight: Matrix) -> Matrix:
    rounded: Matrix = weight.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return rounded


def _add_noise(weight: Matrix) -> Matrix:
    noise = np.random.default_rng(weight.size).normal(1, 1e-3, weight.shape)
    noisy: Matrix = (weight * noise).astype(np.float32)
    return noisy


def _permute(weight: Matrix) -> Matrix:
    shuffled: Matrix = weight[np.random.default_rng(weight.size).permutation(weight.shape[0])]
    return shuffled


_ROUNDED: Final[dict[str, Callable[[Matrix], Matrix]]] = {
    "int8-per-channel": round_int8,
    "int8-group-32": lambda weight: _round_group(weight, 127),
    "int4-group-32": round_int4,
    "fp8-weights": _round_fp8,
    "prune-10": _prune(0.1),
    "prune-50": _prune(0.5),
    "noise": _add_noise,
    "permuted": _permute,
    "fp16": round_fp16,
    "bf16": round_bf16,
}
_ONE_LAYER: Final = "encoder.layer.3."
_LAYERS, _HEADS, _HIDDEN = 6, 12, 384


class VectorGraphs:
    """Cheaper graphs of all-MiniLM-L6-v2. Args: `source`: its honest graph."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._tensors: Tensors | None = None

    def path(self, kind: str) -> Path:
        """A name of `_ROUNDED`, `int8-one-layer`, `layers-N`, `cls`, or `dynamic-{u8,s8}-{channel,tensor}`."""
        if kind == TRUE:
            return self._source
        target = self._folder / f"{kind}.onnx"
        if not target.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            if kind.startswith("dynamic-"):
                _, sign, scope = kind.split("-")
                _quantise(self._source, target, per_channel=scope == "channel", is_signed=sign == "s8")
            else:
                target.write_bytes(self._build(kind).SerializeToString())
        return target

    def forget(self, kind: str) -> None:
        """Remove what was written for it: a graph has 90 MB."""
        if kind != TRUE:
            (self._folder / f"{kind}.onnx").unlink(missing_ok=True)

    def _build(self, kind: str) -> onnx.ModelProto:
        tensors = self._tensors = self._tensors or dict(
            load_safetensors(find_model_dir() / "model.safetensors")
        )
        layers = _LAYERS
        if kind == "int8-one-layer":
            tensors = _rounded(tensors, round_int8, _ONE_LAYER)
        elif kind in _ROUNDED:
            tensors = _rounded(tensors, _ROUNDED[kind], "encoder." if kind == "permuted" else "")
        elif kind.startswith("layers-"):
            layers = int(kind[7:])
        model = build_bert(tensors, BertShape(layers=layers, heads=_HEADS, hidden=_HIDDEN))
        return _pool_first(model) if kind == "cls" else model


def _rounded(tensors: Tensors, change: Callable[[Matrix], Matrix], prefix: str) -> Tensors:
    return {
        name: change(np.array(value)) if value.ndim == 2 and name.startswith(prefix) else value
        for name, value in tensors.items()
    }


def _pool_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """The vector of the first token instead of the mean of all."""
    nodes = {output: node for node in model.graph.node for output in node.output}
    total = nodes["embedding"].input[0]
    summed = nodes[total]
    tokens = nodes[summed.input[0]].input[0]
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first_place"))
    place = list(model.graph.node).index(summed)
    model.graph.node.remove(summed)
    model.graph.node.insert(place, helper.make_node("Gather", [tokens, "first_place"], [total], axis=1))
    return model


def _quantise(source: Path, target: Path, *, per_channel: bool, is_signed: bool = True) -> None:
    model = onnx.load(source)
    helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    kind = QuantType.QInt8 if is_signed else QuantType.QUInt8
    quantize_dynamic(model, target, weight_type=kind, per_channel=per_channel)
