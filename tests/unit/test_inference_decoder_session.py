"""Decoders under onnxruntime: what is opened, what is refused, and that every way to run gives the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from emcd.errors import ConfigError, RecoverableError
from emcd.inference.decoder_session import DecoderSession, Logits, open_decoder
from tests.support.decoder_model import ToyDecoder, toy_decoder

__all__ = ["toy_decoder"]

PROMPT = [5, 300, 17, 64, 64, 2, 99, 250, 31, 8, 120, 77]
Shapes = dict[str, Sequence[str | int]]
SIZES: Shapes = {"input_ids": ("b", "s"), "attention_mask": ("b", "t"), "position_ids": ("b", "s")}
CACHE = ("b", 2, "p", 8)


@pytest.fixture(scope="module")
def session(toy_decoder: ToyDecoder) -> DecoderSession:
    return open_decoder(toy_decoder.onnx)


def write_graph(folder: Path, inputs: Shapes, outputs: Shapes, kind: int) -> Path:
    """A graph that has the names, and does nothing."""

    def describe(table: Shapes) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.INT64 if name in SIZES else kind, shape)
            for name, shape in table.items()
        ]

    source = next(name for name in inputs if name not in SIZES)
    nodes = [
        helper.make_node("Cast", ["input_ids"], [name], to=kind)
        if name == "logits"
        else helper.make_node("Identity", [source], [name])
        for name in outputs
    ]
    graph = helper.make_graph(nodes, "stub", describe(inputs), describe(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def usual() -> tuple[Shapes, Shapes]:
    """Inputs and outputs of a decoder of one layer."""
    past: Shapes = {f"past_key_values.0.{kind}": CACHE for kind in ("key", "value")}
    present: Shapes = {f"present.0.{kind}": CACHE for kind in ("key", "value")}
    return {**SIZES, **past}, {"logits": ("b", "s"), **present}


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EMC-1650"):
        open_decoder(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match="EMC-1650"):
        open_decoder(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("input_ids", "input_ids"),
        ("attention_mask", "attention_mask"),
        ("logits", "output logits"),
        ("present.0.value", "output present.0.value"),
        ("past_key_values.0.value", "a key and a value"),
    ],
)
def test_graph_without_what_it_needs_is_refused_by_name(tmp_path: Path, gone: str, told: str) -> None:
    inputs, outputs = usual()
    if gone == "input_ids":
        inputs["ids"] = inputs.pop(gone)
        outputs.pop("logits")
    else:
        (inputs if gone in inputs else outputs).pop(gone)
    with pytest.raises(ConfigError, match=f"EMC-1650.*{told}"):
        DecoderSession(write_graph(tmp_path, inputs, outputs, TensorProto.FLOAT))


def test_graph_without_a_cache_is_refused(tmp_path: Path) -> None:
    inputs, outputs = usual()
    inputs = {name: size for name, size in inputs.items() if name in SIZES} | {"x": (1,)}
    with pytest.raises(ConfigError, match="without a KV cache"):
        DecoderSession(write_graph(tmp_path, inputs, outputs, TensorProto.FLOAT))


def test_graph_that_asks_for_more_is_refused(tmp_path: Path) -> None:
    inputs, outputs = usual()
    inputs["use_cache_branch"] = (1,)
    with pytest.raises(ConfigError, match="use_cache_branch"):
        DecoderSession(write_graph(tmp_path, inputs, outputs, TensorProto.FLOAT))


def test_graph_whose_cache_has_no_size_is_refused(tmp_path: Path) -> None:
    inputs, outputs = usual()
    inputs["past_key_values.0.key"] = ("b", "heads", "p", 8)
    with pytest.raises(ConfigError, match="not float"):
        DecoderSession(write_graph(tmp_path, inputs, outputs, TensorProto.FLOAT))


def test_graph_of_half_precision_without_positions_is_opened(tmp_path: Path) -> None:
    inputs, outputs = usual()
    del inputs["position_ids"]
    session = DecoderSession(write_graph(tmp_path, inputs, outputs, TensorProto.FLOAT16))
    assert (session.layers, session.kv_heads, session.head_size) == (1, 2, 8)
    assert session.cache_type == np.float16
    assert not session.has_positions
    assert session.vocab_tokens == 0
    one = np.ones((1, 1), np.int64)
    logits, _ = session.run(one, one, one, session.make_cache())
    assert logits.dtype == np.float32


def test_open_reads_the_shape_and_shares_the_session(
    toy_decoder: ToyDecoder, session: DecoderSession
) -> None:
    shape = toy_decoder.shape
    assert (session.layers, session.kv_heads, session.head_size) == (
        shape.layers,
        shape.kv_heads,
        shape.head_dim,
    )
    assert session.vocab_tokens == shape.vocab
    assert session.has_positions
    assert session.cached_token_bytes == 2 * shape.layers * shape.kv_heads * shape.head_dim * 4
    assert open_decoder(toy_decoder.onnx) is session
    assert open_decoder(toy_decoder.onnx, threads=2) is not session
    assert open_decoder(toy_decoder.onnx, optimization="off") is not session


@pytest.mark.parametrize("part", [1, 3, 5, 12, 100])
def test_prefill_in_parts_gives_the_same_as_at_once(session: DecoderSession, part: int) -> None:
    whole = session.prefill(PROMPT)
    assert whole.shape == (len(PROMPT), session.vocab_tokens)
    parts = list(session.prefill_parts(PROMPT, chunk_tokens=part))
    assert max(len(rows) for rows in parts) <= part
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


@pytest.mark.parametrize("first", [0, 4, 5, 11])
def test_prefill_from_a_token_on_gives_its_rows_only(session: DecoderSession, first: int) -> None:
    found = session.prefill(PROMPT, first=first, chunk_tokens=5)
    np.testing.assert_allclose(found, session.prefill(PROMPT)[first:], atol=1e-4)


@pytest.mark.parametrize("optimization", ["extended", "basic", "off"])
def test_prefill_hardly_depends_on_the_optimisation(
    toy_decoder: ToyDecoder, session: DecoderSession, optimization: str
) -> None:
    other = open_decoder(toy_decoder.onnx, threads=2, optimization=optimization)  # type: ignore[arg-type]
    np.testing.assert_allclose(other.prefill(PROMPT), session.prefill(PROMPT), atol=1e-3)


def write_on(session: DecoderSession, ids: list[list[int]], pad: int, steps: list[list[int]]) -> list[Logits]:
    """Rows padded on the left to one length, then a token of each at a time."""
    longest = max(map(len, ids)) + pad
    lengths = np.array([len(row) for row in ids])
    at = np.arange(longest)
    mask = (at >= longest - lengths[:, None]).astype(np.int64)
    positions = np.maximum(at - (longest - lengths[:, None]), 0)
    padded = np.array([[9] * (longest - len(row)) + row for row in ids], np.int64)
    logits, cache = session.run(padded, mask, positions, session.make_cache(len(ids)))
    found = [logits[:, -1]]
    for number, tokens in enumerate(steps):
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        here = (lengths + number)[:, None]
        logits, cache = session.run(np.array(tokens, np.int64)[:, None], mask, here, cache)
        found.append(logits[:, -1])
    return found


def test_rows_padded_on_the_left_are_as_if_alone(session: DecoderSession) -> None:
    steps = [[7, 8], [9, 10], [11, 12]]
    together = write_on(session, [PROMPT, PROMPT[3:7]], 2, steps)
    for row, prompt in enumerate((PROMPT, PROMPT[3:7])):
        tokens = [*prompt, *(step[row] for step in steps)]
        alone = session.prefill(tokens, first=len(prompt) - 1)
        for found, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_run_that_fails_is_told(session: DecoderSession) -> None:
    one = np.ones((1, 1), np.int64)
    with pytest.raises(RecoverableError, match="EMC-1651"):
        session.run(one * 10**6, one, one, session.make_cache())


def test_part_of_a_large_vocabulary_is_small(
    session: DecoderSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.part_tokens == 512
    monkeypatch.setattr(session, "vocab_tokens", 150_000)
    assert session.part_tokens == 111
