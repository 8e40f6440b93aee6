"""Through whom a node goes: the nearest router that takes it, and the hub itself when none does."""

from __future__ import annotations

from emcd.testing import make_key
from emcd_node.router_choice import LEAVING_REST_S, MEASURE_AGAIN_S, REFUSED_REST_S, Way, WayChoice

NEAR, FAR, LIKE_NEAR = (
    Way(f"wss://{name}.example", make_key(name).address) for name in ("near", "far", "like")
)
HUB = Way("wss://hub.example", make_key("hub").address, is_router=False)
LONGEST_S = 60.0


def make_choice(*routers: Way, direct: Way | None = HUB, now: float = 0.0) -> WayChoice:
    choice = WayChoice(routers, direct, LONGEST_S)
    for way, connect_s in ((NEAR, 0.010), (FAR, 0.100), (LIKE_NEAR, 0.012)):
        choice.note_measured(way, connect_s, now)
    return choice


def draw_all(choice: WayChoice, now: float = 0.0) -> set[Way | None]:
    """What any draw gives."""
    return {choice.choose(now, lambda n, at=at: at % n) for at in range(8)}


def test_nearest_router_is_chosen_and_any_that_is_about_as_near() -> None:
    assert draw_all(make_choice(NEAR, FAR)) == {NEAR}
    assert draw_all(make_choice(NEAR, FAR, LIKE_NEAR)) == {NEAR, LIKE_NEAR}


def test_without_routers_the_hub_is_the_way() -> None:
    assert draw_all(make_choice()) == {HUB}


def test_router_that_failed_rests_and_the_next_one_is_taken() -> None:
    choice = make_choice(NEAR, FAR)
    choice.note_failed(NEAR, 0.0)
    assert draw_all(choice) == {FAR}
    choice.note_failed(FAR, 0.0)
    assert draw_all(choice) == {HUB}


def test_rest_grows_with_failures_up_to_the_longest() -> None:
    choice = make_choice(NEAR)
    rests = []
    for _ in range(9):
        choice.note_failed(NEAR, 0.0)
        rests.append(next(s for s in range(1000) if draw_all(choice, float(s)) == {NEAR}))
    assert rests[:5] == [2, 4, 8, 16, 32]
    assert set(rests[5:]) == {int(LONGEST_S)}


def test_steady_connection_ends_the_growth() -> None:
    choice = make_choice(NEAR)
    for _ in range(5):
        choice.note_failed(NEAR, 0.0)
    choice.note_steady(NEAR)
    choice.note_failed(NEAR, 100.0)
    assert draw_all(choice, 102.0) == {NEAR}


def test_refused_for_good_rests_longer_than_any_failure() -> None:
    choice = make_choice(NEAR)
    choice.note_failed(NEAR, 0.0, for_good=True)
    assert draw_all(choice, LONGEST_S + 1) == {HUB}
    assert draw_all(choice, REFUSED_REST_S) == {NEAR}


def test_router_that_is_leaving_is_left_alone() -> None:
    choice = make_choice(NEAR, FAR)
    choice.note_leaving(NEAR, 0.0)
    assert draw_all(choice) == {FAR}
    assert draw_all(choice, LEAVING_REST_S) == {NEAR}


def test_without_the_direct_way_the_router_that_rests_shortest_is_taken() -> None:
    choice = make_choice(NEAR, FAR, direct=None)
    choice.note_failed(NEAR, 0.0)
    choice.note_failed(FAR, 1.0)
    assert draw_all(choice, 1.5) == {NEAR}


def test_no_way_at_all_is_none() -> None:
    assert draw_all(make_choice(direct=None)) == {None}


def test_measurements_are_wanted_of_what_could_be_taken_and_is_not_known() -> None:
    choice = WayChoice((NEAR, FAR), HUB, LONGEST_S)
    assert choice.list_unmeasured(0.0) == [NEAR, FAR]
    assert not choice.has_known(0.0)
    choice.note_measured(NEAR, 0.01, 0.0)
    choice.note_measured(FAR, None, 0.0)
    assert choice.list_unmeasured(1.0) == []
    assert choice.has_known(1.0)
    assert choice.list_unmeasured(2.0) == [FAR]
    assert choice.list_unmeasured(MEASURE_AGAIN_S + 1) == [NEAR, FAR]
    assert draw_all(choice, 1.0) == {NEAR}


def test_routers_that_stay_keep_what_is_known_of_them() -> None:
    choice = make_choice(NEAR, FAR)
    choice.note_failed(NEAR, 0.0)
    choice.set_routers((NEAR, LIKE_NEAR))
    assert draw_all(choice) == {LIKE_NEAR}
    assert choice.list_unmeasured(0.0) == [LIKE_NEAR]


def test_another_way_is_one_that_could_be_taken_now() -> None:
    assert make_choice(NEAR).has_other(NEAR, 0.0)
    assert not make_choice(NEAR, direct=None).has_other(NEAR, 0.0)
    choice = make_choice(NEAR, FAR, direct=None)
    assert choice.has_other(NEAR, 0.0)
    choice.note_failed(FAR, 0.0)
    assert not choice.has_other(NEAR, 1.0)
    assert not make_choice().has_other(HUB, 0.0)
