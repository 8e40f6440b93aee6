"""What a judge reads from its own logits, against sums that are written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from emcd.inference import prefill_facts
from emcd.inference.prefill_facts import (
    Drawing,
    compute_chance,
    list_facts,
    log_sum,
    read_candidates,
    read_logprobs,
)

ROW = np.array([1.0, 3.0, -2.0, 3.0, 0.5], np.float32)


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_log_sum_is_the_sum_written_out(temperature: float) -> None:
    expected = math.log(sum(math.exp(value / temperature) for value in ROW.tolist()))
    assert log_sum(ROW, temperature) == pytest.approx(expected, abs=1e-12)


def test_log_sum_of_huge_logits_does_not_overflow() -> None:
    assert log_sum(np.array([1e4, 1e4], np.float32)) == pytest.approx(1e4 + math.log(2))


def test_candidates_are_the_largest_and_of_equal_ones_the_lower_id() -> None:
    assert read_candidates(ROW, 3) == [(1, 3.0), (3, 3.0), (0, 1.0)]
    assert read_candidates(ROW, 1) == [(1, 3.0)]
    assert len(read_candidates(ROW)) == 5
    assert read_candidates(np.zeros(100, np.float32)) == [(token, 0.0) for token in range(64)]


def test_logprobs_are_without_a_temperature() -> None:
    shares = softmax(ROW.tolist())
    found = read_logprobs(ROW, [0, 4])
    assert found == pytest.approx({0: math.log(shares[0]), 4: math.log(shares[4])})


@pytest.mark.parametrize("numbers", [1, 7, 1 << 20])
def test_facts_are_the_same_in_whatever_pieces_they_come(
    monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    logits = np.random.default_rng(1).normal(0, 3, (9, 100)).astype(np.float32)
    wanted, chosen = [{1, token} for token in range(8)], list(range(8))
    drawing = Drawing(0.7, is_free=True)
    monkeypatch.setattr(prefill_facts, "_BLOCK_NUMBERS", numbers)
    found = list_facts(iter([logits[:3], logits[3:4], logits[4:]]), wanted, chosen, drawing)
    assert len(found) == 8
    for place, facts in enumerate(found):
        row = logits[place]
        assert facts.own == pytest.approx(read_logprobs(row, [1, place]))
        assert facts.chosen_logit == float(row[place])
        assert facts.candidates == read_candidates(row)
        assert facts.log_total == pytest.approx(log_sum(row, 0.7))
        assert facts.chance == compute_chance(row, place, drawing)


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.5}, [1, 3]),
        ({"top_p": 0.99}, [0, 1, 3, 4]),
    ],
)
def test_chance_is_of_what_may_be_drawn(cut: dict[str, Any], kept: list[int]) -> None:
    shares = softmax([float(ROW[token]) for token in kept])
    surprisals = [-math.log(share) for share in shares]
    entropy = sum(share * surprisal for share, surprisal in zip(shares, surprisals, strict=True))
    variance = sum(
        share * (surprisal - entropy) ** 2 for share, surprisal in zip(shares, surprisals, strict=True)
    )
    chance = compute_chance(ROW, 3, Drawing(1.0, is_free=True, **cut))
    assert chance == pytest.approx((surprisals[kept.index(3)], entropy, variance), abs=1e-9)


def test_chance_of_what_can_not_be_drawn_is_bounded() -> None:
    assert compute_chance(ROW, 2, Drawing(1.0, top_k=1, is_free=True)).surprisal == 50.0
