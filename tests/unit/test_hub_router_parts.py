"""Who may join as a router, what waits for a node behind one, and which status is the newest."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from emcd.errors import RecoverableError
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS, Address, ParticipantRole
from emcd_hub.nodes.newest import KEEP_MS, NewestStatus
from emcd_hub.nodes.registry import NodeRegistry, Registered
from emcd_hub.routers.admission import RouterAdmission
from emcd_hub.routers.link import FIRST_MESSAGES, QUEUE_BYTES, QUEUE_MESSAGES, QueueRoom, RoutedLink

ROUTER, NODE = make_key("router").address, make_key("node").address
MINIMUM = 100


def row(role: ParticipantRole = ParticipantRole.ROUTER, stake_wei: int = MINIMUM) -> Registered:
    return Registered(ROUTER, ZERO_ADDRESS, role, stake_wei, 0, "")


def make_admission(
    rows: list[Registered], *, listed: tuple[Address, ...] = (), only_listed: bool = False
) -> tuple[RouterAdmission, list[int]]:
    """And how often the chain was asked."""
    asked: list[int] = []

    async def fetch() -> list[Registered]:
        await trio.lowlevel.checkpoint()
        asked.append(1)
        if not rows:
            raise RecoverableError("EMC-1502", "no endpoint answers")
        return rows

    registry = NodeRegistry(fetch, minimum_wei=1, listed=(), only_listed=only_listed)
    return RouterAdmission(registry, minimum_wei=MINIMUM, listed=listed, only_listed=only_listed), asked


async def test_router_that_is_bound_and_staked_is_admitted() -> None:
    admission, asked = make_admission([row()])
    assert await admission.may_join(ROUTER)
    assert await admission.may_join(ROUTER)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "rows",
    [[row(stake_wei=MINIMUM - 1)], [row(ParticipantRole.COMPUTE)], [row(ParticipantRole.HUB)], []],
    ids=["unstaked", "bound as a node", "bound as a hub", "the chain is away"],
)
async def test_router_that_is_not_bound_and_staked_is_not(rows: list[Registered]) -> None:
    admission, _ = make_admission(rows)
    assert not await admission.may_join(ROUTER)
    assert not admission.may_stay(ROUTER)


async def test_router_of_nobody_is_not_admitted() -> None:
    admission, _ = make_admission([row()])
    assert not await admission.may_join(NODE)


async def test_listed_router_is_admitted_whatever_the_chain_says() -> None:
    admission, asked = make_admission([], listed=(ROUTER,))
    assert await admission.may_join(ROUTER)
    assert asked == []


async def test_hub_that_takes_only_those_on_its_list_asks_no_chain() -> None:
    admission, asked = make_admission([row()], only_listed=True)
    await admission._registry.refresh()
    assert not await admission.may_join(ROUTER)
    assert len(asked) == 1


async def test_minimum_that_rises_sends_a_router_away() -> None:
    admission, _ = make_admission([row()])
    assert await admission.may_join(ROUTER)
    admission.minimum_wei = MINIMUM + 1
    assert not admission.may_stay(ROUTER)


async def test_chain_is_asked_once_a_second_at_most(autojump_clock: MockClock) -> None:
    admission, asked = make_admission([row(stake_wei=0)])
    for _ in range(5):
        assert not await admission.may_join(ROUTER)
    assert len(asked) == 1
    await trio.sleep(1.0)
    assert not await admission.may_join(ROUTER)
    assert len(asked) == 2


# ------------------------------------------------------------------------------ what waits


class Peer:
    address = ROUTER
    live = True
    on_live = None

    def call(self, meta: bytes, body: bytes) -> Any:
        raise AssertionError("a call went out")

    submit = call


def make_link(room: QueueRoom | None = None) -> RoutedLink:
    peer: Any = Peer()
    return RoutedLink(peer, NODE, room or QueueRoom())


async def test_messages_are_read_in_order_and_first_the_first_once_more() -> None:
    link = make_link()
    assert link.put(b"status")
    assert link.put(b"batch")
    first = await anext(link)
    link.join(first)
    link.close()
    assert [message async for message in link] == [b"status", b"batch"]


def test_little_waits_of_a_node_that_has_not_joined_and_more_of_one_that_has() -> None:
    link = make_link()
    assert [link.put(b"x") for _ in range(FIRST_MESSAGES + 1)] == [True] * FIRST_MESSAGES + [False]
    link.join(b"first")
    more = QUEUE_MESSAGES - FIRST_MESSAGES - 1
    assert [link.put(b"x") for _ in range(more + 1)] == [True] * more + [False]


def test_bytes_that_wait_are_bounded_for_each_node_and_for_all() -> None:
    assert not make_link().put(bytes(QUEUE_BYTES + 1))
    room = QueueRoom(10)
    first, second = make_link(room), make_link(room)
    assert first.put(bytes(8))
    assert not second.put(bytes(3))
    first.discard()
    assert second.put(bytes(3))


async def test_link_that_is_closed_takes_no_call_and_no_message() -> None:
    link = make_link()
    link.close()
    assert not link.put(b"x")
    assert not link.live
    for begin in (lambda: link.call(b"", b""), lambda: link.submit(b"", b"", lambda _: None, max_bytes=1)):
        with pytest.raises(RecoverableError, match="EMC-1412"):
            begin()
    with pytest.raises(RecoverableError, match="EMC-1412"):
        await link.send_control(b"")


def test_link_is_live_while_router_and_node_are() -> None:
    link, told = make_link(), []
    peer: Any = link._peer
    link.on_live = told.append
    link.set_live(False)
    link.set_live(True)
    peer.live = False
    link.tell_live()
    peer.live = True
    link.tell_live()
    assert told == [False, True, False, True]


def test_node_that_has_left_is_out_of_routing_at_once_and_told_once() -> None:
    link, told = make_link(), []
    link.on_live = told.append
    link.put(b"not read yet")
    link.close()
    link.close()
    assert told == [False]


# ------------------------------------------------------------------------------ the newest status


def test_only_what_is_newer_than_all_before_counts() -> None:
    newest = NewestStatus()
    assert newest.is_newer(NODE, 1)
    newest.note(NODE, 5, 0)
    assert [newest.is_newer(NODE, sequence) for sequence in (4, 5, 6)] == [False, False, True]
    newest.note(NODE, 3, 0)
    assert not newest.is_newer(NODE, 5)
    assert newest.is_newer(ROUTER, 1)


def test_status_is_remembered_for_as_long_as_an_older_one_could_pass_for_fresh() -> None:
    newest = NewestStatus()
    newest.note(NODE, 5, 1000)
    newest.forget(1000 + KEEP_MS)
    assert not newest.is_newer(NODE, 5)
    newest.forget(1001 + KEEP_MS)
    assert newest.is_newer(NODE, 5)
