"""A real node around a made-up model: its links, receipts, batches and calls are the program's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from emcd.accounting.usage import Usage
from emcd.clock import SystemClock
from emcd.inference.manifest import Manifest
from emcd.keys import SigningKey
from emcd.ledger import Ledger
from emcd.log import get_logger
from emcd.types import Address
from emcd_node.call_server import CallServer
from emcd_node.heartbeat import Heartbeat, Load
from emcd_node.hub_link import HubLink, LinkSettings
from emcd_node.hub_proofs import HubProofs
from emcd_node.node_tunnel import Desk
from emcd_node.receipt_book import ReceiptBook
from emcd_node.router_choice import Way
from emcd_node.served_model import CallRequest, Refused, Reply
from tests.support.hub_world import DEPLOYMENT, DOMAIN, HUB_KEY, MANIFEST, MODEL, chat_events, embedding_body


@dataclass
class MadeModel:
    """Answers every call the same way, as slowly as a test wants."""

    words: list[str] = field(default_factory=lambda: ["one", "two", "three"])
    pause_s: float = 0.0
    think_s: float = 0.0
    begun: int = 0
    sent: int = 0
    cancelled: int = 0
    manifest: Manifest = MANIFEST

    def is_available(self) -> bool:
        return True

    def complaint(self) -> str:
        return ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    async def answer(self, request: CallRequest, reply: Reply) -> Usage | Refused:
        self.begun += 1
        try:
            await trio.sleep(self.think_s)
            if request.stream:
                return await self._stream(reply)
            await reply.start(200, "application/json")
            await reply.send(embedding_body())
            return Usage(5, 0)
        except trio.Cancelled:
            self.cancelled += 1
            raise

    async def _stream(self, reply: Reply) -> Usage:
        await reply.start(200, "text/event-stream")
        for event in chat_events(self.words):
            await reply.send(event)
            self.sent += 1
            await trio.sleep(self.pause_s)
        reply.end_events()
        return Usage(7, len(self.words))


@dataclass
class MadeNode:
    """One running node."""

    key: SigningKey
    model: MadeModel
    calls: CallServer
    receipts: ReceiptBook
    link: HubLink

    @property
    def address(self) -> Address:
        return self.key.address

    @property
    def router(self) -> Address | None:
        """Through whom it is connected now; None where it is not."""
        current = self.link._current
        return current.way.address if current is not None and current.link is not None else None


@asynccontextmanager
async def running_made_node(
    ledger: Ledger,
    key: SigningKey,
    routers: Sequence[Way] = (),
    *,
    direct_port: int | None = None,
    capacity: int = 64,
    status_interval_s: float = 5.0,
    model: MadeModel | None = None,
) -> AsyncIterator[MadeNode]:
    """A node with these ways to the hub of `hub_world`."""
    model = model or MadeModel()
    clock, log, params = SystemClock(), get_logger(), DEPLOYMENT.params
    receipts = ReceiptBook(ledger, key, DOMAIN, params, clock)
    calls = CallServer(
        node=key.address,
        hub=HUB_KEY.address,
        models={MODEL: model},
        receipts=receipts,
        clock=clock,
        max_parallel_calls=capacity,
        call_timeout_s=60,
    )
    desk = Desk(
        key=key,
        domain=DOMAIN,
        clock=clock,
        calls=calls,
        receipts=receipts,
        proofs=HubProofs(ledger, key.address, HUB_KEY.address, DOMAIN, params, clock),
        heartbeat=Heartbeat(
            key, DOMAIN, HUB_KEY.address, clock, "0.1", "none",
            lambda: Load([MANIFEST], 0 if calls.refusing else capacity, calls.in_flight),
        ),
        status_interval_s=lambda: status_interval_s,
        log=log,
    )  # fmt: skip
    direct = None
    if direct_port is not None:
        direct = Way(f"ws://127.0.0.1:{direct_port}", HUB_KEY.address, is_router=False)
    link = HubLink(LinkSettings(direct, tuple(routers), {}, reconnect_max_s=0.5), desk)
    node = MadeNode(key, model, calls, receipts, link)
    async with trio.open_nursery() as nursery:
        await nursery.start(receipts.run)
        nursery.start_soon(link.run)
        yield node
        nursery.cancel_scope.cancel()
