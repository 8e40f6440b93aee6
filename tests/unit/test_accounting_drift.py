"""Drifts below the thresholds: how long until an alarm, for the honest and for those who sit under tau."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from emcd.accounting.drift import (
    ALARM,
    D_REFERENCE,
    M_REFERENCE,
    POOL_ANSWERS,
    SUSPECT_Z,
    Drift,
    advance_drift,
    advance_pool,
)

CELLS = 200


def run_length(cdf: Callable[[float], float], reference: float) -> float:
    """Mean answers until the alarm: a Markov chain over the sum (Brook and Evans 1972).

    Args: `cdf` of one answer's share, cut at 1 as the product cuts it.
    """
    width = ALARM / CELLS
    middle = (np.arange(CELLS) + 0.5) * width
    middle[0] = 0.0
    upper = np.arange(1, CELLS + 1) * width

    def below(step: float) -> float:
        return 1.0 if step + reference >= 1.0 else cdf(step + reference)

    reach = np.array([[below(edge - start) for edge in upper] for start in middle])
    moves = np.diff(reach, axis=1, prepend=0.0)
    lengths = np.linalg.solve(np.eye(CELLS) - moves, np.ones(CELLS))
    return float(lengths[0])


def simulated(draw: Callable[[], float], *, is_m: bool = False, limit: int = 5000) -> int:
    state = Drift()
    for number in range(1, limit + 1):
        share = draw()
        state = (
            advance_drift(state, d_share=0.0, m_share=share) if is_m else advance_drift(state, d_share=share)
        )
        if state.is_drifting:
            return number
    return limit


def least_run_length(mean: float, deviation: float, reference: float) -> float:
    """Lundberg's bound for normal shares: exp(theta x ALARM), theta the root of E exp(theta (X - k)) = 1."""
    return math.exp(2 * (reference - mean) / deviation**2 * ALARM)


@pytest.mark.parametrize(
    ("mean", "deviation"), [(0.01, 0.08), (0.33, 0.07), (0.42, 0.06)], ids=["fp32", "fp16", "bf16"]
)
def test_honest_d_has_a_run_of_more_than_a_billion_answers(mean: float, deviation: float) -> None:
    """Means and deviations as shares of tau: VERIFICATION 3's medians and maxima."""
    assert least_run_length(mean, deviation, D_REFERENCE) > 1e9


@pytest.mark.parametrize(("mean", "deviation", "least"), [(0.45, 0.15, 5e7), (0.48, 0.12, 1e5)])
def test_honest_d_at_half_of_tau_has_a_long_run_yet(mean: float, deviation: float, least: float) -> None:
    """Thresholds that were calibrated too tightly: tau is hardly twice the mean, not the maximum."""
    assert run_length(NormalDist(mean, deviation).cdf, D_REFERENCE) > least


def test_run_length_computed_is_above_its_bound_and_what_a_simulation_finds() -> None:
    generator, law = random.Random(11), NormalDist(0.5, 0.3)
    found = [simulated(lambda: generator.gauss(law.mean, law.stdev)) for _ in range(400)]

    assert run_length(law.cdf, D_REFERENCE) == pytest.approx(sum(found) / len(found), rel=0.15)
    assert run_length(NormalDist(0.48, 0.12).cdf, D_REFERENCE) > least_run_length(0.48, 0.12, D_REFERENCE)


def test_honest_m_that_is_nearly_always_zero_has_a_run_of_more_than_a_million_answers() -> None:
    """One answer in twenty has a tie that rounding decides, worth up to half of tau."""

    def cdf(share: float) -> float:
        return 0.0 if share < 0 else 0.95 + 0.05 * min(1.0, share / 0.5)

    assert run_length(cdf, M_REFERENCE) > 1e6


@pytest.mark.parametrize(("mean", "most"), [(0.6, 45), (0.75, 18), (0.9, 12)])
def test_node_that_sits_under_tau_is_seen_within_days(mean: float, most: int) -> None:
    """Two probes a round, twelve rounds a day."""
    law = NormalDist(mean, 0.05)
    expected = run_length(law.cdf, D_REFERENCE)
    generator = random.Random(7)
    found = [simulated(lambda: generator.gauss(mean, 0.05)) for _ in range(300)]

    assert expected < most
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.1)


def test_laundered_int4_of_a_bf16_class_is_seen_within_two_days() -> None:
    """Its m is 2.7e-3, tau 5e-3: no single answer fails."""
    generator = random.Random(3)
    found = [simulated(lambda: generator.expovariate(1 / 0.54), is_m=True) for _ in range(200)]

    assert sum(found) / len(found) < 36


def test_no_alarm_comes_from_a_few_answers_however_far_they_are() -> None:
    state = Drift()
    for _ in range(5):
        state = advance_drift(state, d_share=math.inf, m_share=1e9)
        assert not state.is_drifting
    assert state.answers == 5
    assert advance_drift(state, d_share=1.0, m_share=1.0).is_drifting


def test_honest_answers_wear_a_sum_off() -> None:
    state = Drift(d=ALARM + 1, m=ALARM + 1)
    for _ in range(20):
        state = advance_drift(state, d_share=0.1, m_share=0.0)
    assert (state.d, state.m, state.is_drifting) == (0.0, 0.0, False)


def test_m_that_is_not_judged_stays() -> None:
    assert advance_drift(Drift(m=1.0), d_share=0.0).m == 1.0


def test_pool_is_judged_when_it_is_full_and_then_empty() -> None:
    state = Drift()
    for number in range(POOL_ANSWERS):
        assert state.pool_answers == number
        assert not state.is_suspect
        state = advance_pool(state, -6.0, 16.0)
    assert state.z == pytest.approx(-6.0 * 16 / math.sqrt(16.0 * 16))
    assert state.is_suspect
    assert (state.pool_sum, state.pool_variance, state.pool_answers) == (0.0, 0.0, 0)
    for _ in range(POOL_ANSWERS):
        state = advance_pool(state, 0.0, 16.0)
    assert not state.is_suspect


def test_pool_of_honest_answers_is_suspect_once_in_a_million() -> None:
    assert 2 * NormalDist().cdf(-SUSPECT_Z) < 1e-6
    state = Drift()
    for _ in range(POOL_ANSWERS):
        state = advance_pool(state, 0.0, 0.0)
    assert state.z == 0.0
