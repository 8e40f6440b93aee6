"""One router's session at the hub: what a hostile router, or one node's fault, can't do to the others."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from emcd.clock import SystemClock
from emcd.errors import RecoverableError
from emcd.log import get_logger
from emcd.proto.control import (
    NoticeMessage,
    RelayGone,
    RelayMessage,
    RelayTaken,
    RouterStatusMessage,
    decode_router_control,
    encode,
)
from emcd.proto.messages import RouterStatus
from emcd.testing import make_key
from emcd.types import Address
from emcd_hub.nodes.newest import NewestStatus
from emcd_hub.routers import session as session_module
from emcd_hub.routers.session import CHECKPOINT_EACH, OUTBOX_BYTES, RouterSession
from tests.support.hub_world import DOMAIN, HUB_KEY
from tests.support.router_world import make_status

ROUTER = make_key("router x")
GOOD = [make_key(f"good {number}") for number in range(3)]
BAD = make_key("bad")


class Peer(AsyncIterator[bytes]):
    """The router's tunnel: says what the test puts into it."""

    address = ROUTER.address
    live = True
    on_live: Callable[[bool], None] | None = None

    def __init__(self) -> None:
        self.reads = True
        self.heard: list[Any] = []
        self._said: deque[bytes] = deque()
        self._arrived = trio.Event()

    def say(self, *messages: Any) -> None:
        self._said.extend(encode(message) for message in messages)
        self._arrived.set()

    def controls(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._said:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._said.popleft()

    async def send_control(self, message: bytes) -> None:
        if not self.reads:
            await trio.sleep_forever()
        self.heard.append(decode_router_control(message))

    def codes(self, kind: type[NoticeMessage] | type[RelayGone]) -> list[str]:
        return [message.code for message in self.heard if isinstance(message, kind)]

    def taken(self) -> list[Address]:
        return [message.node for message in self.heard if isinstance(message, RelayTaken)]


class Gate:
    """Every node is served for ever, but those whose handler fails."""

    def __init__(self) -> None:
        self.newest = NewestStatus()
        self.fault: Exception | None = None
        self.serving: set[Address] = set()

    def has_just_come(self, _: Address) -> bool:
        return False

    async def serve(self, link: Any, _: Address) -> str:
        if link.address == BAD.address and self.fault is not None:
            async with trio.open_nursery():
                raise self.fault
        self.serving.add(link.address)
        try:
            await link.closed.wait()
        finally:
            self.serving.discard(link.address)
        return ""


class World:
    def __init__(self) -> None:
        self.peer, self.gate = Peer(), Gate()
        self.admits = True
        peer: Any = self.peer
        gate: Any = self.gate
        self.session = RouterSession(
            peer, hub=HUB_KEY.address, domain=DOMAIN, gate=gate, authorize=self._authorize, max_nodes=50,
            clock=SystemClock(), log=get_logger(),
        )  # fmt: skip

    async def _authorize(self, _: Address, __: Any) -> bool:
        await trio.lowlevel.checkpoint()
        return self.admits


@contextmanager
def counted_handling(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many messages were handled."""
    handled: list[int] = []
    handle = RouterSession._handle

    def count(self: RouterSession, message: Any, nursery: trio.Nursery) -> None:
        handled.append(1)
        handle(self, message, nursery)

    monkeypatch.setattr(RouterSession, "_handle", count)
    yield handled


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    made = World()
    nursery.start_soon(made.session.run)
    await wait_all_tasks_blocked()
    return made


# ------------------------------------------------------------------------------ hostile routers


@pytest.mark.parametrize("name", ["x" * 100_000, "", GOOD[0].address.lower()], ids=["long", "none", "lower"])
async def test_node_whose_name_is_no_address_is_the_routers_fault(world: World, name: str) -> None:
    world.peer.say(RelayMessage(Address(name), b"junk"))
    await wait_all_tasks_blocked()

    assert world.session.links == {}
    assert {code[:7] for code in world.peer.codes(NoticeMessage)} == {"EMC-149"}
    assert world.peer.codes(RelayGone) == []


async def test_what_waits_for_a_router_that_does_not_read_is_bounded_in_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.peer.reads = False
    message = NoticeMessage("EMC-0000", "x" * 400)
    room = OUTBOX_BYTES // len(encode(message))
    assert room < session_module.OUTBOX
    for _ in range(room):
        world.session._post(message)
    assert world.session.code == ""
    world.session._post(message)
    assert world.session.code == "EMC-1730"


async def test_room_for_what_waits_comes_back_when_the_router_reads(world: World) -> None:
    message = NoticeMessage("EMC-0000", "x" * 400)
    half = OUTBOX_BYTES // len(encode(message)) // 2
    for _ in range(5):
        for _ in range(half):
            world.session._post(message)
        await wait_all_tasks_blocked()
    assert world.session.code == ""
    assert len(world.peer.heard) == 5 * half


async def test_nodes_that_have_not_joined_raise_no_allowance(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(session_module, "BURST", 10.0)
    world = World()
    world.admits = False
    async with trio.open_nursery() as nursery:
        with counted_handling(monkeypatch) as handled:
            nursery.start_soon(world.session.run)
            await wait_all_tasks_blocked()
            monkeypatch.setattr(world.session, "_authorize", _never)
            world.peer.say(*(RelayMessage(key.address, make_status(key)) for key in (*GOOD, BAD)))
            await trio.sleep(1)
            before = len(handled)
            world.peer.say(*(RelayGone(HUB_KEY.address, "EMC-1412") for _ in range(400)))
            await trio.sleep(2)
            assert before == 4
            assert len(handled) - before <= 10 + 2 * session_module.MESSAGES_PER_S + 2
        nursery.cancel_scope.cancel()


async def _never(_: Address, __: Any) -> bool:
    await trio.sleep_forever()
    raise AssertionError


async def test_messages_that_wait_are_handled_with_pauses_for_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted_handling(monkeypatch) as handled:
        world.peer.say(*(RelayGone(BAD.address, "EMC-1412") for _ in range(10 * CHECKPOINT_EACH)))
        most, before = 0, 0
        while len(handled) < 10 * CHECKPOINT_EACH:
            await trio.lowlevel.checkpoint()
            most, before = max(most, len(handled) - before), len(handled)
    assert most <= 2 * CHECKPOINT_EACH


async def test_statuses_of_a_router_are_checked_at_a_pace(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []

    def check(*_: Any, **__: Any) -> RouterStatus:
        checked.append(1)
        return status

    monkeypatch.setattr(session_module, "require_router_status", check)
    now_ms = SystemClock().now_ms()
    status = RouterStatus(ROUTER.address, HUB_KEY.address, now_ms, now_ms, 1, 0, "", "")
    world.peer.say(*(RouterStatusMessage(status, bytes(65)) for _ in range(50)))
    await wait_all_tasks_blocked()

    assert 1 <= len(checked) <= 6
    assert world.peer.heard == []


# ------------------------------------------------------------------------------ one node's fault


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (RuntimeError("a stray fault"), "EMC-1427"),
        (RecoverableError("EMC-1207", "a slow read"), "EMC-1207"),
        (ExceptionGroup("", [RecoverableError("EMC-1207", ""), KeyError("x")]), "EMC-1427"),
    ],
    ids=["stray", "numbered", "both"],
)
async def test_stray_fault_of_one_node_costs_that_node_alone(
    world: World, fault: Exception, code: str
) -> None:
    world.gate.fault = fault
    world.peer.say(*(RelayMessage(key.address, make_status(key)) for key in (*GOOD, BAD)))
    await wait_all_tasks_blocked(0.05)

    assert world.gate.serving == {key.address for key in GOOD}
    assert set(world.session.links) == world.gate.serving
    assert world.peer.codes(RelayGone) == [code]
    assert world.session.code == ""


# ------------------------------------------------------------------------------ sessions of a node


async def test_late_word_of_an_older_session_of_a_node_ends_no_newer_one(world: World) -> None:
    key = GOOD[0]
    world.peer.say(RelayMessage(key.address, make_status(key), 7))
    await wait_all_tasks_blocked(0.05)
    world.peer.say(RelayGone(key.address, "EMC-1412", "", 6), RelayMessage(key.address, b"garbage", 6))
    await wait_all_tasks_blocked(0.05)
    still = world.session.links[key.address]
    world.peer.say(RelayGone(key.address, "EMC-1412", "", 7))
    await wait_all_tasks_blocked(0.05)

    assert still.number == 7
    assert [message.number for message in world.peer.heard if isinstance(message, RelayTaken)] == [7]
    assert still.closed.is_set()
    assert key.address not in world.session.links


async def test_newer_session_of_a_node_takes_the_place_of_the_older(world: World) -> None:
    key = GOOD[0]
    world.peer.say(RelayMessage(key.address, make_status(key), 7))
    await wait_all_tasks_blocked(0.05)
    older = world.session.links[key.address]
    await trio.sleep(0.005)  # the sequence is the clock's
    world.peer.say(RelayMessage(key.address, make_status(key), 8))
    await wait_all_tasks_blocked(0.05)

    assert older.closed.is_set()
    assert world.session.links[key.address].number == 8
    assert world.peer.taken() == [key.address] * 2
    assert world.peer.codes(RelayGone) == []
