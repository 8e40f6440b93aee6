"""Cheaper copies of any ONNX graph: the known cheats that a threshold must catch.

Owns files that its caller has asked for. Weights are rounded where they stand, matrix by matrix; the graph
stays as it is, so that every export can be cheapened whatever its layers look like. Blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from emcd.inference.variant import (
    INT4_GROUP,
    quantise_dynamic,
    round_bf16,
    round_int4,
    round_int8,
)

Cheat = Literal[
    "int8-one-matrix", "int8-weights", "int8-dynamic", "int4-group-32", "prune-10", "bf16-weights"
]
CHEATS: Final[tuple[Cheat, ...]] = (
    "int8-one-matrix",
    "int8-weights",
    "int8-dynamic",
    "int4-group-32",
    "prune-10",
    "bf16-weights",
)
WORDS: Final[dict[Cheat, str]] = {
    "int8-one-matrix": "int8 weights in one matrix",
    "int8-weights": "int8 weights in all matrices",
    "int8-dynamic": "dynamic int8",
    "int4-group-32": "int4 weights, groups of 32",
    "prune-10": "the least 10 % of the weights set to 0",
    "bf16-weights": "weights rounded to bf16",
}
_LEAST_SIDE = 32
_PRUNED_SHARE = 0.1


def write_cheaper_graph(source: Path, target: Path, cheat: Cheat) -> None:
    """A copy of a graph that computes something cheaper; its weights lie beside it where they are large."""
    if cheat == "int8-dynamic":
        quantise_dynamic(source, target)
        return
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(source)
    turned = _list_turned(model.graph)
    left = 1 if cheat == "int8-one-matrix" else len(model.graph.initializer)
    for tensor in model.graph.initializer:
        is_matrix = len(tensor.dims) == 2 and min(tensor.dims) >= _LEAST_SIDE
        if not is_matrix or tensor.data_type != TensorProto.FLOAT or left == 0:
            continue
        if cheat == "int8-one-matrix" and tensor.name not in turned:
            continue
        weight = numpy_helper.to_array(tensor)
        rounded = _round(weight.T, cheat).T if tensor.name in turned else _round(weight, cheat)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rounded, np.float32), tensor.name))
        left -= 1
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}_data")


def _list_turned(graph: Any) -> frozenset[str]:
    """The matrices that stand as [in, out]: what a MatMul multiplies with."""
    return frozenset(node.input[1] for node in graph.node if node.op_type == "MatMul")


def _round(weight: NDArray[np.float32], cheat: Cheat) -> NDArray[np.float32]:
    if cheat == "bf16-weights":
        return round_bf16(weight)
    if cheat == "prune-10":
        least = np.quantile(np.abs(weight), _PRUNED_SHARE)
        return np.where(np.abs(weight) <= least, np.float32(0), weight)
    if cheat == "int4-group-32" and weight.shape[1] % INT4_GROUP == 0:
        return round_int4(np.ascontiguousarray(weight))
    return round_int8(np.ascontiguousarray(weight))
