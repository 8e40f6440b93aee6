"""Cheaper variants of a decoder: what a node may run instead of the model that it sells.

Pure but for `quantise_dynamic`, which reads and writes graphs: tensors in, tensors out. Weight-only kinds
are given back in fp32, rounded to what the cheap form can hold: that is what such an engine computes with.
They are made for calibrating thresholds, for tests and for demonstrations; a model that is sold under its
own name as int8 is made the same way.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from emcd.inference.decoder_graph import DecoderShape, layer_name
from emcd.inference.weights import Tensors

Variant = Literal["int8", "int4", "fp16", "bf16", "fewer-layers"]
VARIANTS: Final[tuple[Variant, ...]] = ("int8", "int4", "fp16", "bf16", "fewer-layers")
INT4_GROUP: Final = 32

Matrix = NDArray[np.float32]


def build_cheaper(
    tensors: Tensors, shape: DecoderShape, kind: Variant, *, layers: int = 0
) -> tuple[Tensors, DecoderShape]:
    """The weights of a variant, and its shape.

    Args:
        kind: int8: weight-only, symmetric, a scale for each output row; int4: weight-only, symmetric, a scale
            for each 32 inputs; fp16, bf16: every tensor rounded; fewer-layers: the last ones are left out.
        layers: how many stay with fewer-layers; 0: all but one.
    """
    if kind == "fewer-layers":
        kept = layers or shape.layers - 1
        if not 0 < kept < shape.layers:
            raise ValueError(f"{kept} of {shape.layers} layers is not fewer")
        dropped = tuple(f"{layer_name(index)}." for index in range(kept, shape.layers))
        return {name: value for name, value in tensors.items() if not name.startswith(dropped)}, replace(
            shape, layers=kept
        )
    return {name: _round(value, kind) for name, value in tensors.items()}, shape


def round_int8(weight: Matrix) -> Matrix:
    """Symmetric int8 with one scale a row, float32 [out, in] again."""
    return _round_symmetric(weight, 127)


def round_int4(weight: Matrix, group: int = INT4_GROUP) -> Matrix:
    """Symmetric int4 with one scale for each `group` inputs of a row, float32 [out, in] again."""
    rows, columns = weight.shape
    if columns % group:
        raise ValueError(f"{columns} inputs are not groups of {group}")
    return _round_symmetric(weight.reshape(-1, group), 7).reshape(rows, columns)


def round_fp16(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """To the nearest half, and back."""
    return value.astype(np.float16).astype(np.float32)


def round_bf16(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """To the nearest bfloat16, ties to even, and back."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def quantise_dynamic(source: Path, target: Path, *, per_channel: bool = True) -> None:
    """onnxruntime's dynamic int8 of a graph: int8 weights, and activations as they come. Blocks."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    # Shapes are known already; without this mark the quantiser advises on the root logger.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_dynamic(model, target, weight_type=QuantType.QInt8, per_channel=per_channel)


def _round(value: NDArray[Any], kind: Variant) -> NDArray[np.float32]:
    if kind == "fp16":
        return round_fp16(value)
    if kind == "bf16":
        return round_bf16(value)
    if value.ndim < 2:  # norms stay as they are: nobody quantises them
        return value
    return round_int8(value) if kind == "int8" else round_int4(value)


def _round_symmetric(rows: Matrix, steps: int) -> Matrix:
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(steps)
    scales[scales == 0] = 1
    rounded: Matrix = np.rint(rows / scales) * scales
    return rounded
