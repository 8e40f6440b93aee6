"""Keys that nobody has staked: what they can't take from a router and from the nodes behind it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio

from emcd.errors import EmcdError
from emcd.net.tunnel import TunnelLink, run_tunnel
from emcd.testing import make_key
from tests.support.hub_world import DOMAIN, node_key, post
from tests.support.router_network import Network, network
from tests.support.router_world import RoutedStub


async def _nothing(_: object) -> None:
    await trio.lowlevel.checkpoint()


async def squat(
    net: Network, name: str, codes: list[str], *, task_status: trio.TaskStatus[TunnelLink]
) -> None:
    """Prove a key, and say nothing."""
    router = net.routers[0]
    try:
        await run_tunnel(
            f"ws://127.0.0.1:{router.role.port}", key=make_key(name), domain=DOMAIN, on_call=_nothing,
            hub_address=router.address, on_control=_nothing, task_status=task_status,
        )  # fmt: skip
    except EmcdError as exc:
        codes.append(exc.code)


async def add_squatters(net: Network, count: int) -> list[str]:
    codes: list[str] = []
    for number in range(count):
        with suppress(RuntimeError):  # it was over before it stood
            await net.nursery.start(squat, net, f"squatter {number}", codes)
    return codes


async def test_strangers_take_no_place_of_admitted_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_router.nodes.MAX_WAITING", 5)
    monkeypatch.setattr("emcd_router.nodes.FIRST_STATUS_S", 60.0)
    async with network(tmp_path, routers=1, nodes=0, max_nodes=2) as net:
        codes = await add_squatters(net, 12)
        node = await net.add_node(0, net.routers[0].way)

        assert net.way_of(node.address) == net.routers[0].address
        assert (await post(net.world)).status == 200
        assert codes == ["EMC-1409"] * len(codes)
        assert len(codes) >= 7  # the oldest of those that said nothing
        assert len(net.routers[0].role._desk) <= 6


async def test_places_of_admitted_nodes_are_bounded_still(tmp_path: Path) -> None:
    async with network(tmp_path, routers=1, nodes=0, max_nodes=1) as net:
        await net.add_node(0, net.routers[0].way)
        late = RoutedStub(node_key(5), router=net.routers[0].address)
        await net.connect(late)
        await net.world.until(lambda: late.fault)

        assert late.fault is not None
        assert late.fault.code == "EMC-1409"


async def test_those_who_wait_for_their_hub_are_not_sent_away_for_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_router.nodes.MAX_WAITING", 1)
    async with network(tmp_path, routers=1, nodes=0) as net:
        desk = net.routers[0].role._desk
        node = RoutedStub(node_key(5), router=net.routers[0].address)
        gate = trio.Event()

        async def wait(*_: object) -> bool:
            await gate.wait()
            return True

        (session,) = net.world.plane.routers.list_sessions()
        session._authorize = wait
        await net.connect(node)
        await net.world.until(lambda: any(held.has_spoken for held in desk._nodes.values()))
        codes = await add_squatters(net, 3)
        await net.world.until(lambda: len(codes) == 3)
        gate.set()

        await net.world.until(lambda: net.way_of(node.key.address))
        assert codes == ["EMC-1409"] * 3


async def test_node_that_says_nothing_is_sent_away_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_router.nodes.FIRST_STATUS_S", 0.1)
    async with network(tmp_path, routers=1, nodes=0) as net:
        codes = await add_squatters(net, 1)
        await net.world.until(lambda: codes)
        assert codes == ["EMC-1409"]
