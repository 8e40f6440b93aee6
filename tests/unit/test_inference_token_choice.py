"""The choice of tokens: candidates, ties, log-probabilities, and who decides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from emcd.accounting.gumbel import CANDIDATES, choose
from emcd.errors import RecoverableError
from emcd.inference import token_choice
from emcd.inference.decoder_session import Logits
from emcd.inference.token_choice import (
    LEAST_LOGPROB,
    Choice,
    Sampling,
    choose_tokens,
    compute_log_total,
    find_broken_rows,
    list_candidates,
)


def make_logits(rows: int, vocab: int, *, steps: float = 0.0) -> Logits:
    """Random rows; with `steps` rounded to multiples of it, so that many are equal."""
    found = np.random.default_rng(vocab).normal(0, 3, (rows, vocab)).astype(np.float32)
    return np.round(found / steps).astype(np.float32) * np.float32(steps) if steps else found


@pytest.mark.parametrize("vocab", [1, 5, 64, 65, 700, 1023, 1024, 2048, 5003])
@pytest.mark.parametrize("steps", [0.0, 1.0, 50.0])
def test_candidates_are_the_best_and_of_equals_the_lower_ids(vocab: int, steps: float) -> None:
    for row in make_logits(3, vocab, steps=steps):
        ordered = sorted(enumerate(row.tolist()), key=lambda item: (-item[1], item[0]))
        assert list_candidates(row) == ordered[:CANDIDATES]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_log_total_is_of_the_whole_vocabulary(temperature: float) -> None:
    row = make_logits(1, 2048)[0]
    expected = math.log(math.fsum(math.exp(value / temperature) for value in row.tolist()))
    assert compute_log_total(row, temperature) == pytest.approx(expected, abs=1e-12)
    assert compute_log_total(row, 0.0) == compute_log_total(row, 1.0)


def test_choose_tokens_reports_raw_log_probabilities() -> None:
    logits = make_logits(4, 2048)
    asked = [
        (Sampling(t, top_p=0.5, top_k=3, seed=1, top_logprobs=n), 0)
        for t, n in ((0, 0), (0.3, 5), (1, 20), (2, 1))
    ]
    for row, choice, (sampling, _) in zip(logits, choose_tokens(logits, asked), asked, strict=True):
        exact = row.astype(np.float64) - compute_log_total(row, 1.0)
        assert choice.logprob == pytest.approx(exact[choice.token], abs=2e-6)
        assert [token for token, _ in choice.top] == np.argsort(-row, kind="stable")[
            : sampling.top_logprobs
        ].tolist()
        for token, logprob in choice.top:
            assert logprob == pytest.approx(exact[token], abs=2e-6)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.7, 0), (1.0, 4), (0.9, 100), (0.01, -1)])
def test_choose_tokens_is_what_the_sampler_says(top_p: float, top_k: int) -> None:
    logits = make_logits(40, 1500)
    asked = [(Sampling(0.8, top_p, top_k, seed=-n), n) for n in range(len(logits))]
    expected = [
        choose(
            list_candidates(row),
            log_total=compute_log_total(row, 0.8),
            temperature=0.8,
            top_p=top_p,
            top_k=top_k,
            seed=-n,
            t=n,
        )
        for n, row in enumerate(logits)
    ]
    assert [choice.token for choice in choose_tokens(logits, asked)] == expected


def test_choose_tokens_that_are_close_asks_the_sampler_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = make_logits(5, 700)
    asked = [(Sampling(seed=n, top_k=3 * n), n) for n in range(5)]
    expected = choose_tokens(logits, asked)
    seeds: list[int] = []

    def note(*args: Any, **given: Any) -> int:
        seeds.append(given["seed"])
        return choose(*args, **given)

    monkeypatch.setattr(token_choice, "choose", note)
    monkeypatch.setattr(token_choice, "_CLOSE", 1e9)
    assert choose_tokens(logits, asked) == expected
    assert seeds == [0, 1, 2, 3, 4]


def test_choose_tokens_of_rows_with_different_cuts_keeps_to_each() -> None:
    logits = np.tile(make_logits(1, 700), (200, 1))
    cuts = (1, 2, 5, 0)
    asked = [(Sampling(5.0, top_k=cuts[n % 4], seed=n), 0) for n in range(200)]
    best = [token for token, _ in list_candidates(logits[0])]
    found = [{best.index(c.token) for c in choose_tokens(logits, asked)[n::4]} for n in range(4)]
    assert found[0] == {0}
    assert found[1] == {0, 1}
    assert found[2] == {0, 1, 2, 3, 4}
    assert max(found[3]) > 20


def test_choose_tokens_of_a_row_does_not_depend_on_the_others() -> None:
    logits = make_logits(8, 3000)
    asked = [(Sampling(seed=n, top_logprobs=5), n) for n in range(8)]
    together = choose_tokens(logits, asked)
    assert together == [choose_tokens(logits[n : n + 1], asked[n : n + 1])[0] for n in range(8)]


def test_choose_tokens_at_zero_takes_the_likeliest() -> None:
    logits = np.zeros((1, 300), np.float32)
    logits[0, [7, 9]] = 5
    assert choose_tokens(logits, [(Sampling(0.0), 3)])[0].token == 7


def test_choose_tokens_of_what_can_not_come_reports_a_number() -> None:
    logits = np.full((1, 100), -np.inf, np.float32)
    logits[0, 4] = 1
    assert choose_tokens(logits, [(Sampling(0.0, top_logprobs=2), 0)]) == [
        Choice(4, 0.0, ((4, 0.0), (0, LEAST_LOGPROB)))
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_choose_tokens_without_numbers_is_told(value: float) -> None:
    logits = make_logits(2, 100)
    logits[1, 3] = value
    with pytest.raises(RecoverableError, match="EMC-1651"):
        choose_tokens(logits, [(Sampling(), 0)] * 2)
    assert find_broken_rows(logits) == [1]
    assert find_broken_rows(logits[:1]) == []
