"""Wires that break and come back, on either side of a router: what is routed meanwhile, what is lost."""

from __future__ import annotations

from pathlib import Path

import trio

from emcd.role import HealthState
from emcd.types import Address
from emcd_node.router_choice import Way
from emcd_router.config import HubRef
from tests.support.cut_wire import CutWire
from tests.support.hub_world import HUB_KEY, fetch_receipt, node_key, post
from tests.support.made_node import MadeModel
from tests.support.router_network import Network, network, open_stream, read_stream, require_sound
from tests.support.router_world import ROUTER_KEYS, RunningRouter, start_router


async def add_wired_node(net: Network, number: int, model: MadeModel | None = None) -> CutWire:
    """A node whose wire to the first router can be cut."""
    wire = CutWire(net.routers[0].role.port)
    await net.nursery.start(wire.run)
    await net.add_node(number, Way(f"ws://127.0.0.1:{wire.port}", net.routers[0].address), model=model)
    return wire


async def add_wired_router(net: Network) -> tuple[CutWire, RunningRouter]:
    """A router whose wire to the hub can be cut."""
    wire = CutWire(net.world.role.ports["tunnel"])
    await net.nursery.start(wire.run)
    hub = HubRef(f"ws://127.0.0.1:{wire.port}", HUB_KEY.address)
    router = await start_router(net.nursery, net.ledger, ROUTER_KEYS[0], hub)
    await net.world.until(lambda: router.role.health().state is HealthState.READY)
    net.routers.append(router)
    return wire, router


def is_live(net: Network, node: Address) -> bool:
    """Whether the hub gives calls to the node."""
    entry = net.world.plane.board.find(node)
    return entry is not None and bool(entry.live)


async def test_node_whose_wire_breaks_takes_no_call_until_it_is_back(tmp_path: Path) -> None:
    async with network(tmp_path, routers=1, nodes=0, resume_s=10) as net:
        wire = await add_wired_node(net, 0)
        node = net.nodes[0]
        wire.cut()
        await net.world.until(lambda: not is_live(net, node.address), timeout_s=2)
        assert net.way_of(node.address) == net.routers[0].address  # it is expected back

        wire.mend()
        await net.world.until(lambda: is_live(net, node.address))
        assert (await post(net.world)).status == 200


async def test_stream_waits_for_a_wire_that_comes_back_and_loses_nothing(tmp_path: Path) -> None:
    model = MadeModel(words=["word "] * 40, pause_s=0.03)
    async with network(tmp_path, routers=1, nodes=0, resume_s=10) as net:
        wire = await add_wired_node(net, 0, model)
        async with open_stream(net.world) as answer:
            call_id = answer.headers["x-emc-call-id"]
            pieces = aiter(answer)
            got = await anext(pieces)
            wire.cut()
            await net.world.until(lambda: not is_live(net, net.nodes[0].address))
            await trio.sleep(0.3)
            wire.mend()
            async for piece in pieces:
                got += piece

        assert got.count(b"word ") == 40
        assert got.endswith(b"data: [DONE]\n\n")
        require_sound(await fetch_receipt(net.world, call_id), net.routers[0].address)


async def test_call_at_a_node_whose_wire_breaks_is_done_elsewhere_within_a_second_or_so(
    tmp_path: Path,
) -> None:
    async with network(tmp_path, routers=1, nodes=0, resume_s=10) as net:
        slow = MadeModel(think_s=30)
        wire = await add_wired_node(net, 0, slow)
        other = await net.add_node(1, net.routers[0].way, capacity=1)
        answers = []

        async def call() -> None:
            answers.append(await post(net.world))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await net.world.until(lambda: slow.begun)
            wire.cut()
            await net.world.until(lambda: answers, timeout_s=5)

        assert answers[0].status == 200
        assert answers[0].headers["x-emc-node"] == other.address


async def test_router_whose_wire_breaks_takes_no_call_and_its_nodes_stay_with_it(tmp_path: Path) -> None:
    async with network(tmp_path, routers=0, nodes=0) as net:
        wire, router = await add_wired_router(net)
        nodes = [await net.add_node(number, router.way) for number in range(2)]
        tunnels = [node.link._current for node in nodes]
        wire.cut()
        await net.world.until(lambda: not any(is_live(net, node.address) for node in nodes), timeout_s=2)
        assert router.role.health().state is HealthState.DEGRADED

        wire.mend()
        await net.world.until(lambda: all(is_live(net, node.address) for node in nodes))
        assert (await post(net.world)).status == 200
        assert [node.link._current for node in nodes] == tunnels
        await net.world.until(lambda: router.role.health().state is HealthState.READY)


async def test_stream_through_a_router_whose_wire_breaks_goes_on(tmp_path: Path) -> None:
    model = MadeModel(words=["word "] * 40, pause_s=0.03)
    async with network(tmp_path, routers=0, nodes=0) as net:
        wire, router = await add_wired_router(net)
        await net.add_node(0, router.way, model=model)
        bodies = []

        async def read() -> None:
            bodies.append((await read_stream(net.world))[2])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await net.world.until(lambda: model.sent > 3)
            wire.cut()
            await net.world.until(lambda: not is_live(net, node_key(0).address))
            await trio.sleep(0.3)
            wire.mend()

        assert bodies[0].count(b"word ") == 40
        assert bodies[0].endswith(b"data: [DONE]\n\n")


async def test_nodes_of_a_router_that_is_cut_off_for_long_go_elsewhere(tmp_path: Path) -> None:
    async with network(tmp_path, routers=0, nodes=0) as net:
        wire, router = await add_wired_router(net)
        other = await net.add_router(1)
        node = await net.add_node(0, router.way)
        node.link._choice.set_routers([router.way, other.way])
        for upstream in router.role._upstreams.values():
            upstream._settings = type(upstream._settings)(**{**vars(upstream._settings), "hub_lost_s": 0.3})
        wire.cut()

        await net.world.until(lambda: net.way_of(node.address) == other.address)
        assert (await post(net.world)).status == 200
