"""ONNX graphs written node by node: the pieces that every graph of ours is made of.

Owns names and constants; no files. Invariants: a node's output has a name of its own; a constant of
one name stands in the graph once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from emcd.inference.weights import Tensors

OPSET = 17
IR_VERSION = 8


@dataclass
class GraphBuilder:
    """Nodes and initialisers in order; every tensor gets a name once."""

    tensors: Tensors
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def const(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        return self.const("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.const(f"float_{value!r}", np.array(value, np.float32))

    def op(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        name = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str) -> str:
        return self.const(name, self.tensors[name])

    def project(self, x: str, name: str) -> str:
        """x @ W.T: safetensors has W as [out, in], MatMul wants [in, out]."""
        return self.op("MatMul", [x, self.const(name, self.tensors[name].T)])

    def finish(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The model of everything written so far."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.constants.values()))
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="emcd"
        )
