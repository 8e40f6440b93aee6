from __future__ import annotations

from emcd.accounting.suspension import Conduct, Strike, advance_conduct
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
