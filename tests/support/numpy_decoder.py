"""A Llama-like forward pass in plain numpy, written from the papers: the judge of the ONNX graph.

One text at a time, no cache, no padding, float64 throughout: whatever differs by more than rounding is a
fault of the other side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emcd.inference.decoder_graph import DecoderShape
from emcd.inference.weights import Tensors


def compute_logits(tensors: Tensors, shape: DecoderShape, tokens: Sequence[int]) -> NDArray[np.float64]:
    """float64 [len(tokens), vocab]."""
    weights = {name: value.astype(np.float64) for name, value in tensors.items()}
    x = weights["model.embed_tokens.weight"][list(tokens)]
    for index in range(shape.layers):
        layer = {
            name.removeprefix(f"model.layers.{index}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{index}.")
        }
        x = x + _attention(_rms(x, layer["input_layernorm.weight"], shape.epsilon), layer, shape)
        inner = _rms(x, layer["post_attention_layernorm.weight"], shape.epsilon)
        gate = inner @ layer["mlp.gate_proj.weight"].T
        up = inner @ layer["mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp.down_proj.weight"].T
    x = _rms(x, weights["model.norm.weight"], shape.epsilon)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    logits: NDArray[np.float64] = x @ head.T
    return logits


def _rms(x: NDArray[np.float64], scale: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    out: NDArray[np.float64] = x * scale / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return out


def _attention(x: NDArray[np.float64], layer: Tensors, shape: DecoderShape) -> NDArray[np.float64]:
    width, shared = shape.head_dim, shape.heads // shape.kv_heads
    joined = np.zeros((len(x), shape.hidden))
    for head in range(shape.heads):
        own = slice(head * width, (head + 1) * width)
        other = slice(head // shared * width, (head // shared + 1) * width)
        query = _turn(x @ layer["self_attn.q_proj.weight"][own].T, shape.rope_theta)
        key = _turn(x @ layer["self_attn.k_proj.weight"][other].T, shape.rope_theta)
        value = x @ layer["self_attn.v_proj.weight"][other].T
        for place in range(len(x)):
            scores = key[: place + 1] @ query[place] / np.sqrt(width)
            share = np.exp(scores - scores.max())
            joined[place, own] = share / share.sum() @ value[: place + 1]
    out: NDArray[np.float64] = joined @ layer["self_attn.o_proj.weight"].T
    return out


def _turn(x: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
    """Dimension j and j + half are the two coordinates of a plane that turns by place * theta^(-2j/width)."""
    half = x.shape[1] // 2
    planes = x[:, :half] + 1j * x[:, half:]
    angles = np.outer(np.arange(len(x)), theta ** (-np.arange(half) / half))
    turned = planes * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)
