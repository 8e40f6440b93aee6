"""How often a node may change its models."""

from __future__ import annotations

from emcd.testing import make_key
from emcd_hub.nodes.pace import BURST, ModelPace

NODE, OTHER = make_key("a").address, make_key("b").address


def test_burst_then_one_change_in_a_while() -> None:
    pace = ModelPace(1_000)
    assert [pace.take(NODE, 0) for _ in range(BURST + 2)] == [True] * BURST + [False] * 2
    assert pace.take(OTHER, 0)
    assert not pace.take(NODE, 999)
    assert pace.take(NODE, 1_000)
    assert not pace.take(NODE, 1_001)


def test_forgetting_gives_nobody_more_than_time_does() -> None:
    pace = ModelPace(1_000)
    for _ in range(BURST):
        pace.take(NODE, 0)
    pace.forget(500)
    assert not pace.take(NODE, 500)
    pace.forget(BURST * 1_000)
    assert pace.take(NODE, BURST * 1_000)


def test_clock_that_goes_back_gives_nothing() -> None:
    pace = ModelPace(1_000)
    for _ in range(BURST):
        pace.take(NODE, 10_000)
    assert not pace.take(NODE, 5_000)
