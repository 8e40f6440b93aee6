"""Routers that shake hands and bring nobody anywhere: what a node does that has another way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from emcd.net.tunnel import TunnelPeer, serve_tunnels
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS, Address, ParticipantRole
from emcd_node.router_choice import Way
from tests.support.hub_world import DOMAIN, fetch_receipt, node_key, post
from tests.support.made_node import MadeNode, running_made_node
from tests.support.router_network import Network, network, require_sound

KEY = make_key("silent router")


class Silent:
    """Answers pings, reads, and says nothing."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.met = 0
        self.held = 0

    async def start(self, nursery: trio.Nursery) -> Way:
        serve = partial(
            serve_tunnels, host="127.0.0.1", port=0, key=KEY, domain=DOMAIN, on_peer=self._serve,
            authorize=_anybody,
        )  # fmt: skip
        return Way(f"ws://127.0.0.1:{await nursery.start(serve)}", KEY.address)

    async def _serve(self, peer: TunnelPeer) -> None:
        self.met += 1
        self.held += 1
        try:
            async for raw in peer.controls():
                self.heard.append(raw)
        finally:
            self.held -= 1


async def _anybody(_: Address, __: ParticipantRole) -> bool:
    return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emcd_node.hub_link._HOME_S", 0.2)
    monkeypatch.setattr("emcd_node.hub_link._TAKEN_S", 0.5)
    monkeypatch.setattr("emcd_node.router_choice.FIRST_REST_S", 0.2)


def port_of(net: Network) -> int:
    return int(net.world.role.ports["tunnel"])


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(15):
        while not condition():
            await trio.sleep(0.02)


@pytest.mark.usefixtures("quick")
async def test_node_keeps_a_working_tunnel_until_a_router_has_brought_it_to_the_hub(tmp_path: Path) -> None:
    async with network(tmp_path, routers=0, nodes=0) as net:
        node = await net.add_node(0, direct_port=port_of(net))
        first = node.link._current
        silent = Silent()
        node.link._choice.set_routers([await silent.start(net.nursery)])
        await until(lambda: silent.met >= 3)

        assert node.link._current is first
        assert net.way_of(node.address) == ZERO_ADDRESS
        answer = await post(net.world)
        assert answer.status == 200
        require_sound(await fetch_receipt(net.world, answer.headers["x-emc-call-id"]), ZERO_ADDRESS)
        assert silent.held <= 1  # those that failed are not kept


@pytest.mark.usefixtures("quick")
async def test_node_behind_a_router_that_does_not_bring_it_takes_another_way(tmp_path: Path) -> None:
    async with network(tmp_path, routers=0, nodes=0) as net:
        silent = Silent()
        way = await silent.start(net.nursery)
        node = await net.add_node(0, way, direct_port=port_of(net))

        assert silent.met >= 1
        assert net.way_of(node.address) == ZERO_ADDRESS
        await until(lambda: node.router != KEY.address)
        assert (await post(net.world)).status == 200


@pytest.mark.usefixtures("quick")
async def test_node_that_has_but_one_way_is_connected_by_it_without_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_node.hub_link._TAKEN_S", 60.0)
    async with network(tmp_path, routers=0, nodes=0) as net:
        silent = Silent()
        way = await silent.start(net.nursery)
        node = await start_node(net, way)

        await until(lambda: node.router == KEY.address)
        await until(lambda: len(silent.heard) >= 1)
        assert silent.met == 1


@pytest.mark.usefixtures("quick")
async def test_node_that_moved_dials_soon_when_its_new_way_is_lost(tmp_path: Path) -> None:
    async with network(tmp_path, routers=1, nodes=0) as net:
        node = await net.add_node(0, direct_port=port_of(net))
        node.link._pause._next_s = 100.0  # as after many dials in vain
        node.link._choice.set_routers([net.routers[0].way])
        await until(lambda: net.way_of(node.address) == net.routers[0].address)

        await until(lambda: node.link._pause._next_s < 1.0)


async def start_node(net: Network, *ways: Way) -> MadeNode:
    return await net.stack.enter_async_context(running_made_node(net.ledger, node_key(0), ways))
