from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from emcd.accounting.emission import CAP_WEI, cumulative_wei, epoch_reward, issue_wei, period_table
from tests.support import second_implementation as second


def test_issue_first_epoch_is_fifty_thousand_token() -> None:
    assert sum(issue_wei(index) for index in range(12)) == 50_000 * 10**18


@pytest.mark.parametrize("index", [0, 1, 1079, 1080, 4319, 4320, 10_000, 77_777, 10_014_913, 10_014_914])
def test_issue_equals_second_implementation(index: int) -> None:
    assert issue_wei(index) == second.issue_wei(index)


def test_period_two_uses_the_factor_of_two() -> None:
    assert epoch_reward(2) == 50_000 * Fraction(9, 4) / Fraction("3.1416")


def test_period_table_bounds_every_round_by_less_than_one_wei() -> None:
    table = period_table()
    assert table[0].start_round == 0
    assert [row.start_round for row in table] == sorted({row.start_round for row in table})
    for row, following in pairwise(table):
        rounds = following.start_round - row.start_round
        exact = cumulative_wei(following.start_round - 1) - cumulative_wei(row.start_round - 1)
        assert 0 <= row.wei_per_round_ceil * rounds - exact <= rounds
        assert issue_wei(row.start_round) <= row.wei_per_round_ceil
        assert issue_wei(following.start_round - 1) <= row.wei_per_round_ceil


def test_issue_after_the_cap_is_nothing() -> None:
    assert issue_wei(10**12) == 0
    assert cumulative_wei(10**12) == CAP_WEI


def test_cumulative_before_the_first_round_is_zero() -> None:
    assert cumulative_wei(-1) == 0


@pytest.mark.parametrize("call", [lambda: issue_wei(-1), lambda: cumulative_wei(-2), lambda: period_table(0)])
def test_emission_of_no_round_is_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError):
        call()
