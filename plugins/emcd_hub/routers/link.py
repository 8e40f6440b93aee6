"""A node's link through a router: what `nodes.link.NodeLink` asks for, over the router's tunnel.

Invariants: what the node says waits here within a bound, so that the router's reader never waits
for one node; once closed, no new call goes out, and those that are under way go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from emcd.errors import RecoverableError
from emcd.proto.control import RelayMessage, RoutedMeta, encode
from emcd.proto.tunnel_hub import HubCall
from emcd.types import Address
from emcd_hub.nodes.link import NodeLink, OutgoingCall

FIRST_MESSAGES = 8
"""Before the node has joined."""
QUEUE_MESSAGES = 256
"""More than the burst of messages that a node may send."""
QUEUE_BYTES = 1024 * 1024
ROUTER_BYTES = 64 * 1024 * 1024
"""Of all nodes behind one router."""


class RouterPeer(NodeLink, Protocol):
    """A router's tunnel: a link as a node's, whose calls name the node."""

    def take(self, call: HubCall) -> bytes: ...


class QueueRoom:
    """What the queues of one router's nodes share."""

    __slots__ = ("left",)

    def __init__(self, left: int = ROUTER_BYTES) -> None:
        self.left = left


class RoutedLink(AsyncIterator[bytes]):
    """One node behind one router."""

    def __init__(self, peer: RouterPeer, node: Address, room: QueueRoom, number: int = 0) -> None:
        self.address = node
        self.number = number
        """Which of the node's sessions at the router it is."""
        self.router = peer.address
        self.closed = trio.Event()
        self.on_live: Callable[[bool], None] | None = None
        """Called when the node can't take calls for now, and when it can again."""
        self._live = True
        self._peer = peer
        self._room = room
        self._queue: deque[bytes] = deque()
        self._limit = FIRST_MESSAGES
        self._queued_bytes = 0
        self._arrived = trio.Event()

    @property
    def live(self) -> bool:
        """Whether router and node can be reached now."""
        return self._live and self._peer.live and not self.closed.is_set()

    def call(self, meta: bytes, body: bytes) -> AbstractAsyncContextManager[OutgoingCall]:
        """Raises: RecoverableError EMC-1412 once the node has left the router."""
        self._require_open()
        return self._peer.call(self._wrap(meta), body)

    def submit(
        self,
        meta: bytes,
        body: bytes,
        on_end: Callable[[HubCall], None],
        *,
        max_bytes: int,
        on_data: Callable[[HubCall], None] | None = None,
    ) -> HubCall:
        """Raises: RecoverableError EMC-1412 once the node has left, and what the router's tunnel raises."""
        self._require_open()
        return self._peer.submit(self._wrap(meta), body, on_end, max_bytes=max_bytes, on_data=on_data)

    def cancel(self, call: HubCall) -> None:
        self._peer.cancel(call)

    def drop(self, call: HubCall) -> None:
        self._peer.drop(call)

    def take(self, call: HubCall) -> bytes:
        return self._peer.take(call)

    async def send_control(self, message: bytes) -> None:
        """Raises: RecoverableError EMC-1412 when node or router is lost."""
        self._require_open()
        await self._peer.send_control(encode(RelayMessage(self.address, message, self.number)))

    def controls(self) -> AsyncIterator[bytes]:
        """The node's control messages, until it has left. One reader at a time."""
        return self

    async def __anext__(self) -> bytes:
        while not self._queue:
            if self.closed.is_set():
                raise StopAsyncIteration
            self._arrived = trio.Event()
            await self._arrived.wait()
        message = self._queue.popleft()
        self._count(-len(message))
        return message

    # For the router's session.

    def put(self, message: bytes) -> bool:
        """Queue a message of the node; False when there is no room."""
        size = len(message)
        if (
            len(self._queue) >= self._limit
            or self._queued_bytes + size > QUEUE_BYTES
            or size > self._room.left
            or self.closed.is_set()
        ):
            return False
        self._queue.append(message)
        self._count(size)
        self._arrived.set()
        return True

    def join(self, first: bytes) -> None:
        """The node is admitted: its first message is read once more, and more may wait."""
        self._limit = QUEUE_MESSAGES
        self._queue.appendleft(first)
        self._count(len(first))

    def close(self) -> None:
        """The node is not behind the router any more; what it has said is read still."""
        if not self.closed.is_set():
            self.closed.set()
            self._arrived.set()
            self.tell_live()

    def set_live(self, live: bool) -> None:
        """The router lost the node's link, or has it again."""
        self._live = live
        self.tell_live()

    def tell_live(self) -> None:
        """The router's own link was lost, or is there again."""
        if self.on_live is not None:
            self.on_live(self.live)

    def discard(self) -> None:
        """Nobody will read what waits."""
        self._queue.clear()
        self._count(-self._queued_bytes)

    def _count(self, size: int) -> None:
        self._queued_bytes += size
        self._room.left -= size

    def _wrap(self, meta: bytes) -> bytes:
        return encode(RoutedMeta(self.address, meta))

    def _require_open(self) -> None:
        if self.closed.is_set():
            raise RecoverableError("EMC-1412", "the node has left its router")
