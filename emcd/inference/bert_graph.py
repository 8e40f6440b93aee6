"""A BERT encoder with mean pooling as an ONNX graph, written node by node.

Owns the graph alone: tensors in, ModelProto out; no files. Standard operators only (opset 17):
onnxruntime fuses them by itself, and contrib operators measured no faster on CPU. Inputs
`input_ids` and `attention_mask`, int64 [batch, seq]; output `embedding`, float32
[batch, hidden], of length 1. Padding is masked by -10000 before the softmax, whose exp is then
exactly 0 in fp32. Source: BERT (arXiv 1810.04805), gelu with erf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, helper

from emcd.inference.graph_builder import GraphBuilder
from emcd.inference.weights import Tensors

_MASKED = -10000.0


@dataclass(frozen=True)
class BertShape:
    """Sizes that the tensors do not say themselves."""

    layers: int
    heads: int
    hidden: int
    epsilon: float = 1e-12


@dataclass
class _Builder(GraphBuilder):
    """A graph of one shape, with the parts that a BERT is made of."""

    shape: BertShape = field(kw_only=True)

    def linear(self, x: str, name: str) -> str:
        return self.op("Add", [self.project(x, f"{name}.weight"), self.weight(f"{name}.bias")])

    def layer_norm(self, x: str, name: str) -> str:
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.op("LayerNormalization", inputs, axis=-1, epsilon=self.shape.epsilon)

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", [self.op("Div", [x, self.scalar(math.sqrt(2))])])
        doubled = self.op("Mul", [x, self.op("Add", [erf, self.scalar(1.0)])])
        return self.op("Mul", [doubled, self.scalar(0.5)])


def build_bert(tensors: Tensors, shape: BertShape) -> onnx.ModelProto:
    """The encoder of these tensors. Raises: KeyError when one is missing."""
    graph = _Builder(tensors, shape=shape)
    mask = graph.op("Cast", ["attention_mask"], to=TensorProto.FLOAT)
    x = _embed(graph)
    bias = _attention_bias(graph, mask)
    for layer in range(shape.layers):
        x = _encode_layer(graph, x, bias, f"encoder.layer.{layer}")
    _pool(graph, x, mask)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", shape.hidden])
    return graph.finish("bert", inputs, [output])


def _embed(graph: _Builder) -> str:
    tensors = graph.tensors
    # Texts have one segment, so its row can join the position table once and for all.
    table = (
        tensors["embeddings.position_embeddings.weight"]
        + tensors["embeddings.token_type_embeddings.weight"][0]
    )
    length = graph.op("Slice", [graph.op("Shape", ["input_ids"]), graph.ints(1), graph.ints(2)])
    positions = graph.op("Slice", [graph.const("positions", table), graph.ints(0), length])
    words = graph.op("Gather", [graph.weight("embeddings.word_embeddings.weight"), "input_ids"])
    return graph.layer_norm(graph.op("Add", [words, positions]), "embeddings.LayerNorm")


def _attention_bias(graph: _Builder, mask: str) -> str:
    spread = graph.op("Unsqueeze", [mask, graph.ints(1, 2)])
    return graph.op("Mul", [graph.op("Sub", [graph.scalar(1.0), spread]), graph.scalar(_MASKED)])


def _encode_layer(graph: _Builder, x: str, bias: str, name: str) -> str:
    attended = graph.linear(
        _attend(graph, x, bias, f"{name}.attention.self"), f"{name}.attention.output.dense"
    )
    x = graph.layer_norm(graph.op("Add", [x, attended]), f"{name}.attention.output.LayerNorm")
    inner = graph.gelu(graph.linear(x, f"{name}.intermediate.dense"))
    return graph.layer_norm(
        graph.op("Add", [x, graph.linear(inner, f"{name}.output.dense")]), f"{name}.output.LayerNorm"
    )


def _attend(graph: _Builder, x: str, bias: str, name: str) -> str:
    shape = graph.shape
    width = shape.hidden // shape.heads
    split = graph.ints(0, 0, shape.heads, width)

    def heads(part: str, perm: list[int]) -> str:
        return graph.op(
            "Transpose", [graph.op("Reshape", [graph.linear(x, f"{name}.{part}"), split])], perm=perm
        )

    query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
    scores = graph.op("Mul", [graph.op("MatMul", [query, key]), graph.scalar(1 / math.sqrt(width))])
    weights = graph.op("Softmax", [graph.op("Add", [scores, bias])], axis=-1)
    joined = graph.op("Transpose", [graph.op("MatMul", [weights, value])], perm=[0, 2, 1, 3])
    return graph.op("Reshape", [joined, graph.ints(0, 0, shape.hidden)])


def _pool(graph: _Builder, x: str, mask: str) -> None:
    # The sum over tokens points where their mean does: dividing by the count would cancel below.
    masked = graph.op("Mul", [x, graph.op("Unsqueeze", [mask, graph.ints(2)])])
    total = graph.op("ReduceSum", [masked, graph.ints(1)], keepdims=0)
    graph.op("Div", [total, graph.op("ReduceL2", [total], axes=[1], keepdims=1)], "embedding")
