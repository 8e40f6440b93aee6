"""Routing, the board of nodes, admission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from emcd.errors import RecoverableError
from emcd.inference.manifest import EmbeddingManifest, EngineManifest, canonical_json
from emcd.proto.messages import NodeStatus
from emcd.proto.openai import Endpoint
from emcd.testing import make_key
from emcd.types import Address, ParticipantRole
from emcd_hub.nodes.board import NodeBoard, NodeEntry
from emcd_hub.nodes.registry import NodeRegistry, Registered
from emcd_hub.nodes.routing import NoRoute, choose_node
from emcd_hub.nodes.status import ModelInfo, read_manifest

EMBED = Endpoint.EMBEDDINGS
INFO = ModelInfo(b"h" * 32, "m", frozenset({EMBED}), 256)


@dataclass
class Candidate:
    address: Address
    free: int
    last_used: int = 0


def node(name: str, free: int, last_used: int = 0) -> Candidate:
    return Candidate(make_key(name).address, free, last_used)


def test_freest_node_wins_and_the_longest_unused_among_equals() -> None:
    a, b, c = node("a", 3, 5), node("b", 7, 9), node("c", 7, 2)
    assert choose_node([a, b, c]) is c
    assert choose_node([a, b]) is b


def test_choice_and_exclusion_are_heeded() -> None:
    a, b = node("a", 3), node("b", 7)
    assert choose_node([a, b], only=[a.address]) is a
    assert choose_node([a, b], exclude=[b.address]) is a
    assert choose_node([a, b], only=[a.address], exclude=[a.address]) is NoRoute.NONE


def test_nobody_and_all_busy_are_told_apart() -> None:
    assert choose_node([]) is NoRoute.NONE
    assert choose_node([node("a", 0), node("b", -1)]) is NoRoute.FULL


def test_among_many_a_few_are_drawn_and_a_free_one_is_still_found() -> None:
    nodes = [node(f"n{i}", 0) for i in range(99)] + [node("free", 1)]
    assert choose_node(nodes, draw=lambda n: 0) is nodes[-1]
    nodes[3].free = 5
    assert choose_node(nodes, draw=lambda n: 3) is nodes[3]


class Link:
    def __init__(self, name: str) -> None:
        self.address = make_key(name).address


def online(board: NodeBoard, name: str, capacity: int = 2, now_ms: int = 0) -> NodeEntry:
    entry = board.join(cast("Any", Link(name)))
    show(board, entry, capacity, now_ms)
    return entry


def show(board: NodeBoard, entry: NodeEntry, capacity: int, now_ms: int) -> None:
    status = NodeStatus(entry.address, entry.address, 1, now_ms, (), capacity, 0, "", "")
    board.apply_status(entry, status, [INFO], now_ms)


def test_node_without_a_fresh_status_is_no_candidate() -> None:
    board = NodeBoard(1000)
    entry = board.join(cast("Any", Link("a")))
    assert board.candidates(EMBED, "m") == []
    show(board, entry, 2, now_ms=0)
    assert board.candidates(EMBED, "m") == [entry]
    assert board.expire(1000) == []
    assert board.expire(1001) == [entry]
    assert board.candidates(EMBED, "m") == []
    assert not board.knows_model(EMBED, "m")
    show(board, entry, 2, now_ms=1100)
    assert board.candidates(EMBED, "m") == [entry]


def test_newer_tunnel_replaces_the_older_one() -> None:
    board = NodeBoard(1000)
    old, new = online(board, "a"), online(board, "a")
    assert board.candidates(EMBED, "m") == [new]
    board.leave(old)
    assert board.find(new.address) is new
    board.leave(new)
    assert board.list_entries() == []
    assert board.knows_model(EMBED, "m")


async def test_waiting_calls_get_room_in_their_order() -> None:
    board = NodeBoard(1000)
    entry = online(board, "a", capacity=1)
    board.take(entry)
    order: list[int] = []

    async def wait(number: int) -> None:
        await board.wait_room(EMBED, "m")
        board.take(entry)
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        assert board.must_queue(EMBED, "m")
        for count in range(1, 4):
            board.give_back(entry)
            assert board.must_queue(EMBED, "m")
            await wait_all_tasks_blocked()
            assert len(order) == count
    assert order == [0, 1, 2]
    assert not board.must_queue(EMBED, "m")
    assert board.count_waiting() == 0


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    board = NodeBoard(1000)
    entry = online(board, "a", capacity=1)
    board.take(entry)
    with trio.move_on_after(0):
        await board.wait_room(EMBED, "m")
    assert not board.must_queue(EMBED, "m")
    board.give_back(entry)
    assert entry.free == 1


def test_manifest_says_what_is_served() -> None:
    embedder = EmbeddingManifest(name="e", files={}, graph="g", dimension=3, max_tokens=256)
    info = read_manifest(canonical_json(embedder))
    assert (info.name, info.endpoints, info.max_input_tokens) == ("e", frozenset({EMBED}), 256)
    engine = read_manifest(canonical_json(EngineManifest(name="x")))
    assert (engine.endpoints, engine.max_input_tokens) == (frozenset(Endpoint), None)


class Chain:
    def __init__(self) -> None:
        self.rows: list[Registered] = []
        self.reads = 0
        self.broken = False

    async def fetch(self) -> list[Registered]:
        self.reads += 1
        if self.broken:
            raise RecoverableError("EMC-1502", "away")
        return self.rows


def staked(name: str, stake: int, role: ParticipantRole = ParticipantRole.COMPUTE) -> Registered:
    return Registered(make_key(name).address, make_key(f"w {name}").address, role, stake, 0, "")


@pytest.fixture
def chain() -> Chain:
    return Chain()


async def test_only_staked_compute_nodes_are_admitted(chain: Chain) -> None:
    chain.rows = [staked("good", 10), staked("poor", 9), staked("judge", 99, ParticipantRole.VALIDATOR)]
    registry = NodeRegistry(chain.fetch, minimum_wei=10, listed=(), only_listed=False)
    assert await registry.may_join(make_key("good").address, ParticipantRole.COMPUTE)
    for name in ("poor", "judge", "nobody"):
        assert not await registry.may_join(make_key(name).address, ParticipantRole.COMPUTE)
    assert not await registry.may_join(make_key("good").address, ParticipantRole.ROUTER)
    assert registry.has_wallet(make_key("w good").address)


async def test_stranger_asks_the_chain_once_a_second_at_most(chain: Chain) -> None:
    registry = NodeRegistry(chain.fetch, minimum_wei=10, listed=(), only_listed=False)
    for _ in range(50):
        assert not await registry.may_join(make_key("x").address, ParticipantRole.COMPUTE)
    assert chain.reads == 1


async def test_list_works_without_the_chain(chain: Chain) -> None:
    chain.broken = True
    listed = make_key("mine").address
    open_registry = NodeRegistry(chain.fetch, minimum_wei=10, listed=[listed], only_listed=False)
    assert await open_registry.may_join(listed, ParticipantRole.COMPUTE)
    assert not await open_registry.may_join(make_key("x").address, ParticipantRole.COMPUTE)
    chain.broken, chain.rows = False, [staked("x", 99)]
    closed = NodeRegistry(chain.fetch, minimum_wei=10, listed=[listed], only_listed=True)
    await closed.refresh()
    assert not await closed.may_join(make_key("x").address, ParticipantRole.COMPUTE)
    assert closed.may_stay(listed)
    assert not closed.may_stay(make_key("x").address)
