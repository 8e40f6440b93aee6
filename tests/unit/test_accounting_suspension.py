from __future__ import annotations

from itertools import pairwise

import pytest

from emcd.accounting.suspension import Conduct, Conviction, Strike, advance_conduct, find_conviction
from emcd.proto.messages import Verdict
from emcd.proto.params import devnet_params
from emcd.types import Address
from tests.support.round_world import GENESIS_S, address_of

PARAMS = devnet_params(GENESIS_S)
NODE = address_of("node")


def fold(rounds: dict[int, list[Verdict]], through: int) -> Conduct:
    conducts: dict[Address, Conduct] = {}
    for index in range(through + 1):
        strikes = [Strike(NODE, bytes(16), verdict) for verdict in rounds.get(index, [])]
        conducts = advance_conduct(conducts, index, strikes, PARAMS)
    return conducts.get(NODE, Conduct())


def test_conduct_gross_suspends_the_three_rounds_after() -> None:
    assert fold({10: [Verdict.GROSS]}, 10).suspended_until_round == 14


def test_conduct_one_fail_suspends_nobody() -> None:
    assert fold({10: [Verdict.FAIL]}, 10) == Conduct(strike_rounds=(10,))


def test_conduct_second_fail_within_the_window_suspends() -> None:
    assert fold({10: [Verdict.FAIL], 21: [Verdict.FAIL]}, 21).suspended_until_round == 25
    assert fold({10: [Verdict.FAIL, Verdict.FAIL]}, 10).suspended_until_round == 14


def test_conduct_second_fail_after_the_window_suspends_nobody() -> None:
    assert fold({10: [Verdict.FAIL], 22: [Verdict.FAIL]}, 22) == Conduct(strike_rounds=(22,))


def test_conduct_repeated_conviction_doubles() -> None:
    assert fold({10: [Verdict.GROSS], 14: [Verdict.GROSS]}, 14).suspended_until_round == 21
    assert (
        fold({10: [Verdict.GROSS], 14: [Verdict.GROSS], 21: [Verdict.GROSS]}, 21).suspended_until_round == 34
    )


def test_conduct_long_after_a_suspension_starts_anew() -> None:
    late = 14 + PARAMS.strike_window_rounds + 1

    assert fold({10: [Verdict.GROSS], late: [Verdict.GROSS]}, late).suspended_until_round == late + 4


def test_conduct_without_strikes_is_forgotten() -> None:
    assert fold({10: [Verdict.GROSS]}, 60) == Conduct()
    assert advance_conduct({NODE: Conduct((1,), 0, 0)}, 50, [], PARAMS) == {}


def test_conduct_later_conviction_never_shortens_a_suspension() -> None:
    before = {NODE: Conduct((), 1, 100)}

    assert (
        advance_conduct(before, 90, [Strike(NODE, bytes(16), Verdict.GROSS)], PARAMS)[
            NODE
        ].suspended_until_round
        == 100
    )


@pytest.mark.parametrize(
    ("before", "now", "conviction"),
    [
        ((), (Verdict.CLASS,), Conviction.NONE),
        ((), (Verdict.CLASS, Verdict.CLASS), Conviction.CLASS),
        ((Verdict.CLASS,), (Verdict.FAIL,), Conviction.CLASS),
        ((Verdict.FAIL,), (Verdict.CLASS,), Conviction.CLASS),
        ((Verdict.FAIL,), (Verdict.FAIL,), Conviction.FAILS),
        ((Verdict.FAIL,), (Verdict.FAIL, Verdict.CLASS), Conviction.FAILS),
        ((Verdict.CLASS,), (Verdict.GROSS,), Conviction.GROSS),
        ((Verdict.FAIL,), (), Conviction.NONE),
    ],
)
def test_conviction_counts_class_like_fail_and_names_what_may_be_slashed(
    before: tuple[Verdict, ...], now: tuple[Verdict, ...], conviction: Conviction
) -> None:
    conduct = fold({10: list(before)}, 10)

    assert find_conviction(conduct, 11, now, PARAMS) is conviction
    is_suspended = fold({10: list(before), 11: list(now)}, 11).suspended_until_round > 11
    assert is_suspended is (conviction is not Conviction.NONE)


def test_conduct_class_leaves_the_window_like_a_fail() -> None:
    assert fold({10: [Verdict.CLASS]}, 10) == Conduct(class_rounds=(10,))
    assert fold({10: [Verdict.CLASS], 22: [Verdict.CLASS]}, 22) == Conduct(class_rounds=(22,))
    assert fold({10: [Verdict.CLASS]}, 22) == Conduct()


def test_conduct_strike_that_was_used_up_convicts_nobody_again() -> None:
    rounds = {10: [Verdict.FAIL], 11: [Verdict.CLASS], 15: [Verdict.FAIL], 16: [Verdict.CLASS]}
    ends = [fold(rounds, through).suspended_until_round for through in (11, 15, 16)]

    assert ends[0] == ends[1] < ends[2]
    assert all(a <= b for a, b in pairwise(ends))
