"""The graph against a second implementation of BERT, on a small random net."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from emcd.inference.bert_graph import BertShape, build_bert
from emcd.inference.weights import Tensors

SHAPE = BertShape(layers=2, heads=3, hidden=12)
Array = NDArray[Any]


def _tensors() -> Tensors:
    rng = np.random.default_rng(7)
    hidden, inner = SHAPE.hidden, 20
    sizes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (50, hidden),
        "embeddings.position_embeddings.weight": (16, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(SHAPE.layers):
        name = f"encoder.layer.{layer}"
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
        squares = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        for linear in [*squares, f"{name}.attention.output.dense"]:
            sizes |= {f"{linear}.weight": (hidden, hidden), f"{linear}.bias": (hidden,)}
        sizes |= {
            f"{name}.intermediate.dense.weight": (inner, hidden),
            f"{name}.intermediate.dense.bias": (inner,),
        }
        sizes |= {f"{name}.output.dense.weight": (hidden, inner), f"{name}.output.dense.bias": (hidden,)}
    for norm in norms:
        sizes |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    return {name: rng.normal(0, 0.7, size).astype(np.float32) for name, size in sizes.items()}


def _norm(x: Array, t: Tensors, name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return np.asarray(scaled * t[f"{name}.weight"] + t[f"{name}.bias"])


def _linear(x: Array, t: Tensors, name: str) -> Array:
    return np.asarray(x @ t[f"{name}.weight"].T.astype(np.float64) + t[f"{name}.bias"])


def _reference(t: Tensors, ids: list[int]) -> Array:
    """BERT for one text without padding, in float64."""
    width = SHAPE.hidden // SHAPE.heads
    x = t["embeddings.word_embeddings.weight"][ids].astype(np.float64)
    x = (
        x
        + t["embeddings.position_embeddings.weight"][: len(ids)]
        + t["embeddings.token_type_embeddings.weight"][0]
    )
    x = _norm(x, t, "embeddings.LayerNorm")
    for layer in range(SHAPE.layers):
        name = f"encoder.layer.{layer}"
        q, k, v = (_linear(x, t, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for head in range(SHAPE.heads):
            cut = slice(head * width, (head + 1) * width)
            scores = q[:, cut] @ k[:, cut].T / math.sqrt(width)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, cut])
        attended = _linear(np.concatenate(heads, -1), t, f"{name}.attention.output.dense")
        x = _norm(x + attended, t, f"{name}.attention.output.LayerNorm")
        inner = _linear(x, t, f"{name}.intermediate.dense")
        inner = 0.5 * inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = _norm(x + _linear(inner, t, f"{name}.output.dense"), t, f"{name}.output.LayerNorm")
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


def test_build_bert_agrees_with_a_second_implementation_also_when_padded() -> None:
    tensors = _tensors()
    model = build_bert(tensors, SHAPE)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    texts = [[1, 2, 3, 4, 5], [9], [30, 2, 49]]
    ids, mask = np.full((3, 5), 17, np.int64), np.zeros((3, 5), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    vectors = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    assert vectors.dtype == np.float32
    for vector, text in zip(vectors, texts, strict=True):
        assert np.linalg.norm(vector - _reference(tensors, text)) < 2e-6


def test_build_bert_interface_is_as_documented() -> None:
    model = build_bert(_tensors(), SHAPE)
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in model.graph.output] == ["embedding"]
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 17)]


def test_build_bert_is_reproducible() -> None:
    assert (
        build_bert(_tensors(), SHAPE).SerializeToString() == build_bert(_tensors(), SHAPE).SerializeToString()
    )


def test_build_bert_missing_tensor_is_named() -> None:
    tensors = _tensors()
    del tensors["encoder.layer.1.output.dense.bias"]
    with pytest.raises(KeyError, match=r"layer\.1\.output"):
        build_bert(tensors, SHAPE)
