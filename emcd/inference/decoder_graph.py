"""A Llama-like decoder with a KV cache as an ONNX graph: one graph for prefill and for decoding.

Owns the graph alone: tensors in, ModelProto out; no files. Standard operators only (opset 17). Tensor
names and layouts are those of Hugging Face's Llama, inputs and outputs those of its ONNX exports:
`input_ids`, `position_ids` int64 [batch, seq], `attention_mask` int64 [batch, past + seq],
`past_key_values.{i}.key|value` float32 [batch, kv_heads, past, head_dim]; `logits` float32
[batch, seq, vocab], `present.{i}.key|value` float32 [batch, kv_heads, past + seq, head_dim].

Invariants: a place whose mask is 0 is never looked at, wherever it stands (its score is lowered by
10000, whose exp is exactly 0 in fp32), so texts of one batch may be padded on either side; who sees
whom follows from the place in the cache, the rotation from `position_ids` alone.
Source: Llama 2 (arXiv 2307.09288), RoPE (arXiv 2104.09864) with halves rotated, RMSNorm (arXiv 1910.07467).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from emcd.inference.graph_builder import GraphBuilder
from emcd.inference.weights import Tensors

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
_MASKED = -10000.0
_INITIAL_SD = 0.06


@dataclass(frozen=True)
class DecoderShape:
    """Sizes that the tensors do not all say themselves.

    Args:
        kv_heads: heads of keys and values, each shared by `heads / kv_heads` query heads.
        context: positions that the rotation table has.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float = 10000.0
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not fit {self.hidden} wide, {self.kv_heads} kv heads")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def layer_name(index: int) -> str:
    """What the tensor names of a layer begin with."""
    return f"model.layers.{index}"


def list_tensor_shapes(shape: DecoderShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of a tied decoder, in the order of the graph."""
    wide, kv_wide = shape.hidden, shape.kv_heads * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, wide)}
    for index in range(shape.layers):
        shapes |= {
            f"{layer_name(index)}.{name}.weight": size
            for name, size in {
                "input_layernorm": (wide,),
                "self_attn.q_proj": (wide, wide),
                "self_attn.k_proj": (kv_wide, wide),
                "self_attn.v_proj": (kv_wide, wide),
                "self_attn.o_proj": (wide, wide),
                "post_attention_layernorm": (wide,),
                "mlp.gate_proj": (shape.ffn, wide),
                "mlp.up_proj": (shape.ffn, wide),
                "mlp.down_proj": (wide, shape.ffn),
            }.items()
        }
    return shapes | {FINAL_NORM: (wide,)}


def random_tensors(shape: DecoderShape, seed: int) -> Tensors:
    """Untrained weights, the same for the same seed: norms of 1, the rest normal, what closes a residual smaller."""
    draw = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, size in list_tensor_shapes(shape).items():
        if len(size) == 1:
            tensors[name] = np.ones(size, np.float32)
            continue
        closes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        deviation = _INITIAL_SD / math.sqrt(2 * shape.layers) if closes_residual else _INITIAL_SD
        tensors[name] = draw.standard_normal(size, np.float32) * np.float32(deviation)
    return tensors


def rotation_tables(shape: DecoderShape) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 [context, head_dim / 2]; angles are rounded to fp32 as in other engines."""
    width = shape.head_dim
    rates = (1.0 / shape.rope_theta ** (np.arange(0, width, 2) / width)).astype(np.float32)
    angles = np.arange(shape.context, dtype=np.float32)[:, None] * rates
    return np.cos(angles), np.sin(angles)


def read_tensors(model: onnx.ModelProto | Path) -> Tensors:
    """The tensors that a graph of `build_decoder` was made of, [out, in] again."""
    proto = onnx.load(model) if isinstance(model, Path) else model
    tensors: Tensors = {}
    for constant in proto.graph.initializer:
        if constant.name.endswith(".weight"):
            value = numpy_helper.to_array(constant)
            is_projection = value.ndim == 2 and constant.name != EMBEDDING
            tensors[constant.name] = np.ascontiguousarray(value.T if is_projection else value)
    return tensors


def build_decoder(tensors: Tensors, shape: DecoderShape) -> onnx.ModelProto:
    """The decoder of these tensors; without a head of its own the embedding serves. Raises: KeyError."""
    decoder = _Decoder(GraphBuilder(tensors), shape)
    graph = decoder.graph
    decoder.open()
    x = graph.op("Gather", [graph.weight(EMBEDDING), "input_ids"])
    for index in range(shape.layers):
        x = decoder.layer(x, index)
    x = decoder.norm(x, FINAL_NORM)
    head = graph.const(HEAD, tensors[HEAD if HEAD in tensors else EMBEDDING].T)
    graph.op("MatMul", [x, head], "logits")
    cache: list[str | int | None] = ["batch", shape.kv_heads, "past", shape.head_dim]
    grown: list[str | int | None] = ["batch", shape.kv_heads, "total", shape.head_dim]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "seq"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "seq", shape.vocab])]
    for index in range(shape.layers):
        for part in ("key", "value"):
            name = f"{index}.{part}"
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{name}", TensorProto.FLOAT, cache))
            outputs.append(helper.make_tensor_value_info(f"present.{name}", TensorProto.FLOAT, grown))
    return graph.finish("decoder", inputs, outputs)


@dataclass
class _Decoder:
    """The parts of one decoder; `open` first writes what all layers share."""

    graph: GraphBuilder
    shape: DecoderShape
    cos: str = ""
    sin: str = ""
    bias: str = ""

    def open(self) -> None:
        graph = self.graph
        cos, sin = rotation_tables(self.shape)
        # [batch, seq, half] gets a place for the heads: [batch, 1, seq, half].
        rows = [
            graph.op("Gather", [graph.const(name, table), "position_ids"])
            for name, table in (("cos", cos), ("sin", sin))
        ]
        self.cos, self.sin = (graph.op("Unsqueeze", [row, graph.ints(1)]) for row in rows)
        self.bias = self._bias()

    def _bias(self) -> str:
        """0 where a query may look and -10000 elsewhere, [batch, 1, seq, total]."""
        graph = self.graph
        total = graph.op("Slice", [graph.op("Shape", ["attention_mask"]), graph.ints(1), graph.ints(2)])
        seq = graph.op("Slice", [graph.op("Shape", ["input_ids"]), graph.ints(1), graph.ints(2)])
        zero, one = graph.const("int_0", np.array(0, np.int64)), graph.const("int_1", np.array(1, np.int64))
        keys = graph.op("Range", [zero, graph.op("Squeeze", [total]), one])
        own = graph.op("Slice", [keys, graph.op("Sub", [total, seq]), total])
        is_later = graph.op("Greater", [keys, graph.op("Unsqueeze", [own, graph.ints(1)])])
        is_pad = graph.op("Equal", ["attention_mask", zero])
        hidden = graph.op("Or", [is_later, graph.op("Unsqueeze", [is_pad, graph.ints(1, 2)])])
        return graph.op("Where", [hidden, graph.scalar(_MASKED), graph.scalar(0.0)])

    def layer(self, x: str, index: int) -> str:
        graph, name = self.graph, layer_name(index)
        attended = self._attend(self.norm(x, f"{name}.input_layernorm.weight"), index)
        x = graph.op("Add", [x, graph.project(attended, f"{name}.self_attn.o_proj.weight")])
        inner = self.norm(x, f"{name}.post_attention_layernorm.weight")
        gate = graph.project(inner, f"{name}.mlp.gate_proj.weight")
        silu = graph.op("Mul", [gate, graph.op("Sigmoid", [gate])])
        mixed = graph.op("Mul", [silu, graph.project(inner, f"{name}.mlp.up_proj.weight")])
        return graph.op("Add", [x, graph.project(mixed, f"{name}.mlp.down_proj.weight")])

    def norm(self, x: str, name: str) -> str:
        graph = self.graph
        square = graph.op("ReduceMean", [graph.op("Mul", [x, x])], axes=[-1], keepdims=1)
        size = graph.op("Sqrt", [graph.op("Add", [square, graph.scalar(self.shape.epsilon)])])
        return graph.op("Mul", [graph.op("Div", [x, size]), graph.weight(name)])

    def _attend(self, x: str, index: int) -> str:
        graph, shape, name = self.graph, self.shape, f"{layer_name(index)}.self_attn"
        query = self._rotate(self._split(x, f"{name}.q_proj.weight", shape.heads))
        key = self._grow(
            self._rotate(self._split(x, f"{name}.k_proj.weight", shape.kv_heads)), f"{index}.key"
        )
        value = self._grow(self._split(x, f"{name}.v_proj.weight", shape.kv_heads), f"{index}.value")
        key, value = self._share(key), self._share(value)
        turned = graph.op("Transpose", [key], perm=[0, 1, 3, 2])
        scores = graph.op(
            "Mul", [graph.op("MatMul", [query, turned]), graph.scalar(1 / math.sqrt(shape.head_dim))]
        )
        weights = graph.op("Softmax", [graph.op("Add", [scores, self.bias])], axis=-1)
        joined = graph.op("Transpose", [graph.op("MatMul", [weights, value])], perm=[0, 2, 1, 3])
        return graph.op("Reshape", [joined, graph.ints(0, 0, shape.hidden)])

    def _split(self, x: str, name: str, heads: int) -> str:
        graph = self.graph
        split = graph.op("Reshape", [graph.project(x, name), graph.ints(0, 0, heads, self.shape.head_dim)])
        return graph.op("Transpose", [split], perm=[0, 2, 1, 3])

    def _rotate(self, x: str) -> str:
        graph, half, width = self.graph, self.shape.head_dim // 2, self.shape.head_dim
        left = graph.op("Slice", [x, graph.ints(0), graph.ints(half), graph.ints(3)])
        right = graph.op("Slice", [x, graph.ints(half), graph.ints(width), graph.ints(3)])

        def times(part: str, table: str) -> str:
            return graph.op("Mul", [part, table])

        turned_left = graph.op("Sub", [times(left, self.cos), times(right, self.sin)])
        turned_right = graph.op("Add", [times(right, self.cos), times(left, self.sin)])
        return graph.op("Concat", [turned_left, turned_right], axis=3)

    def _grow(self, x: str, name: str) -> str:
        return self.graph.op("Concat", [f"past_key_values.{name}", x], f"present.{name}", axis=2)

    def _share(self, x: str) -> str:
        """[batch, kv_heads, total, head_dim] as [batch, heads, total, head_dim], each head repeated in place."""
        graph, shape = self.graph, self.shape
        times = shape.heads // shape.kv_heads
        if times == 1:
            return x
        spread = graph.op(
            "Expand", [graph.op("Unsqueeze", [x, graph.ints(2)]), graph.ints(1, 1, times, 1, 1)]
        )
        return graph.op("Reshape", [spread, graph.ints(0, shape.heads, -1, shape.head_dim)])
