"""A node as the hub sees it through its tunnel: calls to it, control messages both ways.

Invariants: when the tunnel is lost every call raises at once; a call that is left early is
cancelled at the node; a reader that is slow holds up only its own call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import trio

from emcd.errors import RecoverableError
from emcd.net.tunnel_link import Link
from emcd.proto.tunnel_hub import HubCall, HubSession
from emcd.types import Address, ParticipantRole


class TunnelPeer:
    """One authenticated tunnel. Attributes: `address` and `role` as proven, `closed` when it is gone."""

    def __init__(self, link: Link, session: HubSession, address: Address, role: ParticipantRole) -> None:
        self.address = address
        self.role = role
        self.closed = link.closed
        self._link = link
        self._session = session
        self._control = trio.Event()
        self._idle = trio.Event()

    @property
    def leaving(self) -> bool:
        """Whether no new call can be opened here."""
        return self._session.leaving or self._session.peer_leaving or self.closed.is_set()

    @property
    def open_calls(self) -> int:
        """Calls that have not ended, those cancelled and not yet confirmed by the node included."""
        return len(self._session.calls)

    def call(self, meta: bytes, body: bytes) -> OutgoingCall:
        """Prepare a call; it is opened by `async with`."""
        return OutgoingCall(self, meta, body)

    async def send_control(self, message: bytes) -> None:
        """Send a control message (256 KiB at most) once there is room.

        Raises: RecoverableError EMC-1412 when the tunnel is lost.
        """
        await self._link.room()
        self._session.send_control(message)
        self._link.flush()

    def controls(self) -> AsyncIterator[bytes]:
        """The node's control messages, until the tunnel is closed. One reader at a time."""
        return _Controls(self)

    async def next_control(self) -> bytes | None:
        """The next control message; None when the tunnel is closed."""
        while not self._session.controls:
            if self.closed.is_set():
                return None
            self._control = trio.Event()
            await self._control.wait()
        return self._session.take_control()

    async def leave(self, drain_s: float) -> None:
        """Tell the node that no new calls come, and wait for the open ones."""
        self._session.leave()
        self._link.flush()
        with trio.move_on_after(drain_s):
            while self._session.calls and not self.closed.is_set():
                self._idle = trio.Event()
                await self._idle.wait()
            await self._link.flushed()

    # For the listener and the calls.

    def handle(self, message: bytes) -> None:
        """Take a message of the node."""
        self._session.receive(message)
        if self._session.controls:
            self._control.set()
        if not self._session.calls:
            self._idle.set()

    def wake_all(self) -> None:
        """The link is closed: whoever waits here finds out now."""
        self._control.set()
        self._idle.set()
        for call in list(self._session.calls.values()):
            if call.notify is not None:
                call.notify()


class _Controls(AsyncIterator[bytes]):
    def __init__(self, peer: TunnelPeer) -> None:
        self._peer = peer

    async def __anext__(self) -> bytes:
        message = await self._peer.next_control()
        if message is None:
            raise StopAsyncIteration
        return message


class OutgoingCall(AsyncIterator[bytes]):
    """One call to a node; `async with` opens it. One reader at a time.

    No deadline of its own: the caller sets one around it.
    """

    __slots__ = ("_body", "_call", "_event", "_link", "_meta", "_peer", "_session")

    def __init__(self, peer: TunnelPeer, meta: bytes, body: bytes) -> None:
        self._peer = peer
        self._link = peer._link
        self._session = peer._session
        self._meta = meta
        self._body = body
        self._call: HubCall | None = None
        self._event: trio.Event | None = None

    async def __aenter__(self) -> Self:
        """Raises: RecoverableError EMC-1412 lost, EMC-1424 too many calls, EMC-1425 leaving."""
        await self._link.room()
        call = self._call = self._session.open(self._meta, self._body)
        call.notify = self._wake
        self._link.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        call = self._opened()
        call.notify = None
        self._session.cancel(call)
        self._link.flush()

    @property
    def call_number(self) -> int:
        return self._opened().number

    async def head(self) -> bytes:
        """The answer's head. Raises: RecoverableError with the node's code, or EMC-1412."""
        call = self._opened()
        while call.head is None:
            self._require_alive(call)
            await self._wait()
        return call.head

    def chunks(self) -> AsyncIterator[bytes]:
        """The answer's body, piece by piece, until its end. Raises as `head`, after what came."""
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        call = self._opened()
        while not call.chunks:
            if call.end is not None:
                raise StopAsyncIteration
            self._require_alive(call)
            await self._wait()
        chunk = self._session.take_chunk(call)
        self._link.flush()
        return chunk

    async def end(self) -> bytes:
        """The node's last word, once it came; chunks that were not read are dropped."""
        async for _ in self:
            pass
        end = self._opened().end
        assert end is not None
        return end

    async def whole(self, max_bytes: int) -> tuple[bytes, bytes, bytes]:
        """Head, whole body and last word of an answer that is not streamed.

        Raises: RecoverableError as `head`, and EMC-1428 when the body is larger than `max_bytes`.
        """
        body = bytearray()
        async for chunk in self:
            body += chunk
            if len(body) > max_bytes:
                raise RecoverableError("EMC-1428", f"an answer of more than {max_bytes} bytes")
        call = self._opened()
        assert call.head is not None
        assert call.end is not None
        return call.head, bytes(body), call.end

    def _opened(self) -> HubCall:
        assert self._call is not None, "the call is opened by `async with`"
        return self._call

    def _require_alive(self, call: HubCall) -> None:
        if call.error is not None:
            raise RecoverableError(call.error.code, call.error.detail)
        if self._link.closed.is_set():
            raise self._link.lost()

    async def _wait(self) -> None:
        self._event = trio.Event()
        await self._event.wait()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()
