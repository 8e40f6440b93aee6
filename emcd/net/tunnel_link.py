"""One WebSocket under a tunnel session: a reader, a writer, deadlines, the way it ends.

Owns what hub and node have in common. Frames that gather while a message is being sent go out
together as the next one. Invariants: no wait on the peer without a deadline (a send that makes no
progress for `write_stall_s` ends the link; pings find a silent peer); what waits to be sent is
bounded, since who adds to it waits in `room`; once `closed` is set nothing waits here any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.connection import Connection

from emcd.errors import EmcdError, ProtocolError, RecoverableError, RemoteProtocolError
from emcd.net.tunnel_wire import Wire
from emcd.proto.tunnel import Session

_BACKLOG_BYTES = 1024 * 1024
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
_TRY_AGAIN = ("EMC-1401", "EMC-1409")
_CLOSE_BASE = 3000
"""WebSocket close codes 4400 to 4499 stand for the EMC codes 14xx with the same last two digits."""


@dataclass(frozen=True, slots=True)
class TunnelLimits:
    """Bounds of one tunnel, and of a hub's listener.

    Attributes:
        open_calls: at once on one tunnel.
        body_bytes: body of one call, at the node.
        bodies_bytes: bodies of all open calls together, at the node.
        handshake_s: from the TCP connection to the proven tunnel.
        ping_interval_s: a peer that answers no ping within `ping_timeout_s` (not longer than the
            interval) is gone.
        write_stall_s: how long one message may wait for the peer.
        close_s: how long a farewell may take.
        drain_s: how long open calls may take once a side is leaving.
        connections: of a hub's listener, those in their handshake included.
    """

    open_calls: int = 1024
    body_bytes: int = 16 * 1024 * 1024
    bodies_bytes: int = 64 * 1024 * 1024
    handshake_s: float = 10.0
    ping_interval_s: float = 10.0
    ping_timeout_s: float = 10.0
    write_stall_s: float = 15.0
    close_s: float = 2.0
    drain_s: float = 30.0
    connections: int = 2048


def log_error(exc: BaseException) -> None:
    """Where a handler's exceptions go when nobody asked for them."""
    logging.getLogger("emcd.net.tunnel").error("tunnel handler failed", exc_info=exc)


class Link:
    """A session on its WebSocket."""

    def __init__(self, websocket: Wire, session: Session, limits: TunnelLimits) -> None:
        self.closed = trio.Event()
        self.fault: EmcdError | None = None
        self._websocket = websocket
        self._session = session
        self._limits = limits
        self._dirty = trio.Event()
        self._room = trio.Event()
        self._sending = False
        websocket.attach_writer(self._ring)

    def _ring(self) -> None:
        self._dirty.set()

    async def room(self) -> None:
        """Wait until there is room for more to send. Raises: RecoverableError EMC-1412."""
        while not self.closed.is_set():
            if self._session.outbox_bytes < _BACKLOG_BYTES:
                return
            await self._wait_sent()
        raise self.lost()

    def flush(self) -> None:
        """Have the writer send what the session wants sent."""
        if self._session.outbox:
            self._dirty.set()

    async def flushed(self) -> None:
        """Wait until everything was handed to the kernel, or the link is closed."""
        while (self._sending or self._session.outbox) and not self.closed.is_set():
            await self._wait_sent()

    async def _wait_sent(self) -> None:
        if self._room.is_set():
            self._room = trio.Event()
        await self._room.wait()

    def lost(self) -> RecoverableError:
        """What the owners of calls get when the link is closed."""
        return RecoverableError("EMC-1412", "it was closed" if self.fault is None else self.fault.detail)

    def end(self, fault: EmcdError | None) -> None:
        """Mark the link as closed; the first fault stays."""
        if not self.closed.is_set():
            self.fault = fault
            self.closed.set()
            self._room.set()

    async def read(self, handle: Callable[[bytes], None]) -> None:
        """Hand messages to `handle` until the link ends. Never raises but Cancelled.

        A ProtocolError out of `handle` ends the link.
        """
        websocket = self._websocket
        try:
            while True:
                message = await websocket.recv()
                if isinstance(message, str):
                    raise RemoteProtocolError("EMC-1420", "a text message")
                handle(message)
                self.flush()
        except ConnectionClosed as exc:
            self.end(fault_of(exc))
        except ProtocolError as exc:
            self.end(exc)

    async def write(self) -> None:
        """Send what gathers until the link ends. Never raises but Cancelled."""
        session, websocket = self._session, self._websocket
        while True:
            await self._dirty.wait()
            self._dirty = trio.Event()
            while True:
                message = session.take_message()
                if message and not websocket.queue(message):
                    return  # the reader finds out why
                self._sending = True
                if not await self._flush():
                    return
                self._sending = False
                self._room.set()
                if not session.outbox:
                    break

    async def _flush(self) -> bool:
        """Send within the stall limit; False when the link is at its end."""
        websocket = self._websocket
        try:
            with trio.move_on_after(self._limits.write_stall_s) as scope:
                await websocket.flush()
        except _BROKEN as exc:
            self.end(RecoverableError("EMC-1412", str(exc) or "the connection broke"))
            return False
        if scope.cancelled_caught:
            self.end(RecoverableError("EMC-1412", "the peer stopped reading"))
            await trio.aclose_forcefully(websocket.stream)
            return False
        return True

    async def say_goodbye(self) -> None:
        """Close the WebSocket with the reason, within `close_s`."""
        self._websocket.detach_writer()
        fault = self.fault
        code, reason = close_code(fault) if isinstance(fault, ProtocolError) else (1001, "")
        await close_websocket(self._websocket, code, reason, self._limits.close_s)


async def close_websocket(websocket: Connection, code: int, reason: str, close_s: float) -> None:
    """Say farewell for at most `close_s`, then close in any case."""
    with trio.move_on_after(close_s, shield=True) as scope:
        await websocket.aclose(code, reason.encode()[:120].decode("utf-8", "ignore"))
    if scope.cancelled_caught:
        await trio.aclose_forcefully(websocket.stream)


def close_code(fault: EmcdError) -> tuple[int, str]:
    """The WebSocket close code and reason that tell a peer the fault."""
    number = int(fault.code[4:])
    return (_CLOSE_BASE + number if 1400 <= number < 1500 else 1002), fault.detail


def fault_of(exc: ConnectionClosed) -> EmcdError | None:
    """Why the peer closed: its number, as RemoteProtocolError unless trying again is right;
    RecoverableError for a broken connection; None for a farewell."""
    received = exc.rcvd
    if received is None:
        cause = exc.__cause__
        return RecoverableError("EMC-1412", str(cause) if cause else "the connection broke")
    if 4400 <= received.code < 4500:
        code = f"EMC-{received.code - _CLOSE_BASE}"
        kind = RecoverableError if code in _TRY_AGAIN else RemoteProtocolError
        return kind(code, received.reason)
    if received.code in (1000, 1001):
        return None
    return RecoverableError("EMC-1412", f"closed with {received.code} {received.reason}".rstrip())
