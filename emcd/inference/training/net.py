"""The decoder's loss and its gradients in numpy, written by hand.

Owns the forward and backward pass of one batch without padding or cache. Invariants: the same net as
`decoder_graph.build_decoder` gives (a test compares both), with a tied head; gradients are added to the
arrays that the caller gives, so that shards of a batch can run in threads of their own. Shapes in the
comments: B texts, T places, N = B * T, H heads of width D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emcd.inference.decoder_graph import EMBEDDING, FINAL_NORM, DecoderShape, layer_name, rotation_tables
from emcd.inference.weights import Tensors

Array = NDArray[Any]


@dataclass
class _Norm:
    """RMSNorm of [N, hidden] and what its backward pass needs."""

    name: str
    scale: Array
    normal: Array
    inverse: Array

    @property
    def out(self) -> Array:
        return self.normal * self.scale

    def backward(self, gradient: Array, gradients: Tensors) -> Array:
        gradients[self.name] += np.einsum("nh,nh->h", gradient, self.normal)
        inner = gradient * self.scale
        share = np.einsum("nh,nh->n", inner, self.normal)[:, None] / inner.shape[1]
        inner -= self.normal * share
        inner *= self.inverse
        return inner


@dataclass
class _Attention:
    """What one layer's attention keeps for its backward pass; q, k, v [B, H, T, D], share [B, H, T, T]."""

    x: Array
    q: Array
    k: Array
    v: Array
    share: Array
    joined: Array


@dataclass
class _Ffn:
    x: Array
    gate: Array
    sigmoid: Array
    up: Array
    mixed: Array


@dataclass
class _Layer:
    first: _Norm
    attention: _Attention
    second: _Norm
    ffn: _Ffn


@dataclass
class Net:
    """One set of weights; `add_gradients` may run in several threads, each with gradients of its own."""

    tensors: Tensors
    shape: DecoderShape
    _cos: Array = field(init=False)
    _sin: Array = field(init=False)

    def __post_init__(self) -> None:
        dtype = self.tensors[EMBEDDING].dtype
        self._cos, self._sin = (table.astype(dtype) for table in rotation_tables(self.shape))

    def compute_loss(self, tokens: NDArray[np.int64]) -> float:
        """Mean nats per token; tokens int64 [B, T + 1]."""
        final, _ = self._forward(tokens[:, :-1])
        logits = final.out @ self.tensors[EMBEDDING].T
        loss, _ = _cross_entropy(logits, tokens[:, 1:].reshape(-1))
        return loss

    def add_gradients(self, tokens: NDArray[np.int64], gradients: Tensors) -> float:
        """The loss of tokens int64 [B, T + 1]; its gradients are added to `gradients`."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
        final, layers = self._forward(inputs)
        out, table = final.out, self.tensors[EMBEDDING]
        loss, slope = _cross_entropy(out @ table.T, targets)
        gradients[EMBEDDING] += slope.T @ out
        gradient = final.backward(slope @ table, gradients)
        for index in reversed(range(self.shape.layers)):
            layer = layers[index]
            inner = self._ffn_backward(gradient, layer.ffn, index, gradients)
            gradient = gradient + layer.second.backward(inner, gradients)
            inner = self._attention_backward(gradient, layer.attention, index, gradients)
            gradient = gradient + layer.first.backward(inner, gradients)
        np.add.at(gradients[EMBEDDING], inputs.reshape(-1), gradient)
        return loss

    def _forward(self, inputs: NDArray[np.int64]) -> tuple[_Norm, list[_Layer]]:
        texts, places = inputs.shape
        x = self.tensors[EMBEDDING][inputs.reshape(-1)]
        layers = []
        for index in range(self.shape.layers):
            name = layer_name(index)
            first = self._norm(x, f"{name}.input_layernorm.weight")
            added, attention = self._attend(first.out, index, texts, places)
            x = x + added
            second = self._norm(x, f"{name}.post_attention_layernorm.weight")
            added, ffn = self._feed(second.out, index)
            x = x + added
            layers.append(_Layer(first, attention, second, ffn))
        return self._norm(x, FINAL_NORM), layers

    def _norm(self, x: Array, name: str) -> _Norm:
        square = np.einsum("nh,nh->n", x, x)[:, None] / x.shape[1]
        inverse = 1 / np.sqrt(square + x.dtype.type(self.shape.epsilon))
        return _Norm(name, self.tensors[name], x * inverse, inverse)

    def _attend(self, x: Array, index: int, texts: int, places: int) -> tuple[Array, _Attention]:
        shape, name = self.shape, f"{layer_name(index)}.self_attn"

        def split(part: str, heads: int) -> Array:
            y = x @ self.tensors[f"{name}.{part}_proj.weight"].T
            return y.reshape(texts, places, heads, shape.head_dim).transpose(0, 2, 1, 3)

        shared = shape.heads // shape.kv_heads
        q = self._rotate(split("q", shape.heads))
        k = np.repeat(self._rotate(split("k", shape.kv_heads)), shared, axis=1)
        v = np.repeat(split("v", shape.kv_heads), shared, axis=1)
        q *= q.dtype.type(1 / math.sqrt(shape.head_dim))
        share = q @ k.transpose(0, 1, 3, 2)
        share += np.triu(np.full((places, places), -1e4, share.dtype), 1)
        share -= share.max(axis=-1, keepdims=True)
        np.exp(share, out=share)
        share /= share.sum(axis=-1, keepdims=True)
        joined = (share @ v).transpose(0, 2, 1, 3).reshape(texts * places, shape.hidden)
        added = joined @ self.tensors[f"{name}.o_proj.weight"].T
        return added, _Attention(x, q, k, v, share, joined)

    def _attention_backward(self, gradient: Array, kept: _Attention, index: int, gradients: Tensors) -> Array:
        shape, name = self.shape, f"{layer_name(index)}.self_attn"
        texts, heads, places, width = kept.q.shape
        shared, kv_heads = heads // shape.kv_heads, shape.kv_heads
        gradients[f"{name}.o_proj.weight"] += gradient.T @ kept.joined
        outer = gradient @ self.tensors[f"{name}.o_proj.weight"]
        row = np.einsum("nhd,nhd->nh", *(y.reshape(-1, heads, width) for y in (outer, kept.joined)))
        row = row.reshape(texts, places, heads).transpose(0, 2, 1)[..., None]
        outer = outer.reshape(texts, places, heads, width).transpose(0, 2, 1, 3)
        dv = kept.share.transpose(0, 1, 3, 2) @ outer
        scores = outer @ kept.v.transpose(0, 1, 3, 2)
        scores -= row
        scores *= kept.share
        dk = scores.transpose(0, 1, 3, 2) @ kept.q
        dq = scores @ kept.k
        dq *= dq.dtype.type(1 / math.sqrt(width))
        dk, dv = (y.reshape(texts, kv_heads, shared, places, width).sum(axis=2) for y in (dk, dv))
        inner = np.zeros_like(kept.x)
        for part, slope in (("q", self._rotate(dq, -1)), ("k", self._rotate(dk, -1)), ("v", dv)):
            flat = slope.transpose(0, 2, 1, 3).reshape(texts * places, -1)
            weight = f"{name}.{part}_proj.weight"
            gradients[weight] += flat.T @ kept.x
            inner += flat @ self.tensors[weight]
        return inner

    def _rotate(self, x: Array, direction: int = 1) -> Array:
        places, half = x.shape[2], x.shape[3] // 2
        cos, sin = self._cos[:places], self._sin[:places] * x.dtype.type(direction)
        left, right = x[..., :half], x[..., half:]
        out = np.empty(x.shape, x.dtype)
        np.subtract(left * cos, right * sin, out=out[..., :half])
        np.add(right * cos, left * sin, out=out[..., half:])
        return out

    def _feed(self, x: Array, index: int) -> tuple[Array, _Ffn]:
        name = f"{layer_name(index)}.mlp"
        gate = x @ self.tensors[f"{name}.gate_proj.weight"].T
        up = x @ self.tensors[f"{name}.up_proj.weight"].T
        sigmoid = 1 / (1 + np.exp(-gate))
        mixed = gate * sigmoid
        mixed *= up
        return mixed @ self.tensors[f"{name}.down_proj.weight"].T, _Ffn(x, gate, sigmoid, up, mixed)

    def _ffn_backward(self, gradient: Array, kept: _Ffn, index: int, gradients: Tensors) -> Array:
        name = f"{layer_name(index)}.mlp"
        gradients[f"{name}.down_proj.weight"] += gradient.T @ kept.mixed
        mixed = gradient @ self.tensors[f"{name}.down_proj.weight"]
        silu = kept.gate * kept.sigmoid
        up = mixed * silu
        # d silu / d gate = s + silu (1 - s)
        gate = mixed * kept.up
        gate *= kept.sigmoid + silu * (1 - kept.sigmoid)
        gradients[f"{name}.up_proj.weight"] += up.T @ kept.x
        gradients[f"{name}.gate_proj.weight"] += gate.T @ kept.x
        inner: Array = up @ self.tensors[f"{name}.up_proj.weight"]
        inner += gate @ self.tensors[f"{name}.gate_proj.weight"]
        return inner


def _cross_entropy(logits: Array, targets: NDArray[np.int64]) -> tuple[float, Array]:
    """Mean loss in nats, and its slope by the logits (which are overwritten)."""
    rows = np.arange(len(targets))
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[rows, targets].astype(np.float64)
    np.exp(logits, out=logits)
    totals = logits.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(totals[:, 0].astype(np.float64)) - chosen))
    logits /= totals
    logits[rows, targets] -= 1
    logits /= len(targets)
    return loss, logits
