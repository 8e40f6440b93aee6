"""The sampler against a second implementation, its edges, and that it draws what it should."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from emcd.accounting.gumbel import CANDIDATES, allowed_count, choose, gumbel_noise, gumbel_noises
from tests.support import second_text_check as second

EULER = 0.5772156649015329


def candidates_of(logits: second.Floats) -> list[tuple[int, float]]:
    return [(token, float(logits[token])) for token in second.ranked(logits)]


def log_total(logits: second.Floats, temperature: float) -> float:
    scaled = logits / temperature
    return float(scaled.max() + np.log(np.exp(scaled - scaled.max()).sum()))


@pytest.mark.parametrize("seed", [0, 1, -1, 7, 2**63 - 1, -(2**63), 2**64 - 1])
def test_noise_is_that_of_the_second_implementation(seed: int) -> None:
    for t in (0, 1, 2**32 - 1):
        expected = [second.noise(seed, t, token) for token in range(20)]
        assert gumbel_noises(seed, t, range(20)) == pytest.approx(expected, rel=1e-14)


def test_noise_of_a_negative_seed_is_that_of_its_two_complement() -> None:
    assert gumbel_noise(-1, 3, 4) == gumbel_noise(2**64 - 1, 3, 4)
    assert len({gumbel_noise(seed, 3, 4) for seed in range(50)}) == 50


def test_noise_is_standard_gumbel() -> None:
    values = gumbel_noises(11, 0, range(40_000))
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)

    assert abs(mean - EULER) < 4 * math.sqrt(math.pi**2 / 6 / len(values))
    assert abs(variance - math.pi**2 / 6) < 0.07


@pytest.mark.parametrize("digest", [b"\0" * 8, b"\xff" * 8, (2**64 - 1024).to_bytes(8, "little")])
def test_noise_of_the_outermost_words_is_finite(monkeypatch: pytest.MonkeyPatch, digest: bytes) -> None:
    class Hasher:
        def __init__(self, data: bytes, *, digest_size: int, key: bytes) -> None: ...

        def copy(self) -> Hasher:
            return self

        def update(self, data: bytes) -> None: ...

        def digest(self) -> bytes:
            return digest

    monkeypatch.setattr("emcd.accounting.gumbel.blake2b", Hasher)
    assert math.isfinite(gumbel_noise(0, 0, 0))


@pytest.mark.parametrize("vocabulary", [1, 5, 64, 65, 300])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [
        (1.0, 1.0, 0),
        (0.4, 1.0, 0),
        (1.3, 0.9, 0),
        (1.0, 1.0, 20),
        (0.8, 0.5, 12),
        (1.0, 1e-9, 0),
        (0.0, 0.5, 3),
    ],
)
def test_choice_is_that_of_the_second_implementation(
    vocabulary: int, temperature: float, top_p: float, top_k: int
) -> None:
    for seed in range(12):
        logits = second.model_rows(seed, 1, vocabulary)[0]
        asked = second.Asked(temperature, top_p, top_k, seed)
        own = choose(
            candidates_of(logits),
            log_total=log_total(logits, temperature or 1.0),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            t=seed,
        )
        assert own == second.choose(logits, asked, seed)


def test_choice_draws_with_the_probabilities_of_the_softmax() -> None:
    logits = np.array([1.0, 0.0, -1.0, 2.0])
    total = log_total(logits, 0.7)
    draws = 8000
    found = Counter(
        choose(candidates_of(logits), log_total=total, temperature=0.7, seed=seed) for seed in range(draws)
    )
    for token, share in enumerate(np.exp(second.log_softmax(logits / 0.7))):
        assert abs(found[token] / draws - share) < 4 * math.sqrt(share * (1 - share) / draws)


def test_choice_of_equal_scores_is_the_lower_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emcd.accounting.gumbel.gumbel_noises", lambda seed, t, tokens: [0.0, 1.0, 2.0])
    candidates = [(5, 2.0), (2, 1.0), (9, 0.0)]
    assert choose(candidates, log_total=2.4, temperature=1.0) == 2


def test_choice_of_equal_logits_without_temperature_is_the_lower_id() -> None:
    logits = np.zeros(5)
    assert choose(candidates_of(logits), log_total=0.0, temperature=0.0) == 0


@pytest.mark.parametrize(
    ("top_p", "top_k", "count"),
    [(1.0, 0, 64), (0.0, 0, 64), (1.0, 5, 5), (1.0, 100, 64), (0.5, 0, 50), (0.501, 0, 51), (1e-12, 0, 1)],
)
def test_cut_counts_over_the_whole_vocabulary(top_p: float, top_k: int, count: int) -> None:
    """A hundred equal logits: each has 1 %."""
    candidates = [(token, 0.0) for token in range(100)]
    total = math.log(100) - 1e-12

    found = allowed_count(candidates, log_total=total, temperature=1.0, top_p=top_p, top_k=top_k)

    assert found == min(count, CANDIDATES)


def test_noise_differs_by_token_place_and_seed() -> None:
    values = {gumbel_noise(s, t, v) for s in range(5) for t in range(5) for v in range(5)}
    assert len(values) == 125
