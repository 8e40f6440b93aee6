"""Nodes, routers and hubs that die, leave and come back under load: what a client sees of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from emcd.net.http_client import Response
from emcd.proto.records import CallStatus
from emcd.role import HealthState
from emcd.types import ZERO_ADDRESS, Address
from tests.support.hub_world import fetch_receipt, post
from tests.support.made_node import MadeModel
from tests.support.router_network import Network, deliveries, network, read_stream, require_sound

# ------------------------------------------------------------------------------ who moves where


async def test_router_that_is_killed_under_load_costs_no_client_an_answer(tmp_path: Path) -> None:
    """Calls not begun are done elsewhere; streams that had begun end with an error event; nodes move."""
    model = MadeModel(words=["word "] * 100, pause_s=0.02, think_s=0.02)
    async with network(tmp_path, routers=2, nodes=3, model=model) as net:
        spread = await spread_over_both(net)
        results: list[Response] = []
        streams: list[bytes] = []
        killed = trio.Event()

        async def call() -> None:
            while not killed.is_set() or len(results) < 200:
                results.append(await post(net.world))

        async def read() -> None:
            _, _, body = await read_stream(net.world)
            streams.append(body)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(call)
                for _ in range(10):
                    nursery.start_soon(read)
                await net.world.until(lambda: len(results) > 80)
                net.routers[0].kill()
                lost_at = trio.current_time()
                killed.set()
                await net.world.until(
                    lambda: all(net.way_of(node.address) == net.routers[1].address for node in net.nodes)
                )
                moved_s = trio.current_time() - lost_at

        assert spread
        assert {answer.status for answer in results} == {200}
        assert moved_s < 10
        whole = [body for body in streams if body.endswith(b"data: [DONE]\n\n") and b"error" not in body]
        cut = [body for body in streams if b'"emc_code":"EMC-1714"' in body]
        assert len(whole) + len(cut) == 10
        assert cut
        assert whole


async def spread_over_both(net: Network) -> list[Address]:
    """See to it that both routers hold a node: the last node moves if need be."""
    ways = [net.way_of(node.address) for node in net.nodes]
    if len(set(ways)) == 1:
        other = next(router for router in net.routers if router.address != ways[0])
        node = net.nodes[-1]
        current = node.link._current
        assert current is not None
        node.link._choice.note_failed(current.way, trio.current_time(), for_good=True)
        current.leave()
        await net.world.until(lambda: net.way_of(node.address) == other.address)
        node.link._choice.note_measured(current.way, 0.001, trio.current_time())
        node.link._choice._records[current.way].rests_until = 0.0
    return [way for way in ways if way is not None]


async def test_router_that_leaves_finishes_its_calls_and_its_nodes_move_on(tmp_path: Path) -> None:
    model = MadeModel(words=["word "] * 30, pause_s=0.05)
    async with network(tmp_path, routers=1, nodes=2, model=model) as net:
        leaving = net.routers[0]
        results: list[tuple[int, bytes]] = []

        async def read() -> None:
            status, _, body = await read_stream(net.world)
            results.append((status, body))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(read)
                await net.world.until(lambda: model.begun == 6)
                other = await net.add_router(1)
                for node in net.nodes:
                    node.link._choice.set_routers([leaving.way, other.way])
                nursery.start_soon(leaving.stop)
                await net.world.until(
                    lambda: all(net.way_of(node.address) == other.address for node in net.nodes)
                )
                assert not results  # the calls went on where they were
                assert (await post(net.world)).status == 200

        assert len(results) == 6
        assert all(status == 200 and body.endswith(b"data: [DONE]\n\n") for status, body in results)
        assert all(b"error" not in body for _, body in results)
        assert all(delivery.status == CallStatus.OK for delivery in await deliveries(net.world))


async def test_node_goes_to_the_hub_itself_without_routers_and_back_when_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_node.hub_link._HOME_S", 0.5)
    async with network(tmp_path, routers=1, nodes=0) as net:
        node = await net.add_node(0, net.routers[0].way, direct_port=net.world.role.ports["tunnel"])
        assert node.link.through == f"through router {net.routers[0].address} at {net.routers[0].way.url}"
        net.routers[0].kill()
        await net.world.until(lambda: net.way_of(node.address) == ZERO_ADDRESS)
        assert node.link.through == ""
        assert (await post(net.world)).status == 200

        other = await net.add_router(1)
        node.link._choice.set_routers([other.way])
        await net.world.until(lambda: net.way_of(node.address) == other.address)
        assert (await post(net.world)).status == 200


async def test_node_moves_home_without_losing_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_node.hub_link._HOME_S", 0.3)
    model = MadeModel(words=["word "] * 40, pause_s=0.05)
    async with network(tmp_path, routers=1, nodes=0) as net:
        node = await net.add_node(0, direct_port=net.world.role.ports["tunnel"], model=model)
        bodies = []

        async def read() -> None:
            bodies.append((await read_stream(net.world))[2])

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await net.world.until(lambda: model.begun)
                node.link._choice.set_routers([net.routers[0].way])
                await net.world.until(lambda: net.way_of(node.address) == net.routers[0].address)
                assert not bodies
        assert bodies[0].endswith(b"data: [DONE]\n\n")
        assert b"error" not in bodies[0]


async def test_nodes_of_a_hub_that_is_away_for_long_are_sent_elsewhere(tmp_path: Path) -> None:
    async with network(tmp_path, routers=2, nodes=2, hub_lost_s=0.5) as net:
        first, second = net.routers
        cut_off = first if net.way_of(net.nodes[0].address) == first.address else second
        other = second if cut_off is first else first
        session = next(s for s in net.world.plane.routers.list_sessions() if s.address == cut_off.address)
        net.world.plane.routers.admission._listed = frozenset({other.address})
        session.end("EMC-1407")

        await net.world.until(lambda: all(net.way_of(node.address) == other.address for node in net.nodes))
        health = cut_off.role.health()
        assert health.state is HealthState.DEGRADED
        assert "EMC-1407" in health.reason


async def test_nodes_are_shown_anew_to_a_hub_that_has_forgotten_them(tmp_path: Path) -> None:
    """The router comes back in time: the nodes stay with it, and begin as on a new tunnel."""
    async with network(tmp_path, routers=1, nodes=2) as net:
        before = [node.link._current for node in net.nodes]
        for session in net.world.plane.routers.list_sessions():
            session.end("EMC-1735")
        await net.world.until(lambda: not any(net.way_of(node.address) for node in net.nodes))
        await net.world.until(lambda: all(net.way_of(node.address) for node in net.nodes))

        assert [node.link._current for node in net.nodes] == before
        answer = await post(net.world)
        assert answer.status == 200
        require_sound(await fetch_receipt(net.world, answer.headers["x-emc-call-id"]), net.routers[0].address)
