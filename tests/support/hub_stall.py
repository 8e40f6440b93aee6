"""A hub's parts that are held back: the ledger's writer, a node's answer."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from emcd.proto.control import ResponseHead, encode
from emcd.proto.hashing import keccak
from tests.support.hub_world import HubWorld, StubNode, embedding_body


async def answer_when_cancelled(node: StubNode, call: Any, meta: Any) -> None:
    """A node that had its answer ready when it heard that nobody wants it."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.move_on_after(1, shield=True):
            await call.start(encode(ResponseHead(200, "application/json")))
            await call.send(embedding_body())
            await node.finish(call, meta, keccak(embedding_body()), 200, (5, 0))


@asynccontextmanager
async def stalled(world: HubWorld) -> AsyncIterator[threading.Event]:
    """The ledger's writer is held until the event is set, or the block is left."""
    go, held = threading.Event(), threading.Event()

    def hold(con: Any) -> None:
        held.set()
        go.wait(20)

    world.nursery.start_soon(world.ledger.write, hold)
    await world.until(held.is_set)
    try:
        yield go
    finally:
        go.set()
