"""When a round may leave the ledger."""

from __future__ import annotations

import pytest

from emcd.proto.params import NetworkParams
from emcd_hub.rounds.retention import is_archivable

PARAMS = NetworkParams(0, carry_rounds=12, void_after_rounds=10, challenge_delay_rounds=6)


@pytest.mark.parametrize(
    ("age", "is_paid", "may"),
    [(14, True, False), (15, True, True), (15, False, False), (30, False, False), (31, False, True)],
)
def test_round_is_archivable_when_nothing_can_carry_its_calls(age: int, is_paid: bool, may: bool) -> None:
    assert is_archivable(100, 100 + age, PARAMS, is_paid=is_paid) is may
