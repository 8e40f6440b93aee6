"""The room of one node: how many calls it takes at once, and the line of those that wait.

The hub chooses the node and knows its capacity too; what it can't know in time is that a capacity
has just shrunk, or that a cancelled call has not ended yet. Invariants: no more calls are inside
than the capacity of when they entered; room goes to the oldest in line; the line is bounded in
length and in time; one node holds no more than its share of what a hub's connection may have open,
whatever it says of its capacity, and whether it reads or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from emcd.errors import RecoverableError
from emcd.line import Line, LineFull

_KEYS = ("room",)


class NodeRoom:
    """Who is inside, and who waits."""

    def __init__(
        self,
        line_length: int,
        timeout_s: float,
        *,
        most_calls: float = math.inf,
        most_bytes: float = math.inf,
    ) -> None:
        self.capacity: float = 0
        self.in_flight = 0
        self._line: Line[NodeRoom] = Line(line_length)
        self._timeout_s = timeout_s
        self._most_calls = most_calls
        self._bytes_left = most_bytes
        self._idle = trio.lowlevel.ParkingLot()

    @contextmanager
    def hold(self, size: int) -> Iterator[Callable[[], None]]:
        """Count a body until the block's end, or until what it yields is called.

        Raises: RecoverableError EMC-2301 when the node's bodies fill its share.
        """
        if size > self._bytes_left:
            raise RecoverableError("EMC-2301", "the bodies of the node's calls fill its share")
        self._bytes_left -= size
        held = size

        def release() -> None:
            nonlocal held
            self._bytes_left += held
            held = 0

        try:
            yield release
        finally:
            release()

    async def enter(self) -> None:
        """Take room for a call; who returned from here calls `leave`.

        Raises: RecoverableError EMC-2301 too many wait, EMC-2302 no room in time.
        Cancellation: nothing was taken.
        """
        if self.in_flight < self.capacity and not self._line.waiting:
            self.in_flight += 1
            return
        try:
            room = await self._line.wait(_KEYS, self._timeout_s)
        except LineFull:
            raise RecoverableError("EMC-2301", f"{self._line.waiting} calls wait") from None
        if room is None:
            raise RecoverableError("EMC-2302", f"no room within {self._timeout_s} s")

    def leave(self) -> None:
        """A call is over."""
        self.in_flight -= 1
        self._hand_out()
        if not self.in_flight:
            self._idle.unpark_all()

    def set_capacity(self, capacity: int) -> None:
        """What the node said of itself last."""
        self.capacity = min(capacity, self._most_calls)
        self._hand_out()

    async def wait_idle(self) -> None:
        """Wait until no call is inside."""
        while self.in_flight:
            await self._idle.park()

    def _hand_out(self) -> None:
        while self.in_flight < self.capacity and self._line.offer(_KEYS, self, NodeRoom._take):
            pass

    def _take(self) -> None:
        self.in_flight += 1
