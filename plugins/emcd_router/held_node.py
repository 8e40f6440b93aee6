"""One node whose tunnel this router holds: its room, what waits for it, how it stands with its hub.

Invariants: a hub hears of the node by a status first, on each of the hub's connections anew; what
waits for a node that does not read is bounded, and what is too much is dropped, as a hub does it.
"""

from __future__ import annotations

from collections import deque

import trio

from emcd.net.tunnel import TunnelPeer
from emcd.types import Address
from emcd_router.metrics import DROPPED
from emcd_router.room import NodeRoom

OUTBOX = 256


class HeldNode:
    """State of one tunnel; who serves it is `nodes.NodeDesk`."""

    def __init__(self, peer: TunnelPeer, room: NodeRoom) -> None:
        self.address: Address = peer.address
        self.peer = peer
        self.room = room
        self.hub: Address | None = None
        self.brought = False
        """Whether the hub has had a status of it on this connection."""
        self.number = 0
        """Of the bringing: what the hub says of an older one is not about this."""
        self.opening = trio.CancelScope()
        """While its first status is awaited."""
        self.has_spoken = False
        self.is_taken = False
        """Whether its hub has admitted it, once."""
        self.code = ""
        self.detail = ""
        self._taken = trio.Event()
        self._ended = trio.Event()
        self._outbox: deque[bytes] = deque()
        self._arrived = trio.Event()

    def take(self) -> None:
        """The hub has admitted the node."""
        self.is_taken = True
        self._taken.set()

    async def wait_taken(self) -> None:
        """Wait for the hub's word."""
        await self._taken.wait()

    def forget(self) -> None:
        """The hub's connection is gone: to the next one the node is unknown."""
        self.brought = False
        before, self._taken = self._taken, trio.Event()
        before.set()

    def end(self, code: str, detail: str) -> None:
        """The tunnel is to be closed; the first reason counts."""
        if not self._ended.is_set():
            self.code, self.detail = code, detail
            self._ended.set()
            self._taken.set()
            self.opening.cancel()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    def post(self, message: bytes) -> None:
        """Queue a control message to the node."""
        if len(self._outbox) >= OUTBOX:
            DROPPED.inc()
            return
        self._outbox.append(message)
        self._arrived.set()

    async def write(self) -> None:
        """Send what is queued. Raises: RecoverableError when the tunnel is lost."""
        while True:
            while self._outbox:
                await self.peer.send_control(self._outbox.popleft())
            self._arrived = trio.Event()
            await self._arrived.wait()

    async def flush(self) -> None:
        """Send what waits, and no more."""
        while self._outbox:
            await self.peer.send_control(self._outbox.popleft())
