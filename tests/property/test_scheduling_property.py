"""What a choice promises, whatever the nodes and the wish."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emcd.scheduling.breaker import Breaker, BreakerState
from emcd.scheduling.choice import Pool, choose
from emcd.scheduling.ring import Ring, session_key
from emcd.types import Address
from tests.support.stub_candidate import StubCandidate, many_stubs

KEYS = [session_key(f"session {number}") for number in range(2000)]


@st.composite
def nodes_of(draw: st.DrawFn) -> list[StubCandidate]:
    number = draw(st.integers(0, 60))
    nodes = many_stubs(number)
    for node in nodes:
        node.capacity = draw(st.integers(0, 4))
        node.in_flight = draw(st.integers(0, 5))
        node.well = draw(st.booleans())
        node.last_used = draw(st.integers(0, 99))
        node.slowness = draw(st.sampled_from([0.0, 0.1, 9.0]))
    return nodes


@given(nodes_of(), st.data())
def test_choice_respects_the_wish_and_finds_who_fits(nodes: list[StubCandidate], data: st.DataObject) -> None:
    addresses = [node.address for node in nodes] or [Address("0x" + "f" * 40)]
    only = data.draw(st.lists(st.sampled_from(addresses), max_size=4))
    failed = set(data.draw(st.lists(st.sampled_from(addresses), max_size=20)))
    key = data.draw(st.none() | st.integers(0, 2**64 - 1))
    by_speed = data.draw(st.booleans())
    random = data.draw(st.randoms(use_true_random=False))
    chosen = choose(
        Pool(nodes),
        only=only,
        fits=lambda node: node.address not in failed,
        key=key,
        slowness=(lambda node: node.slowness) if by_speed else None,
        draw=random.randrange,
    )
    fitting = [n for n in nodes if n.address not in failed and (not only or n.address in only)]
    if chosen is None:
        assert not any(n.spare > 0 if only else n.room > 0 for n in fitting)
        return
    assert chosen in fitting
    assert chosen.spare > 0
    if not chosen.well:
        assert only
        assert not any(n.room > 0 for n in fitting)


@given(st.integers(2, 40), st.integers(0, 39))
def test_home_of_a_key_changes_only_with_the_node_that_comes_or_goes(number: int, which: int) -> None:
    nodes = many_stubs(number)
    ring = Ring(nodes)
    before = [ring.home(key) for key in KEYS]
    leaver = nodes[which % number]
    ring.remove(leaver)
    assert ring._points == Ring([node for node in nodes if node is not leaver])._points
    for home, after in zip(before, map(ring.home, KEYS), strict=True):
        assert after is not leaver
        assert after is home or home is leaver
    ring.add(leaver)
    assert [ring.home(key) for key in KEYS] == before


@given(st.integers(4, 40))
def test_one_more_node_moves_about_one_key_in_n(number: int) -> None:
    nodes = many_stubs(number)
    ring = Ring(nodes[:-1])
    before = [ring.home(key) for key in KEYS]
    ring.add(nodes[-1])
    moved = sum(old is not ring.home(key) for old, key in zip(before, KEYS, strict=True))
    assert moved <= 3 * len(KEYS) / number


@given(st.lists(st.sampled_from(["ok", "fault", "poll"]), max_size=300))
def test_breaker_is_open_only_for_a_time_and_by_faults(events: list[str]) -> None:
    breaker = Breaker()
    now = 0.0
    faults = 0
    for event in events:
        now += 0.3
        before = breaker.state
        if event == "ok":
            breaker.success()
            assert breaker.state in (before, BreakerState.CLOSED)
        elif event == "fault":
            faults += 1
            breaker.fault(now, 0.5)
        else:
            breaker.poll(now)
        if breaker.state is BreakerState.OPEN:
            assert faults
            assert breaker.reopens_at <= now + 75
        if before is BreakerState.OPEN and breaker.state is not before:
            assert now >= breaker.reopens_at
