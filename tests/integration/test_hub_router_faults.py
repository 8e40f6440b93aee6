"""What a router says of itself to the hub, what its faults cost whom, and what happens when it is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from emcd.clock import SystemClock
from emcd.net.tunnel import IncomingCall
from emcd.proto.control import (
    NoticeMessage,
    RelayGone,
    RelayMessage,
    RoutedMeta,
    RouterStatusMessage,
)
from emcd.proto.messages import RouterStatus
from tests.support.hub_world import (
    DOMAIN,
    HUB_KEY,
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


# ------------------------------------------------------------------------------ what it says of itself


async def test_router_is_shown_with_what_it_says_of_itself(world: HubWorld) -> None:
    assert await get_routers(world) == []
    router = await add_router(world, ScriptedRouter(ROUTER))
    (before,) = await get_routers(world)
    await router.bring(NODE)
    await router.report(region="eu-west", in_flight=3)
    await world.until(lambda: router_of(world))
    with trio.fail_after(5):
        while (await get_routers(world))[0]["status_age_ms"] is None:
            await trio.sleep(0.01)
    (shown,) = await get_routers(world)

    assert before["status_age_ms"] is None
    assert (shown["address"], shown["region"], shown["in_flight"], shown["nodes"]) == (
        ROUTER.address,
        "eu-west",
        3,
        1,
    )
    assert 0 <= shown["status_age_ms"] < 10_000


@pytest.mark.parametrize(
    "changes",
    [
        {"router": OTHER.address},
        {"hub": OTHER.address},
        {"sent_at_ms": 1},
        {"sequence": 0},
        {"region": "x" * 101},
        {"nodes": 2**32},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_router_status_that_is_not_its_own_and_fresh_is_refused(
    world: HubWorld, changes: dict[str, object]
) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    now_ms = SystemClock().now_ms()
    values: dict[str, object] = {
        "router": ROUTER.address, "hub": HUB_KEY.address, "sequence": now_ms, "sent_at_ms": now_ms, "nodes": 1,
        "in_flight": 0, "version": "", "region": "", **changes,
    }  # fmt: skip
    status = RouterStatus(**values)  # type: ignore[arg-type]
    signature = bytes(65) if "nodes" in changes else ROUTER.sign(DOMAIN, status)
    await router.say(RouterStatusMessage(status, signature))

    await world.until(lambda: router.notices() == ["EMC-1734"])
    assert (await get_routers(world))[0]["status_age_ms"] is None


@pytest.mark.parametrize("signature", [b"", bytes(65)], ids=["empty", "nobody's"])
async def test_router_status_without_a_signature_is_refused(world: HubWorld, signature: bytes) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    now_ms = SystemClock().now_ms()
    status = RouterStatus(ROUTER.address, HUB_KEY.address, now_ms, now_ms, 1, 0, "", "")
    await router.say(RouterStatusMessage(status, signature))

    await world.until(lambda: router.notices() == ["EMC-1494"])


async def test_router_status_signed_by_another_or_replayed_is_refused(world: HubWorld) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    now_ms = SystemClock().now_ms()
    status = RouterStatus(ROUTER.address, HUB_KEY.address, now_ms, now_ms, 1, 0, "", "")
    await router.say(RouterStatusMessage(status, OTHER.sign(DOMAIN, status)))
    good = RouterStatusMessage(status, ROUTER.sign(DOMAIN, status))
    await router.say(good, good)

    await world.until(lambda: router.notices() == ["EMC-1495", "EMC-1734"])


# ------------------------------------------------------------------------------ what faults cost


async def test_faults_of_a_node_cost_the_node_and_not_its_router(world: HubWorld) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    bad, good = node_key(1), node_key(2)
    await router.bring(bad)
    await router.bring(good)
    await world.until(lambda: router_of(world, bad.address) and router_of(world, good.address))
    for _ in range(30):
        await router.say(RelayMessage(bad.address, b"garbage"))

    await world.until(lambda: router.gone() == [(bad.address, "EMC-1730")])
    assert router_of(world, good.address) == ROUTER.address
    assert not router.over.is_set()


async def test_messages_of_a_node_that_pile_up_cost_the_node_and_not_its_router(world: HubWorld) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    bad, good = node_key(1), node_key(2)
    await router.bring(bad)
    await router.bring(good)
    await world.until(lambda: router_of(world, bad.address) and router_of(world, good.address))
    for _ in range(900):
        await router.say(RelayMessage(bad.address, make_status(bad)))
        if router.gone():
            break

    await world.until(lambda: (bad.address, "EMC-1732") in router.gone())
    assert router_of(world, good.address) == ROUTER.address


async def test_faults_of_a_router_cost_it_its_tunnel(world: HubWorld) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    await router.bring(NODE)
    await world.until(lambda: router_of(world))
    for _ in range(30):
        await router.say_raw(b"garbage")

    with trio.fail_after(5):
        await router.over.wait()
    assert set(router.notices()) <= {"EMC-1498"}
    await world.until(lambda: router_of(world) is None)


async def test_what_only_a_hub_says_is_a_routers_fault(world: HubWorld) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    await router.say(NoticeMessage("EMC-0000", "hear, hear"))

    await world.until(lambda: router.notices() == ["EMC-1727"])


async def test_router_that_floods_is_slowed_and_another_is_not(world: HubWorld) -> None:
    flooding = await add_router(world, ScriptedRouter(ROUTER))
    quiet = await add_router(world, ScriptedRouter(OTHER, answer=answer_call))
    await quiet.bring(NODE)
    await world.until(lambda: router_of(world))

    async def flood() -> None:
        try:
            while True:
                await flooding.say(RelayGone(NODE.address, "EMC-1412"))
        except Exception:  # the hub has had enough
            return

    world.nursery.start_soon(flood)
    for _ in range(5):
        assert (await post(world)).status == 200
    assert router_of(world) == OTHER.address


# ------------------------------------------------------------------------------ lost


async def test_router_that_is_lost_takes_its_nodes_out_of_routing(world: HubWorld) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    await router.bring(NODE)
    await world.until(lambda: router_of(world))
    router.scope.cancel()

    await world.until(lambda: router_of(world) is None)
    assert (await post(world)).status == 503


async def test_call_whose_router_is_lost_is_done_elsewhere(world: HubWorld) -> None:
    """The client sees nothing of it."""
    router = ScriptedRouter(ROUTER)

    async def vanish(call: IncomingCall, meta: RoutedMeta) -> None:
        router.scope.cancel()
        await trio.sleep_forever()

    router.answer = vanish
    await add_router(world, router)
    await router.bring(NODE, capacity=64)
    await world.until(lambda: router_of(world))
    await world.add_node(StubNode(node_key(2), capacity=1))
    while not router.calls:
        answer = await post(world)

    assert answer.status == 200
    assert answer.headers["x-emc-node"] == node_key(2).address


async def test_router_dismissed_by_the_registry_loses_its_tunnel(world: HubWorld) -> None:
    router = await add_router(world, ScriptedRouter(ROUTER))
    world.plane.routers.admission._listed = frozenset()
    world.plane.routers.review(0)

    with trio.fail_after(5):
        await router.over.wait()
    assert router.fault is not None
    assert router.fault.code == "EMC-1407"


async def test_router_that_is_silent_is_dismissed(world: HubWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emcd_hub.routers.session.TICK_S", 0.05)
    router = await add_router(world, ScriptedRouter(ROUTER))
    await router.bring(NODE)

    with trio.fail_after(5):
        await router.over.wait()
    await world.until(lambda: router_of(world) is None)
