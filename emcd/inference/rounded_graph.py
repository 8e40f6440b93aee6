"""A graph with its weights rounded to a lower numeric class: how far an honest node of it may stray.

Owns a temporary copy, removed when the block ends. Only fp32 initializers are rounded: a graph that
stores its weights in the class already is run as it is. Blocks: call it in a thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emcd.accounting.verdict import NumericClass
from emcd.inference.manifest import GRAPH_FILE

_BF16_BITS = 16


@contextmanager
def rounded_graph(source: Path, numeric_class: NumericClass) -> Iterator[Path | None]:
    """The path of a copy of the graph with rounded weights; None for fp32, where nothing is rounded."""
    if numeric_class is NumericClass.FP32:
        yield None
        return
    import onnx  # slow to import, and rarely needed
    from onnx import TensorProto, numpy_helper

    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            rounded = round_to_class(numpy_helper.to_array(tensor), numeric_class)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    with tempfile.TemporaryDirectory(prefix="emcd-rounded-") as folder:
        target = Path(folder) / GRAPH_FILE
        onnx.save(model, target, save_as_external_data=True, location=f"{GRAPH_FILE}_data")
        del model
        yield target


def round_to_class(values: NDArray[np.float32], numeric_class: NumericClass) -> NDArray[np.float32]:
    """The nearest numbers of the class, ties to even, as float32; beyond the range of fp16: its end."""
    if numeric_class is NumericClass.FP16:
        most = np.finfo(np.float16).max
        return np.clip(values, -most, most).astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + ((bits >> _BF16_BITS) & np.uint32(1))
    return (nearest & np.uint32(0xFFFF0000)).view(np.float32)
