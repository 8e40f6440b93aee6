"""When a round may leave the ledger."""

from __future__ import annotations

import pytest

from emcd.proto.params import NetworkParams
from emcd_hub.rounds.retention import is_archivable, open_round

PARAMS = NetworkParams(0, carry_rounds=12, void_after_rounds=10, challenge_delay_rounds=6)


@pytest.mark.parametrize(
    ("age", "is_paid", "may"),
    [(14, True, False), (15, True, True), (15, False, False), (30, False, False), (31, False, True)],
)
def test_round_is_archivable_when_nothing_can_carry_its_calls(age: int, is_paid: bool, may: bool) -> None:
    assert is_archivable(100, 100 + age, PARAMS, is_paid=is_paid) is may


@pytest.mark.parametrize(("clock", "closed", "reckoned"), [(10, 8, 10), (10, 9, 10), (22, 8, 10), (3, -1, 1)])
def test_open_round_waits_for_rounds_that_are_still_to_be_closed(
    clock: int, closed: int, reckoned: int
) -> None:
    assert open_round(clock, closed) == reckoned
