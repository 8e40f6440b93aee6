"""The hub against routers: who may join, what they may bring, and what lies and faults cost whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from emcd.clock import SystemClock
from emcd.errors import RemoteProtocolError
from emcd.net.tunnel import IncomingCall
from emcd.proto.control import (
    CallMeta,
    NoticeMessage,
    RelayGone,
    RelayMessage,
    RoutedMeta,
    decode_part,
    encode,
)
from emcd.types import ZERO_ADDRESS, ParticipantRole
from tests.support.hub_world import (
    HubWorld,
    StubNode,
    node_key,
    post,
    running_world,
)
from tests.support.router_world import (
    ROUTER_KEYS,
    ScriptedRouter,
    add_router,
    answer_call,
    get_routers,
    make_status,
    router_of,
)

ROUTER, OTHER = ROUTER_KEYS[:2]
NODE = node_key(1)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[HubWorld]:
    async with running_world(tmp_path, allowed_routers=(ROUTER.address, OTHER.address)) as made:
        yield made


async def test_node_brought_by_its_own_status_is_served_through_the_router(world: HubWorld) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER, answer=answer_call))
    await router.bring(NODE)
    await world.until(lambda: router_of(world) == ROUTER.address)

    answer = await post(world)

    assert answer.status == 200
    assert answer.headers["x-emc-node"] == NODE.address
    assert router.taken() == [NODE.address]
    (routed,) = router.calls
    forward = decode_part(routed.meta, CallMeta).forward
    assert (routed.node, forward.node, forward.router) == (NODE.address, NODE.address, ROUTER.address)


async def test_call_at_a_direct_node_names_no_router(world: HubWorld) -> None:
    node = await world.add_node(StubNode(NODE))
    metas = []

    async def answer(stub: StubNode, call: IncomingCall, meta: CallMeta) -> None:
        metas.append(meta)
        await answer_call(call, RoutedMeta(NODE.address, call.meta))

    node.answer = answer
    assert (await post(world)).status == 200
    assert metas[0].forward.router == ZERO_ADDRESS


# ------------------------------------------------------------------------------ who may join


@pytest.mark.parametrize("role", [ParticipantRole.ROUTER, ParticipantRole.VALIDATOR])
async def test_router_that_is_not_admitted_is_refused(world: HubWorld, role: ParticipantRole) -> None:
    key = ROUTER_KEYS[3] if role is ParticipantRole.ROUTER else ROUTER
    router = await add_router(world, ScriptedRouter(key, role=role))

    assert isinstance(router.fault, RemoteProtocolError)
    assert router.fault.code == ("EMC-1407" if role is ParticipantRole.ROUTER else "EMC-1406")


async def test_router_may_not_join_as_a_node_nor_a_node_as_a_router(world: HubWorld) -> None:
    for key, role in ((ROUTER, ParticipantRole.COMPUTE), (NODE, ParticipantRole.ROUTER)):
        router = await add_router(world, ScriptedRouter(key, role=role))
        assert router.fault is not None, role
        assert router.fault.code == "EMC-1407"


async def test_newer_tunnel_of_a_router_replaces_the_older_with_its_nodes(world: HubWorld) -> None:
    older = await add_router(world, ScriptedRouter(ROUTER))
    await older.bring(NODE)
    await world.until(lambda: router_of(world))
    await add_router(world, ScriptedRouter(ROUTER))

    with trio.fail_after(5):
        await older.over.wait()
    assert older.fault is not None
    assert older.fault.code == "EMC-1410"
    await world.until(lambda: router_of(world) is None)
    assert len(await get_routers(world)) == 1


# ------------------------------------------------------------------------------ whom it may bring


async def expect_gone(world: HubWorld, router: ScriptedRouter, code: str) -> None:
    await world.until(lambda: router.gone() == [(NODE.address, code)])
    assert router_of(world) != router.key.address


async def test_node_that_the_registry_does_not_have_is_refused(world: HubWorld) -> None:
    stranger = node_key(99)
    router = await add_router(world, ScriptedRouter(ROUTER))
    await router.bring(stranger)

    await world.until(lambda: router.gone() == [(stranger.address, "EMC-1407")])
    assert world.plane.board.find(stranger.address) is None


@pytest.mark.parametrize(
    ("signer", "changes", "code"),
    [
        (node_key(2), {"node": NODE.address}, "EMC-1495"),
        (NODE, {"hub": node_key(3).address}, "EMC-1720"),
        (node_key(2), {}, "EMC-1720"),
        (NODE, {"sent_at_ms": 1}, "EMC-1722"),
        (NODE, {"capacity": 10**6}, "EMC-1723"),
    ],
    ids=["forged", "for another hub", "of another node", "old", "out of bounds"],
)
async def test_node_brought_by_a_status_that_is_not_its_own_and_fresh_is_refused(
    world: HubWorld, signer: object, changes: dict[str, object], code: str
) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    await router.say(RelayMessage(NODE.address, make_status(signer, **changes)))  # type: ignore[arg-type]

    await expect_gone(world, router, code)


@pytest.mark.parametrize("payload", [b"", b"garbage", encode(NoticeMessage("EMC-0000", ""))])
async def test_node_brought_without_a_status_is_refused(world: HubWorld, payload: bytes) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    await router.say(RelayMessage(NODE.address, payload))

    await world.until(lambda: [node for node, _ in router.gone()] == [NODE.address])
    assert world.plane.board.find(NODE.address) is None


async def test_status_that_was_replayed_brings_nobody(world: HubWorld) -> None:
    """A router has seen a status, the node has gone on: neither the same nor an older one counts."""
    first = await add_router(world, ScriptedRouter(ROUTER))
    second = await add_router(world, ScriptedRouter(OTHER))
    now_ms = SystemClock().now_ms()
    kept_back, newest = (make_status(NODE, sequence=now_ms + step) for step in (1, 2))
    await second.say(RelayMessage(NODE.address, newest))
    await world.until(lambda: router_of(world) == OTHER.address)

    await first.say(RelayMessage(NODE.address, kept_back))
    await expect_gone(world, first, "EMC-1731")
    await first.say(RelayMessage(NODE.address, newest))
    await world.until(lambda: len(first.gone()) == 2)
    await second.say(RelayGone(NODE.address, "EMC-1412"))  # gone for good, and still nobody can bring it
    await world.until(lambda: router_of(world) is None)
    await first.say(RelayMessage(NODE.address, newest))
    await world.until(lambda: len(first.gone()) == 3)
    assert {code for _, code in first.gone()} == {"EMC-1731"}
    assert router_of(world) is None


async def test_node_that_moves_to_another_router_leaves_the_first(world: HubWorld) -> None:
    first = await add_router(world, ScriptedRouter(ROUTER))
    second = await add_router(world, ScriptedRouter(OTHER, answer=answer_call))
    await first.bring(NODE)
    await world.until(lambda: router_of(world) == ROUTER.address)
    await second.bring(NODE, sequence=SystemClock().now_ms() + 1)
    await world.until(lambda: router_of(world) == OTHER.address)

    await world.until(lambda: first.gone() == [(NODE.address, "EMC-1410")])
    assert (await post(world)).status == 200
    assert [len(router.calls) for router in (first, second)] == [0, 1]


async def test_node_with_a_tunnel_of_its_own_leaves_its_router(world: HubWorld) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    await router.bring(NODE)
    await world.until(lambda: router_of(world) == ROUTER.address)
    node = await world.add_node(StubNode(NODE))

    await world.until(lambda: router.gone() == [(NODE.address, "EMC-1410")])
    await world.until(lambda: router_of(world) == ZERO_ADDRESS)
    assert (await post(world)).status == 200
    assert node.calls == 1


async def test_node_that_goes_behind_a_router_loses_its_own_tunnel(world: HubWorld) -> None:
    node = await world.add_node(StubNode(NODE))
    router = await add_router(world, ScriptedRouter(ROUTER, answer=answer_call))
    await router.bring(NODE, sequence=node.sequence + 1000)

    await world.until(lambda: router_of(world) == ROUTER.address)
    assert node.link is not None
    with trio.fail_after(5):
        await node.link.closed.wait()
    assert (await post(world)).status == 200


async def test_status_kept_back_does_not_end_a_tunnel_that_has_just_come(world: HubWorld) -> None:
    """The node's own status is still under way: nothing that a router holds can be newer."""
    router = await add_router(world, ScriptedRouter(ROUTER))
    node = StubNode(NODE, edit_status=lambda status: status)
    kept_back = make_status(NODE)
    sending = trio.Event()

    async def wait_first(**_: object) -> None:
        await sending.wait()

    node.send_status = wait_first  # type: ignore[method-assign]
    world.nursery.start_soon(node.run, world.role.ports["tunnel"])
    await world.until(lambda: world.plane.board.find(NODE.address))
    await router.say(RelayMessage(NODE.address, kept_back))

    await expect_gone(world, router, "EMC-1731")
    assert node.link is not None
    assert not node.link.closed.is_set()
    sending.set()


async def test_router_brings_no_more_nodes_than_it_may(tmp_path: Path) -> None:
    async with running_world(tmp_path, allowed_routers=(ROUTER.address,), max_nodes_per_router=1) as world:
        router = await add_router(world, ScriptedRouter(ROUTER))
        await router.bring(node_key(1))
        await world.until(lambda: router_of(world, node_key(1).address))
        await router.bring(node_key(2))
        await world.until(lambda: router.gone() == [(node_key(2).address, "EMC-1733")])
        await router.say(RelayGone(node_key(1).address, "EMC-1412"))
        await router.bring(node_key(2))
        await world.until(lambda: router_of(world, node_key(2).address))
