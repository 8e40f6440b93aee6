"""A real hub, real routers and real nodes that know them, joined by real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from emcd.accounting.receipt import CallReceipt, check_receipt
from emcd.ledger import Ledger, open_ledger
from emcd.net.http_stream import stream
from emcd.proto.records import Delivery
from emcd.role import HealthState
from emcd.types import Address
from emcd_node.router_choice import Way
from emcd_node.schema import MIGRATIONS
from emcd_router.config import HubRef
from tests.support.hub_world import (
    DEPLOYMENT,
    DOMAIN,
    HUB_KEY,
    MODEL,
    HubWorld,
    node_key,
    running_world,
)
from tests.support.made_node import MadeModel, MadeNode, running_made_node
from tests.support.router_world import ROUTER_KEYS, RoutedStub, RunningRouter, start_router

CHAT = "/v1/chat/completions"


@dataclass
class Network:
    """A hub, routers, and nodes that know them all."""

    world: HubWorld
    ledger: Ledger
    nursery: trio.Nursery
    routers: list[RunningRouter]
    nodes: list[MadeNode]
    stack: AsyncExitStack

    @property
    def hub_ref(self) -> HubRef:
        return HubRef(f"ws://127.0.0.1:{self.world.role.ports['tunnel']}", HUB_KEY.address)

    async def add_router(self, number: int, **settings: Any) -> RunningRouter:
        router = await start_router(
            self.nursery,
            self.ledger,
            ROUTER_KEYS[number],
            self.hub_ref,
            region=f"region {number}",
            **settings,
        )
        await self.world.until(lambda: router.role.health().state is HealthState.READY)
        self.routers.append(router)
        return router

    async def add_node(self, number: int, *ways: Way, **settings: Any) -> MadeNode:
        node = await self.stack.enter_async_context(
            running_made_node(self.ledger, node_key(number), ways, **settings)
        )
        await self.world.until(lambda: self.way_of(node.address) is not None)
        self.nodes.append(node)
        return node

    async def connect(self, node: RoutedStub) -> None:
        """Have a stub dial the first router."""
        self.nursery.start_soon(node.run, self.routers[0].role.port)
        await self.world.until(lambda: node.link)

    def way_of(self, node: Address) -> Address | None:
        """Through whom the hub reaches a node; None where it does not."""
        entry = self.world.plane.board.find(node)
        return None if entry is None or entry.status is None else entry.router


@asynccontextmanager
async def network(
    folder: Path, routers: int = 2, nodes: int = 3, *, model: MadeModel | None = None, **settings: Any
) -> AsyncIterator[Network]:
    """`settings`: of the routers. Nodes have no direct way."""
    allowed = tuple(key.address for key in ROUTER_KEYS)
    async with (
        running_world(folder, allowed_routers=allowed) as world,
        open_ledger(folder / "nodes.db", {"node": MIGRATIONS}) as ledger,
        trio.open_nursery() as nursery,
    ):
        async with AsyncExitStack() as stack:
            net = Network(world, ledger, nursery, [], [], stack)
            for number in range(routers):
                await net.add_router(number, **settings)
            for number in range(nodes):
                await net.add_node(number, *(router.way for router in net.routers), model=model)
            yield net
        nursery.cancel_scope.cancel()


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "count"}], "stream": True, **fields}


@asynccontextmanager
async def open_stream(world: HubWorld, **fields: Any) -> AsyncIterator[Any]:
    headers = {"authorization": f"Bearer {world.api_key}", "content-type": "application/json"}
    body = msgspec.json.encode(chat(**fields))
    async with stream("POST", world.url + CHAT, headers=headers, body=body) as answer:
        yield answer


async def read_stream(world: HubWorld, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    async with open_stream(world, **fields) as answer:
        received = b"".join([piece async for piece in answer])
        return answer.status, dict(answer.headers), received


async def deliveries(world: HubWorld) -> list[Delivery]:
    rows = await world.rows("SELECT delivery FROM hub_calls ORDER BY call_seq")
    return [msgspec.msgpack.decode(row[0], type=Delivery) for row in rows]


def require_sound(receipt: CallReceipt, router: Address) -> None:
    """It verifies offline, and names the router."""
    outcome = check_receipt(DOMAIN, HUB_KEY.address, receipt, prices=DEPLOYMENT.prices)
    assert outcome.ok, outcome
    assert receipt.forward.router == router
