"""Cheaper variants of a decoder: how far each rounds, and that none of them is the model itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from emcd.inference.decoder_graph import build_decoder, random_tensors
from emcd.inference.variant import (
    VARIANTS,
    Variant,
    build_cheaper,
    quantise_dynamic,
    round_bf16,
    round_fp16,
    round_int4,
    round_int8,
)
from tests.support.decoder_model import TOY

DRAWN = np.random.default_rng(3).standard_normal((48, 64)).astype(np.float32)
NORMS = ("layernorm.weight", "model.norm.weight")


@pytest.mark.parametrize("kind", VARIANTS)
def test_build_cheaper_differs_from_the_model_and_still_runs(kind: Variant) -> None:
    tensors = random_tensors(TOY, 1)
    cheaper, shape = build_cheaper(tensors, TOY, kind)
    assert any(name not in cheaper or (cheaper[name] != value).any() for name, value in tensors.items())
    assert all(value.dtype == np.float32 for value in cheaper.values())
    ort.InferenceSession(build_decoder(cheaper, shape).SerializeToString())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_weight_only_kinds_leave_norms_alone(kind: Variant) -> None:
    tensors = {
        name: value * np.float32(1.001) if value.ndim == 1 else value
        for name, value in random_tensors(TOY, 1).items()
    }
    cheaper, _ = build_cheaper(tensors, TOY, kind)
    for name, value in tensors.items():
        assert (cheaper[name] == value).all() == name.endswith(NORMS)


def test_fewer_layers_leaves_out_the_last() -> None:
    tensors = random_tensors(TOY, 1)
    cheaper, shape = build_cheaper(tensors, TOY, "fewer-layers", layers=1)
    assert shape.layers == 1
    assert set(tensors) - set(cheaper) == {name for name in tensors if ".layers.1." in name}


@pytest.mark.parametrize("layers", [2, 3, -1])
def test_fewer_layers_that_are_not_fewer_are_refused(layers: int) -> None:
    with pytest.raises(ValueError, match="not fewer"):
        build_cheaper(random_tensors(TOY, 1), TOY, "fewer-layers", layers=layers)


def test_round_int8_is_within_half_a_step_of_each_row() -> None:
    step = np.abs(DRAWN).max(axis=1, keepdims=True) / 127
    rounded = round_int8(DRAWN)
    assert (np.abs(rounded - DRAWN) <= step * 0.501).all()
    assert all(len(np.unique(row)) <= 255 for row in rounded)
    np.testing.assert_array_equal(round_int8(np.zeros((2, 3), np.float32)), 0)


def test_round_int4_is_within_half_a_step_of_each_group() -> None:
    groups, rounded = DRAWN.reshape(-1, 32), round_int4(DRAWN).reshape(-1, 32)
    step = np.abs(groups).max(axis=1, keepdims=True) / 7
    assert (np.abs(rounded - groups) <= step * 0.501).all()
    assert all(len(np.unique(group)) <= 15 for group in rounded)
    with pytest.raises(ValueError, match="groups of 32"):
        round_int4(DRAWN[:, :40])


def test_round_bf16_keeps_the_upper_half_of_the_bits() -> None:
    rounded = round_bf16(DRAWN)
    assert (rounded.view(np.uint32) & 0xFFFF == 0).all()
    assert (np.abs(rounded - DRAWN) <= np.abs(DRAWN) * 2.0**-8).all()
    tie = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert round_bf16(tie).view(np.uint32).tolist() == [0x3F800000, 0x3F820000], "ties go to even"


def test_round_fp16_is_the_nearest_half() -> None:
    np.testing.assert_array_equal(round_fp16(DRAWN), DRAWN.astype(np.float16).astype(np.float32))
    assert (round_fp16(DRAWN) != DRAWN).any()


def test_quantise_dynamic_gives_a_graph_of_int8(tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    source.write_bytes(build_decoder(random_tensors(TOY, 1), TOY).SerializeToString())
    quantise_dynamic(source, target)
    session = ort.InferenceSession(target)
    assert [one.name for one in session.get_inputs()] == [
        one.name for one in ort.InferenceSession(source).get_inputs()
    ]
    assert target.stat().st_size < source.stat().st_size
