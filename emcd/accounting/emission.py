"""The emission schedule, exact to the wei. Source: DESIGN 2.2; tests/vectors/emission.json.

An epoch of period 1 issues 50,000 token; r(n) = r(n-1) * (1 + 1/n)^n / 3.1416; period n lasts
90 * 2^floor((n-1)/4) epochs. Round k issues floor(C(k+1)) - floor(C(k)) wei of the exact
cumulative schedule C, which ends at 100,000,000 token. Invariant: rationals only, no rounding
before the floor.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from emcd.money import WEI_PER_TOKEN
from emcd.types import Wei

CAP_WEI = Wei(100_000_000 * WEI_PER_TOKEN)
EPOCH_ROUNDS = 12
_FIRST_EPOCH_WEI = 50_000 * WEI_PER_TOKEN
_DECAY_DIVISOR = Fraction(31416, 10000)
_FIRST_PERIOD_EPOCHS = 90
_PERIODS_PER_DOUBLING = 4


@dataclass(frozen=True)
class Period:
    """One row of the contract's table: from `start_round` a round issues at most so much."""

    start_round: int
    wei_per_round_ceil: int


@dataclass(frozen=True)
class _Stretch:
    """A period with everything over one denominator: C(t) = (base + slope * (t - start)) / denominator."""

    start_round: int
    base: int
    slope: int
    denominator: int


def issue_wei(index: int, epoch_rounds: int = EPOCH_ROUNDS) -> Wei:
    """What round `index` issues when anybody is eligible. Raises: ValueError when negative."""
    if index < 0:
        raise ValueError(f"there is no round {index}")
    return Wei(_scheduled_floor(index + 1, epoch_rounds) - _scheduled_floor(index, epoch_rounds))


def cumulative_wei(index: int, epoch_rounds: int = EPOCH_ROUNDS) -> Wei:
    """What rounds 0 to `index` issue together; 0 for -1. Raises: ValueError below -1."""
    if index < -1:
        raise ValueError(f"there is no round {index}")
    return Wei(_scheduled_floor(index + 1, epoch_rounds))


def period_table(epoch_rounds: int = EPOCH_ROUNDS) -> tuple[Period, ...]:
    """The periods up to the one that reaches the cap, wei a round rounded up: the contract's bound."""
    return tuple(Period(s.start_round, -(-s.slope // s.denominator)) for s in _stretches(epoch_rounds))


def epoch_reward(period: int) -> Fraction:
    """Token that an epoch of period n (from 1) issues, exactly."""
    return _epoch_wei(period) / WEI_PER_TOKEN


def _scheduled_floor(rounds: int, epoch_rounds: int) -> int:
    stretches = _stretches(epoch_rounds)
    stretch = stretches[bisect_right(stretches, rounds, key=lambda s: s.start_round) - 1]
    exact = stretch.base + stretch.slope * (rounds - stretch.start_round)
    return min(exact // stretch.denominator, CAP_WEI)


@lru_cache(maxsize=256)
def _epoch_wei(period: int) -> Fraction:
    if period == 1:
        return Fraction(_FIRST_EPOCH_WEI)
    return _epoch_wei(period - 1) * Fraction(period + 1, period) ** period / _DECAY_DIVISOR


@lru_cache(maxsize=16)
def _stretches(epoch_rounds: int) -> tuple[_Stretch, ...]:
    if epoch_rounds < 1:
        raise ValueError("an epoch has at least one round")
    rows: list[_Stretch] = []
    issued, start, period = Fraction(0), 0, 1
    while issued < CAP_WEI:
        slope = _epoch_wei(period) / epoch_rounds
        denominator = issued.denominator * slope.denominator
        rows.append(
            _Stretch(
                start, issued.numerator * slope.denominator, slope.numerator * issued.denominator, denominator
            )
        )
        rounds = _FIRST_PERIOD_EPOCHS * 2 ** ((period - 1) // _PERIODS_PER_DOUBLING) * epoch_rounds
        issued, start, period = issued + slope * rounds, start + rounds, period + 1
    return tuple(rows)
