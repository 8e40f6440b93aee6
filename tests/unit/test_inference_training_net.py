"""The hand-written backward pass against finite differences, and the net against the graph's judge."""

from __future__ import annotations

import numpy as np
import pytest

from emcd.inference.decoder_graph import DecoderShape, random_tensors
from emcd.inference.training.net import Net
from emcd.inference.weights import Tensors
from tests.support.numpy_decoder import compute_logits

SHAPE = DecoderShape(layers=2, hidden=16, heads=4, kv_heads=2, ffn=24, vocab=30, context=16)
STEP = 1e-5


def make_tensors() -> Tensors:
    draw = np.random.default_rng(5)
    return {
        name: 1 + draw.standard_normal(value.shape) / 4 if value.ndim == 1 else value.astype(np.float64) * 5
        for name, value in random_tensors(SHAPE, 9).items()
    }


TENSORS = make_tensors()
TOKENS = np.random.default_rng(1).integers(0, SHAPE.vocab, (3, 10))


def test_net_loss_equals_that_of_plain_numpy() -> None:
    losses = []
    for text in TOKENS:
        logits = compute_logits(TENSORS, SHAPE, text[:-1].tolist())
        totals = np.log(np.exp(logits).sum(axis=1))
        losses.append(totals - logits[np.arange(len(logits)), text[1:]])
    assert Net(TENSORS, SHAPE).compute_loss(TOKENS) == pytest.approx(np.mean(losses), abs=1e-6)


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_net_gradient_equals_finite_differences(name: str) -> None:
    gradients = {key: np.zeros_like(value) for key, value in TENSORS.items()}
    loss = Net(TENSORS, SHAPE).add_gradients(TOKENS, gradients)
    assert loss == pytest.approx(Net(TENSORS, SHAPE).compute_loss(TOKENS), abs=1e-12)
    draw = np.random.default_rng(2)
    for _ in range(6):
        place = tuple(int(draw.integers(0, size)) for size in TENSORS[name].shape)
        sides = []
        for sign in (1, -1):
            moved = TENSORS[name].copy()
            moved[place] += sign * STEP
            sides.append(Net(TENSORS | {name: moved}, SHAPE).compute_loss(TOKENS))
        assert gradients[name][place] == pytest.approx((sides[0] - sides[1]) / (2 * STEP), rel=1e-5, abs=1e-9)
    assert np.abs(gradients[name]).max() > 1e-6, "nothing was checked"


def test_net_gradients_are_added_to_what_is_there() -> None:
    once, twice = ({key: np.zeros_like(value) for key, value in TENSORS.items()} for _ in range(2))
    net = Net(TENSORS, SHAPE)
    net.add_gradients(TOKENS, once)
    for _ in range(2):
        net.add_gradients(TOKENS, twice)
    for name, value in once.items():
        np.testing.assert_allclose(twice[name], 2 * value, rtol=1e-12)
