"""Strategies, homes on the ring, and the order in which they decide."""

from __future__ import annotations

import pytest

from emcd.scheduling.choice import Pool, choose
from emcd.scheduling.ring import PREFIX_BYTES, prefix_key, session_key
from emcd.scheduling.strategy import fastest, least_loaded
from tests.support.stub_candidate import StubCandidate, many_stubs, stub

START = b'"messages":'


def test_nobody_is_chosen_where_all_are_full_or_broken() -> None:
    assert choose(Pool[StubCandidate]()) is None
    assert choose(Pool([stub("a", 2, 2), stub("b", 0), stub("c", well=False)])) is None
    assert choose(Pool([stub("a", 2, 2)]), key=7) is None
    assert choose(Pool([stub("a", 2, 2), stub("b", 2, 2)]), key=7) is None
    assert choose(Pool([stub("a", 2, 2)]), slowness=lambda node: node.slowness) is None


def test_freest_node_wins_and_the_longest_unused_among_equals() -> None:
    a, b, c = stub("a", 3, last_used=5), stub("b", 7, last_used=9), stub("c", 7, last_used=2)
    assert least_loaded([a, b, c]) is c
    assert least_loaded([a, b]) is b


def test_what_does_not_fit_is_never_chosen_however_free() -> None:
    a, b = stub("a", 3), stub("b", 7)
    pool = Pool([a, b])
    for key in (None, *range(0, 1 << 64, 1 << 60)):
        assert choose(pool, fits=lambda node: node is a, key=key) is a
    assert choose(pool, fits=lambda node: node is a, slowness=lambda node: node.slowness) is a
    assert choose(pool, fits=lambda node: False, key=1) is None


def test_among_many_a_few_are_drawn_and_a_free_one_is_still_found() -> None:
    nodes = [stub(f"n{i}", 0) for i in range(99)] + [stub("free", 1)]
    assert least_loaded(nodes, draw=lambda n: 0) is nodes[-1]
    nodes[3].capacity = 5
    assert least_loaded(nodes, draw=lambda n: 3) is nodes[3]
    assert fastest(nodes, lambda node: 0.0, draw=lambda n: 0) in (nodes[-1], nodes[3])


def test_named_node_is_chosen_well_or_not_but_never_full() -> None:
    a, b, c = stub("a", well=False), stub("b", 4, 3), stub("c")
    pool = Pool([a, b, c])
    assert choose(pool, only=[a.address, b.address]) is b
    assert choose(pool, only=[a.address]) is a
    a.in_flight = a.capacity
    assert choose(pool, only=[a.address]) is None
    assert choose(pool, only=[stub("away").address]) is None
    assert choose(pool, only=[b.address, c.address], fits=lambda node: node is b) is b


def test_faster_node_gets_more_and_the_unmeasured_one_is_tried() -> None:
    slow, quick, new = stub("slow", slowness=3.0), stub("quick", slowness=1.0), stub("new")
    by_speed = [slow, quick]
    given = {"slow": 0, "quick": 0}
    for _ in range(8):
        chosen = fastest(by_speed, lambda node: node.slowness)
        assert chosen is not None
        chosen.in_flight += 1
        given["quick" if chosen is quick else "slow"] += 1
    assert given == {"slow": 2, "quick": 6}
    assert fastest([slow, quick, new], lambda node: node.slowness) is new


def test_calls_of_a_key_go_to_one_node_until_it_is_half_full() -> None:
    nodes = [stub(f"n{i}") for i in range(4)]
    pool = Pool(nodes)
    key = session_key("a chat")
    home = choose(pool, key=key)
    assert home is not None
    for _ in range(4):
        assert choose(pool, key=key) is home
        home.in_flight += 1
    assert choose(pool, key=key) is not home
    home.in_flight = 3
    assert choose(pool, key=key) is home
    home.well = False
    second = choose(pool, key=key)
    assert second is not home
    home.well = True
    pool.remove(home)
    assert choose(pool, key=key) is second


def test_hot_key_spreads_over_all_nodes_within_the_load_bound() -> None:
    nodes = [stub(f"n{i}", 16) for i in range(8)]
    pool = Pool(nodes)
    for number in range(8 * 16):
        chosen = choose(pool, key=session_key("hot"))
        assert chosen is not None
        chosen.in_flight += 1
        average = (number + 1) / 8
        assert max(node.in_flight for node in nodes) <= max(8, average * 1.25 + 1)
    assert all(node.in_flight == 16 for node in nodes)


def test_busy_home_of_a_busy_network_keeps_its_keys() -> None:
    """More than half full, and no fuller than the others: there is no reason to leave."""
    nodes = many_stubs(6, capacity=10)
    pool = Pool(nodes)
    for node in nodes:
        node.in_flight = 7
    home = pool.ring.home(session_key("x"))
    assert choose(pool, key=session_key("x")) is home


def test_prompt_that_is_too_short_has_no_key() -> None:
    head = b'{"model":"m","messages":'
    assert prefix_key(head + b"x" * (PREFIX_BYTES - 1), START) is None
    assert prefix_key(head + b"x" * PREFIX_BYTES, START) is not None
    assert prefix_key(b"", START) is None


def test_key_is_of_the_prompts_beginning_alone() -> None:
    prompt = bytes(range(256)) * 5
    key = prefix_key(b'{"model":"m","messages":' + prompt, START)
    assert key == prefix_key(b'{"user":"someone else","messages":' + prompt + b"more", START)
    assert key != prefix_key(b'{"model":"m","messages":' + prompt[1:], START)
    assert prefix_key(prompt, START) is not None


@pytest.mark.parametrize("name", ["", "a", "ä" * 256, "\ud800"])
def test_any_session_name_has_a_place(name: str) -> None:
    assert 0 <= session_key(name) < 1 << 64


def test_pool_forgets_a_node_wholly() -> None:
    a, b = stub("a"), stub("b")
    pool = Pool([a, b])
    assert pool.ring.home(0) is not None
    pool.remove(a)
    assert pool.find(a.address) is None
    assert {pool.ring.home(place << 59) for place in range(32)} == {b}
    pool.remove(b)
    assert pool.ring.home(0) is None
    assert choose(pool, key=3) is None
