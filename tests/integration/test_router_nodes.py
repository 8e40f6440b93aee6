"""Whom a router takes, whom it sends away and why, and what is shown of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import trio

from emcd.proto.control import NoticeMessage, encode
from tests.support.hub_world import node_key
from tests.support.router_network import network
from tests.support.router_world import RoutedStub, get_routers, make_status

# ------------------------------------------------------------------------------ whom a router takes


async def test_node_of_a_hub_that_the_router_does_not_join_is_told_so(tmp_path: Path) -> None:
    async with network(tmp_path, routers=1, nodes=0) as net:
        node = RoutedStub(
            node_key(0), router=net.routers[0].address,
            edit_status=lambda status: msgspec.structs.replace(status, hub=node_key(5).address),
        )  # fmt: skip
        await net.connect(node)
        await net.world.until(lambda: node.fault)

        assert node.fault is not None
        assert node.fault.code == "EMC-1429"
        assert net.world.plane.board.find(node.key.address) is None


async def test_node_that_its_hub_does_not_admit_is_sent_away_with_the_reason(tmp_path: Path) -> None:
    async with network(tmp_path, routers=1, nodes=0) as net:
        node = RoutedStub(node_key(77), router=net.routers[0].address)
        await net.connect(node)
        await net.world.until(lambda: node.fault)

        assert node.fault is not None
        assert node.fault.code == "EMC-1407"


async def test_node_that_does_not_begin_with_its_own_status_is_sent_away(tmp_path: Path) -> None:
    async with network(tmp_path, routers=1, nodes=0) as net:
        for wrong in (make_status(node_key(2)), encode(NoticeMessage("EMC-0000", ""))):
            node = RoutedStub(node_key(1), router=net.routers[0].address, first=wrong)
            await net.connect(node)
            await net.world.until(lambda node=node: node.fault)  # type: ignore[misc]
            assert node.fault is not None
            assert "not its status" in node.fault.detail


async def test_router_that_is_full_sends_nodes_on(tmp_path: Path) -> None:
    async with network(tmp_path, routers=0, nodes=0) as net:
        full, other = await net.add_router(0, max_nodes=1), await net.add_router(1)
        first = await net.add_node(0, full.way)
        second = await net.add_node(1, full.way, other.way)

        assert net.way_of(first.address) == full.address
        await net.world.until(lambda: net.way_of(second.address) == other.address)


async def test_node_that_says_garbage_is_dropped_and_its_router_and_neighbour_are_not(tmp_path: Path) -> None:
    async with network(tmp_path, routers=1, nodes=1) as net:
        bad = RoutedStub(node_key(5), router=net.routers[0].address)
        await net.connect(bad)
        await net.world.until(lambda: net.way_of(bad.key.address))
        assert bad.link is not None
        for _ in range(40):
            await bad.link.send_control(b"garbage")

        with trio.fail_after(10):
            await bad.link.closed.wait()
        assert {notice.code for notice in bad.notices} == {"EMC-1498"}
        await net.world.until(lambda: net.way_of(bad.key.address) is None)
        assert len(await get_routers(net.world)) == 1
        assert net.way_of(net.nodes[0].address) == net.routers[0].address


async def test_node_that_is_gone_is_gone_at_the_hub(tmp_path: Path) -> None:
    async with network(tmp_path, routers=1, nodes=0, resume_s=0.1) as net:
        node = RoutedStub(node_key(5), router=net.routers[0].address)
        await net.connect(node)
        await net.world.until(lambda: net.way_of(node.key.address))
        node.scope.cancel()

        await net.world.until(lambda: net.world.plane.board.find(node.key.address) is None)


async def test_page_shows_each_router_with_its_region_and_nodes(tmp_path: Path) -> None:
    async with network(tmp_path, routers=2, nodes=3) as net:
        with trio.fail_after(10):
            while True:
                shown = await get_routers(net.world)
                if all(router["status_age_ms"] is not None for router in shown):
                    break
                await trio.sleep(0.05)

        assert sorted(router["region"] for router in shown) == ["region 0", "region 1"]
        assert sum(router["nodes"] for router in shown) == 3
        assert {router["address"] for router in shown} == {router.address for router in net.routers}
