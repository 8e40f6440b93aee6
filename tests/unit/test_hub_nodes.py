"""The board of nodes, what it remembers, admission."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from emcd.errors import RecoverableError
from emcd.inference.manifest import EmbeddingManifest, EngineManifest, canonical_json
from emcd.proto.messages import NodeStatus
from emcd.proto.openai import Endpoint
from emcd.proto.openai_shape import BASIC_ENDPOINTS
from emcd.testing import make_key
from emcd.types import ParticipantRole
from emcd_hub.nodes.board import NodeBoard, NodeEntry
from emcd_hub.nodes.known_models import NAMES_PER_NODE, KnownModels
from emcd_hub.nodes.registry import NodeRegistry, Registered
from emcd_hub.nodes.status import ModelInfo, read_manifest

EMBED = Endpoint.EMBEDDINGS
INFO = ModelInfo(b"h" * 32, "m", frozenset({EMBED}), 256)


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


def test_news_of_a_tunnel_that_is_gone_reaches_the_newest_one() -> None:
    board = NodeBoard(1000)
    old = online(board, "a")
    new = online(board, "a")
    for _ in range(5):
        old.record.breaker.fault(0.0, 0.0)
    board.restate(old)
    board.set_live(old, True)
    assert (old.room, new.room) == (0, 0)
    board.leave(new)
    board.restate(old)
    board.reopen(99.0)
    assert board.half_open == set()
    assert sum(board.count_breakers().values()) == 0


KEY = (EMBED, "m")


def test_room_follows_calls_status_and_link() -> None:
    board = NodeBoard(1000)
    entry = online(board, "a", capacity=2)
    board.take(entry)
    assert (entry.room, entry.spare, entry.in_flight) == (1, 1, 1)
    show(board, entry, 5, now_ms=1)
    assert (entry.room, entry.free) == (4, 4)
    board.set_live(entry, False)
    assert (entry.room, entry.spare, entry.free) == (0, 0, 4)
    board.give_back(entry)
    board.set_live(entry, True)
    assert (entry.room, entry.spare) == (5, 5)
    board.leave(entry)
    assert (entry.room, entry.spare) == (0, 0)


def test_suspended_node_has_room_only_for_who_names_it() -> None:
    board = NodeBoard(1000)
    entry = online(board, "a")
    board.suspend({entry.address})
    assert (entry.room, entry.spare) == (0, 2)
    board.take(entry)
    board.give_back(entry)
    assert (entry.room, entry.spare) == (0, 2)
    board.leave(entry)
    again = online(board, "a")
    assert again.room == 0
    board.suspend(())
    assert again.room == 2


def test_broken_node_gets_one_trial_when_its_pause_is_over() -> None:
    board = NodeBoard(1000)
    entry = online(board, "a", capacity=4)
    for _ in range(5):
        entry.record.breaker.fault(0.0, 0.0)
    board.restate(entry)
    assert (entry.room, entry.spare) == (0, 0)
    board.reopen(0.9)
    assert entry.room == 0
    board.reopen(1.0)
    assert entry.room == 1
    assert board.half_open == {entry}
    board.take(entry)
    assert entry.room == 0
    board.give_back(entry)
    assert entry.room == 1
    entry.record.breaker.success()
    board.restate(entry)
    assert entry.room == 4
    assert board.half_open == set()


def test_node_that_reconnects_is_still_broken_until_the_window_is_over() -> None:
    board = NodeBoard(1000)
    entry = online(board, "a", now_ms=0)
    for _ in range(5):
        entry.record.breaker.fault(0.0, 0.0)
    board.restate(entry)
    board.leave(entry)
    assert online(board, "a", now_ms=500).room == 0
    board.leave(cast("NodeEntry", board.find(entry.address)))
    board.expire(1501)
    assert online(board, "a", now_ms=1501).room == 2


async def wait_in_line(board: NodeBoard, got: list[tuple[int, NodeEntry]], number: int, **rest: Any) -> None:
    entry = await board.line.wait(rest.pop("keys", [KEY]), 60, **rest)
    assert entry is not None
    got.append((number, entry))


async def test_waiting_calls_get_room_in_their_order_and_nobody_overtakes() -> None:
    board = NodeBoard(1000)
    entry = online(board, "a", capacity=1)
    board.take(entry)
    got: list[tuple[int, NodeEntry]] = []
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(wait_in_line, board, got, number)
            await wait_all_tasks_blocked()
        for count in range(1, 4):
            board.give_back(entry)
            assert entry.room == 0, "the room is handed over before anybody else can take it"
            await wait_all_tasks_blocked()
            assert len(got) == count
    assert [number for number, _ in got] == [0, 1, 2]
    assert board.line.waiting == 0


async def test_new_room_by_status_or_a_new_node_goes_to_who_waits() -> None:
    board = NodeBoard(1000)
    entry = online(board, "a", capacity=0)
    got: list[tuple[int, NodeEntry]] = []
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(wait_in_line, board, got, number)
            await wait_all_tasks_blocked()
        show(board, entry, 2, now_ms=1)
        other = online(board, "b", capacity=1)
        assert (entry.in_flight, other.in_flight) == (2, 1)
        board.suspend({other.address})
        board.give_back(other)
        assert other.in_flight == 0
        show(board, entry, 4, now_ms=2)
    got.sort(key=lambda item: item[0])
    assert [found for _, found in got] == [entry, entry, other, entry, entry]


async def test_pinned_call_waits_for_its_node_alone() -> None:
    board = NodeBoard(1000)
    a, b = online(board, "a", capacity=1), online(board, "b", capacity=1)
    board.take(a)
    board.take(b)
    got: list[tuple[int, NodeEntry]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(wait_in_line, board, got, 0, keys=[b.address]))
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(wait_in_line, board, got, 1, fits=lambda entry: entry is not a))
        await wait_all_tasks_blocked()
        nursery.start_soon(wait_in_line, board, got, 2)
        await wait_all_tasks_blocked()
        board.give_back(a)
        board.give_back(b)
        await wait_all_tasks_blocked()
        board.give_back(b)
    assert got == [(2, a), (0, b), (1, b)] or got == [(0, b), (2, a), (1, b)]


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    board = NodeBoard(1000)
    entry = online(board, "a", capacity=1)
    board.take(entry)
    assert await board.line.wait([KEY], 0) is None
    assert board.line.waiting == 0
    board.give_back(entry)
    assert entry.room == 1


def named(name: str, endpoint: Endpoint = EMBED) -> ModelInfo:
    return ModelInfo(name.encode().ljust(32, b"."), name, frozenset({endpoint}), None)


def test_names_that_a_node_makes_the_hub_remember_are_bounded() -> None:
    known = KnownModels()
    honest, liar = make_key("honest").address, make_key("liar").address
    known.note(honest, [named("real")], 0)
    for number in range(1000):
        known.note(liar, [named(f"m{number}-{i}") for i in range(60)], number)
    assert len(known) <= 1 + NAMES_PER_NODE
    assert known.knows(EMBED, "real")
    assert known.knows(EMBED, "m999-59")
    assert not known.knows(Endpoint.CHAT, "real")
    known.forget(1000)
    assert len(known) == 0
    assert known._names == {}


def test_manifest_says_what_is_served() -> None:
    embedder = EmbeddingManifest(name="e", files={}, graph="g", dimension=3, max_tokens=256)
    info = read_manifest(canonical_json(embedder))
    assert (info.name, info.endpoints, info.max_input_tokens) == ("e", frozenset({EMBED}), 256)
    engine = read_manifest(canonical_json(EngineManifest(name="x")))
    assert (engine.endpoints, engine.max_input_tokens) == (BASIC_ENDPOINTS, None)
    assert (engine.quantization, engine.context_tokens) == ("", None)
    told = EngineManifest(name="x", quantization="int4", context_tokens=8192)
    assert read_manifest(canonical_json(told)).quantization == "int4"
    assert read_manifest(canonical_json(told)).context_tokens == 8192


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


@pytest.mark.parametrize("broken", [False, True])
async def test_strangers_who_come_at_once_share_one_look_at_the_chain(chain: Chain, broken: bool) -> None:
    async def fetch() -> list[Registered]:
        await trio.lowlevel.checkpoint()
        chain.broken = broken
        return await chain.fetch()

    registry = NodeRegistry(fetch, minimum_wei=10, listed=(), only_listed=False)
    chain.rows = [staked("good", 10)]
    answers: dict[str, bool] = {}

    async def ask(name: str) -> None:
        answers[name] = await registry.may_join(make_key(name).address, ParticipantRole.COMPUTE)

    async with trio.open_nursery() as nursery:
        for name in ("good", *map(str, range(50))):
            nursery.start_soon(ask, name)
    assert chain.reads == 1
    assert [name for name, admitted in answers.items() if admitted] == ([] if broken else ["good"])


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
