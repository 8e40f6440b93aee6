"""What waits to be said to a hub, in order: nodes' messages, who came and went, reports.

Invariants: one order for all, so that a node's coming is never told before its going; who adds a
node's message waits for room, so that the queue is bounded by it and by the nodes that come and go.
"""

from __future__ import annotations

from collections import deque

import trio

BYTES = 1024 * 1024


class Outbox:
    """Messages of one connection."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._bytes = 0
        self._arrived = trio.Event()
        self._room = trio.lowlevel.ParkingLot()

    async def room(self) -> None:
        """Wait until more may be added."""
        while self._bytes >= BYTES:
            await self._room.park()

    def post(self, message: bytes) -> None:
        """Add a message."""
        self._messages.append(message)
        self._bytes += len(message)
        self._arrived.set()

    async def take(self) -> bytes:
        """The oldest message, once there is one."""
        while not self._messages:
            self._arrived = trio.Event()
            await self._arrived.wait()
        message = self._messages.popleft()
        self._bytes -= len(message)
        if self._bytes < BYTES:
            self._room.unpark_all()
        return message

    def clear(self) -> None:
        """The connection is gone, and who it was for."""
        self._messages.clear()
        self._bytes = 0
        self._room.unpark_all()
