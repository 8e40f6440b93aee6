"""A call as the node's handler sees it: its request whole, its answer piece by piece.

Invariants: a handler's scope is cancelled when the hub cancels the call, and the call stays open: a
shielded cleanup (with a deadline) may still end it with what it has; every call ends with exactly
one END or ERROR; a piece of at most PIECE_BYTES is sent whole or not at all.
"""

from __future__ import annotations

import trio

from emcd.net.tunnel_channel import Channel
from emcd.proto.tunnel import PIECE_BYTES
from emcd.proto.tunnel_node import NodeCall, NodeSession
from emcd.types import Address


class TunnelLink:
    """A session, from the node.

    Attributes:
        hub: as proven.
        closed: set when the session is over.
        leaving: set when the hub said that no new calls come.
    """

    def __init__(self, channel: Channel, session: NodeSession, hub: Address) -> None:
        self.hub = hub
        self.closed = channel.closed
        self.leaving = trio.Event()
        self._channel = channel
        self._session = session

    @property
    def live(self) -> bool:
        """Whether there is a connection now; while there is none, what is sent waits."""
        return self._channel.link is not None

    @property
    def in_flight(self) -> int:
        return len(self._session.calls)

    async def send_control(self, message: bytes) -> None:
        """Send a control message (256 KiB at most) once there is room.

        Raises: RecoverableError EMC-1412 when the session is over.
        """
        await self._channel.send_control(message)

    def post_control(self, message: bytes) -> bool:
        """Send a control message if there is room for it now. Returns: whether there was."""
        return self._channel.post_control(message)


class IncomingCall:
    """One call of the hub; its body is whole. One writer at a time.

    Attributes:
        sent_bytes: of the answer's body, what was sent for good.
    """

    __slots__ = ("_call", "_channel", "_credit", "_session", "body", "meta", "scope", "sent_bytes")

    def __init__(self, channel: Channel, session: NodeSession, call: NodeCall) -> None:
        self.meta = call.meta
        self.body = session.take_body(call)
        self.scope = trio.CancelScope()
        self.sent_bytes = 0
        self._channel = channel
        self._session = session
        self._call = call
        self._credit: trio.Event | None = None
        call.notify = self._changed

    @property
    def cancelled(self) -> bool:
        """Whether the hub cancelled the call."""
        return self._call.cancelled

    def release_body(self) -> None:
        """The body is with somebody else now: it counts no more here."""
        self.body = b""
        self._session.release_body(self._call)

    async def start(self, head: bytes) -> None:
        """Send the answer's head (64 KiB at most)."""
        await self._channel.room()
        self._session.start(self._call, head)
        self._channel.flush()

    async def send(self, chunk: bytes) -> None:
        """Send a piece of the answer; waits while the hub's reader of this call is behind.

        Cancellation: `sent_bytes` tells what was sent: nothing, unless it is over PIECE_BYTES.
        """
        await self._channel.room()
        left = memoryview(chunk)
        while left:
            sent = self._session.send_piece(self._call, left)
            if not sent:
                self._credit = trio.Event()
                await self._credit.wait()
                continue
            self.sent_bytes += sent
            self._channel.flush()
            left = left[sent:]

    async def answer(self, head: bytes, body: bytes, end: bytes) -> None:
        """Send a whole answer: the cheapest way where it is small; in pieces where it is not."""
        await self._channel.room()
        if self._session.answer(self._call, head, body, end):
            self.sent_bytes += len(body)
            self._channel.flush()
            return
        await self.start(head)
        for at in range(0, len(body), PIECE_BYTES):
            await self.send(body[at : at + PIECE_BYTES])
        await self.finish(end)

    async def finish(self, meta: bytes) -> None:
        """Send the call's last word (64 KiB at most); nothing may follow."""
        await self._channel.room()
        self._session.finish(self._call, meta)
        self._channel.flush()

    async def fail(self, code: str, detail: str) -> None:
        """End the call with an error that the hub's caller gets as RecoverableError(code, detail)."""
        self._session.fail(self._call, code, detail)
        self._channel.flush()

    def _changed(self) -> None:
        if self._call.cancelled:
            self.scope.cancel()
        if self._credit is not None:
            self._credit.set()
