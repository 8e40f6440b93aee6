"""The decoder's graph against a forward pass in plain numpy: whole, step by step, padded on either side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from emcd.inference.decoder_graph import (
    EMBEDDING,
    HEAD,
    DecoderShape,
    build_decoder,
    list_tensor_shapes,
    random_tensors,
    read_tensors,
)
from emcd.inference.weights import Tensors
from tests.support.numpy_decoder import compute_logits

SHAPE = DecoderShape(layers=3, hidden=48, heads=6, kv_heads=2, ffn=80, vocab=90, context=64)
NOISE = 3e-5
Array = NDArray[np.float32]


def widened(shape: DecoderShape, seed: int) -> Tensors:
    """Weights large enough that every part of the graph moves the logits."""
    draw = np.random.default_rng(seed)
    return {
        name: (1 + draw.standard_normal(value.shape) / 5).astype(np.float32) if value.ndim == 1 else value * 4
        for name, value in random_tensors(shape, seed).items()
    }


class Runner:
    """A session and its cache."""

    def __init__(self, tensors: Tensors, shape: DecoderShape, level: int = 99) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel(level)
        options.intra_op_num_threads = 1
        proto = build_decoder(tensors, shape).SerializeToString()
        self.shape, self.cache = shape, list[Array]()
        self.session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])

    def run(self, ids: list[list[int]], mask: list[list[int]], places: list[list[int]]) -> Array:
        if not self.cache:
            empty = np.zeros((len(ids), self.shape.kv_heads, 0, self.shape.head_dim), np.float32)
            self.cache = [empty] * (2 * self.shape.layers)
        feeds = {
            "input_ids": np.array(ids, np.int64),
            "attention_mask": np.array(mask, np.int64),
            "position_ids": np.array(places, np.int64),
        }
        for index in range(self.shape.layers):
            feeds[f"past_key_values.{index}.key"] = self.cache[2 * index]
            feeds[f"past_key_values.{index}.value"] = self.cache[2 * index + 1]
        logits, *self.cache = self.session.run(None, feeds)
        return logits

    def prefill(self, tokens: list[int]) -> Array:
        count = len(tokens)
        return self.run([tokens], [[1] * count], [list(range(count))])[0]


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, SHAPE.vocab, count).tolist()


@pytest.mark.parametrize("level", [0, 1, 2, 99])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_decoder_prefill_equals_plain_numpy(level: int, kv_heads: int) -> None:
    shape = replace(SHAPE, kv_heads=kv_heads)
    tensors, tokens = widened(shape, 3), some_tokens(40)
    expected = compute_logits(tensors, shape, tokens)
    assert np.abs(expected).max() > 1, "the weights must move the logits"
    np.testing.assert_allclose(Runner(tensors, shape, level).prefill(tokens), expected, atol=NOISE)


def test_decoder_step_by_step_equals_prefill() -> None:
    tensors, tokens = widened(SHAPE, 4), some_tokens(30, 1)
    runner = Runner(tensors, SHAPE)
    rows = [runner.run([tokens[:7]], [[1] * 7], [list(range(7))])[0]]
    rows += [
        runner.run([[token]], [[1] * (place + 1)], [[place]])[0]
        for place, token in enumerate(tokens[7:], start=7)
    ]
    np.testing.assert_allclose(np.concatenate(rows), compute_logits(tensors, SHAPE, tokens), atol=NOISE)


def test_decoder_chunked_prefill_equals_whole() -> None:
    tensors, tokens = widened(SHAPE, 5), some_tokens(24, 2)
    runner = Runner(tensors, SHAPE)
    first = runner.run([tokens[:9]], [[1] * 9], [list(range(9))])[0]
    second = runner.run([tokens[9:]], [[1] * 24], [list(range(9, 24))])[0]
    expected = compute_logits(tensors, SHAPE, tokens)
    np.testing.assert_allclose(np.concatenate([first, second]), expected, atol=NOISE)


def pad(row: list[int], filler: int, side: str) -> list[int]:
    pads = [filler] * (17 - len(row))
    return [*pads, *row] if side == "left" else [*row, *pads]


@pytest.mark.parametrize("side", ["left", "right"])
def test_decoder_padded_batch_equals_each_text_alone(side: str) -> None:
    tensors = widened(SHAPE, 6)
    texts = [some_tokens(count, count) for count in (3, 11, 17)]
    runner = Runner(tensors, SHAPE)
    ids, mask, places = [], [], []
    for tokens in texts:
        count = len(tokens)
        ids.append(pad(tokens, 5, side))
        mask.append(pad([1] * count, 0, side))
        places.append(pad(list(range(count)), 0, side))
    logits = runner.run(ids, mask, places)
    following = [some_tokens(4, 50 + row) for row in range(3)]
    steps = []
    for step in range(4):
        mask = [[*row, 1] for row in mask]
        now = [[len(tokens) + step] for tokens in texts]
        steps.append(runner.run([[row[step]] for row in following], mask, now)[:, 0])
    for row, tokens in enumerate(texts):
        expected = compute_logits(tensors, SHAPE, tokens + following[row])
        start = 17 - len(tokens) if side == "left" else 0
        got = [*logits[row, start : start + len(tokens)], *(step[row] for step in steps)]
        np.testing.assert_allclose(got, expected, atol=NOISE)
    assert np.isfinite(logits).all()


def test_decoder_positions_decide_the_rotation() -> None:
    tensors, tokens = widened(SHAPE, 7), some_tokens(12, 3)
    apart = Runner(tensors, SHAPE).run([tokens], [[1] * 12], [[2 * place for place in range(12)]])[0]
    assert np.abs(apart - compute_logits(tensors, SHAPE, tokens)).max() > 0.1


def test_decoder_with_its_own_head_uses_it() -> None:
    tensors, tokens = widened(SHAPE, 8), some_tokens(6, 4)
    untied = tensors | {HEAD: tensors[EMBEDDING][::-1].copy()}
    tied_logits = Runner(tensors, SHAPE).prefill(tokens)
    np.testing.assert_allclose(Runner(untied, SHAPE).prefill(tokens), tied_logits[:, ::-1], atol=NOISE)


def test_build_decoder_with_a_missing_tensor_names_it() -> None:
    tensors = random_tensors(SHAPE, 1)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(KeyError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        build_decoder(tensors, SHAPE)


def test_decoder_shape_that_cannot_be_rotated_is_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        replace(SHAPE, heads=48, kv_heads=48)
    with pytest.raises(ValueError, match="heads"):
        replace(SHAPE, kv_heads=4)


def test_read_tensors_gives_back_what_the_graph_was_made_of() -> None:
    tensors = random_tensors(SHAPE, 2)
    read = read_tensors(build_decoder(tensors, SHAPE))
    assert set(read) == {*tensors, HEAD}
    for name, value in tensors.items():
        np.testing.assert_array_equal(read[name], value)
    np.testing.assert_array_equal(read[HEAD], tensors[EMBEDDING])


def test_random_tensors_same_seed_gives_the_same_weights() -> None:
    first, second, other = (random_tensors(SHAPE, seed) for seed in (1, 1, 2))
    assert {name: value.shape for name, value in first.items()} == list_tensor_shapes(SHAPE)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert (first[EMBEDDING] != other[EMBEDDING]).any()
