"""One WebSocket of a tunnel: what comes is handed on, what goes never waits, and how it ends.

Owns what hub and node have in common below the session. Invariants: no wait on the peer without a
deadline (a send that makes no progress for `write_stall_s` ends the link; `tick`, called by a sweep
over all links, pings a silent peer and gives it up); once `closed` nothing is sent any more but the
farewell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from emcd.errors import EmcdError, ProtocolError, RecoverableError, RemoteProtocolError
from emcd.net.tunnel_socket import TunnelSocket
from emcd.net.tunnel_websocket import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    FrameReader,
    WebSocketError,
    decode_close,
    encode,
    encode_close,
)

_TRY_AGAIN = ("EMC-1401", "EMC-1409", "EMC-1415")
_CLOSE_BASE = 3000
"""WebSocket close codes 4400 to 4499 stand for the EMC codes 14xx with the same last two digits."""
_LOST = "EMC-1412"
_SERVER_FIRST = 0.8
"""A server asks a little earlier, so that its clients need not: its sweep asks many at a time, and the
answers that come together cost a third of pings that come one by one."""


@dataclass(frozen=True, slots=True)
class TunnelLimits:
    """Bounds of one tunnel, and of a hub's listener.

    Attributes:
        open_calls: at once on one tunnel.
        body_bytes: body of one call, at the node.
        bodies_bytes: bodies of all open calls together, at the node.
        handshake_s: from the TCP connection to the proven tunnel.
        ping_interval_s: a peer that says nothing for so long is asked, and is gone when it does not
            answer within `ping_timeout_s`.
        write_stall_s: how long one message may wait for the peer, and what was sent for its
            acknowledgement where nothing more may be sent without it.
        close_s: how long a farewell may take.
        drain_s: how long open calls may take once a side is leaving.
        connections: of a hub's listener, those in their handshake included.
        resume_s: how long a session waits for its node to come back after its connection was lost;
            0: not at all.
        give_up_s: how long a call that is not patient waits for that.
    """

    open_calls: int = 1024
    body_bytes: int = 32 * 1024 * 1024
    bodies_bytes: int = 256 * 1024 * 1024
    handshake_s: float = 10.0
    ping_interval_s: float = 10.0
    ping_timeout_s: float = 10.0
    write_stall_s: float = 15.0
    close_s: float = 2.0
    drain_s: float = 30.0
    connections: int = 8192
    resume_s: float = 10.0
    give_up_s: float = 1.0

    @property
    def sweep_s(self) -> float:
        """How often links are looked at, so that their deadlines are kept well enough."""
        return max(0.02, min(1.0, self.ping_interval_s / 4, self.ping_timeout_s / 4, self.write_stall_s / 4))


def log_error(exc: BaseException) -> None:
    """Where a handler's exceptions go when nobody asked for them."""
    logging.getLogger("emcd.net.tunnel").error("tunnel handler failed", exc_info=exc)


class Link:
    """One connection, from its upgrade on. Attributes: `closed`, and the `fault` that it ended by:
    None for a farewell."""

    __slots__ = (
        "_drained",
        "_found",
        "_frames",
        "_has_peer_left",
        "_is_masked",
        "_limits",
        "_nursery",
        "_on_room",
        "_pinged_at",
        "_pong",
        "_quiet_s",
        "_quiet_since",
        "_scope",
        "_stream",
        "_was_heard",
        "closed",
        "fault",
    )

    def __init__(
        self,
        stream: TunnelSocket,
        rest: bytes,
        limits: TunnelLimits,
        nursery: trio.Nursery,
        *,
        is_client: bool,
    ) -> None:
        """
        Args:
            rest: what came behind the upgrade.
            nursery: for the rare task that waits for the peer to read.
            is_client: a client masks what it sends, and a server does not.

        Raises: RemoteProtocolError when `rest` is no beginning of frames.
        """
        self.closed = False
        self.fault: EmcdError | None = None
        self._stream = stream
        self._is_masked = is_client
        self._frames = FrameReader(not is_client)
        self._found = self._frames.feed(rest)
        self._limits = limits
        self._nursery = nursery
        self._on_room: Callable[[], None] | None = None
        self._drained: trio.Event | None = None
        self._pong: bytes | None = None
        self._scope = trio.CancelScope()
        self._was_heard = self._has_peer_left = False
        self._quiet_since = trio.current_time()
        self._quiet_s = limits.ping_interval_s * (1.0 if is_client else _SERVER_FIRST)
        self._pinged_at: float | None = None

    @property
    def source(self) -> str:
        """The peer's IP address, as text."""
        return self._stream.source

    @property
    def is_blocked(self) -> bool:
        """Whether what was sent last still waits for the peer."""
        return self._drained is not None

    @property
    def is_lost(self) -> bool:
        """Whether it broke, with nobody's intention: the session may go on over another."""
        return self.closed and self.fault is not None and self.fault.code == _LOST

    def end(self, fault: EmcdError | None) -> None:
        """Read and send no more; the first fault stays."""
        if not self.closed:
            self.closed = True
            self.fault = fault
            self._scope.cancel()

    def send(self, message: bytes) -> None:
        """Send a message. Not while `is_blocked`; nothing once it is closed."""
        self._write(encode(BINARY, message, self._is_masked))

    def tick(self, now: float) -> None:
        """Ask a peer that is silent, and give up one that does not answer."""
        if self._was_heard:
            self._was_heard = False
            self._quiet_since, self._pinged_at = now, None
        elif self._pinged_at is None:
            if now - self._quiet_since >= self._quiet_s and not self.is_blocked:
                self._pinged_at = now
                self._write(encode(PING, b"", self._is_masked))
        elif now - self._pinged_at >= self._limits.ping_timeout_s:
            self.end(RecoverableError(_LOST, "the peer is silent"))

    # The handshake.

    async def say(self, message: bytes) -> None:
        """Send a message of the handshake. Raises: OSError."""
        self._stream.send(encode(BINARY, message, self._is_masked))
        await self._stream.drain()

    async def hear(self) -> bytes:
        """The next message of the handshake.

        Raises: RemoteProtocolError; RecoverableError EMC-1412; OSError; what the peer's farewell says.
        """
        while True:
            while self._found:
                opcode, payload = self._found.pop(0)
                if opcode == BINARY:
                    return payload
                if opcode == CLOSE:
                    text = "closed during the handshake"
                    raise fault_of(payload) or RecoverableError(_LOST, text)
            data = await self._stream.receive()
            if not data:
                raise RecoverableError(_LOST, "the connection was closed")
            try:
                self._found = self._frames.feed(data)
            except WebSocketError:
                raise
            except RemoteProtocolError as exc:
                raise RemoteProtocolError("EMC-1402", exc.detail) from exc

    # Its life.

    async def run(
        self,
        on_message: Callable[[bytes], None],
        on_room: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        """Hand messages on until the link ends, then say goodbye.

        Args:
            on_message: a ProtocolError out of it ends the link.
            on_room: called when the link is blocked no more.
            on_end: called once, when nothing more will come or be sent, before the farewell.

        Cancellation: as if it ended; the farewell has its own deadline.
        """
        self._on_room = on_room
        try:
            with self._scope:
                await self._read(on_message)
        finally:
            self.end(None)
            on_end()
            await self.say_goodbye()

    async def _read(self, on_message: Callable[[bytes], None]) -> None:
        stream, feed = self._stream, self._frames.feed
        found, self._found = self._found, []
        try:
            while True:
                for opcode, payload in found:
                    if self.closed:
                        return
                    if opcode == BINARY:
                        on_message(payload)
                    elif opcode == PING:
                        self._pong = payload
                    elif opcode == CLOSE:
                        self._has_peer_left = True
                        self.end(fault_of(payload))
                if self._pong is not None:
                    self._send_pong()
                data = await stream.receive()
                if not data:
                    break
                self._was_heard = True
                found = feed(data)
        except ProtocolError as exc:
            self.end(exc)
        except OSError as exc:
            self.end(RecoverableError(_LOST, str(exc) or "the connection broke"))
        self.end(RecoverableError(_LOST, "the connection was closed"))

    def _send_pong(self) -> None:
        """Answer the newest ping; the others need none. A blocked link does it when it has room."""
        pong = self._pong
        if pong is not None and not self.is_blocked:
            self._pong = None
            self._write(encode(PONG, pong, self._is_masked))

    def _write(self, data: bytes) -> None:
        if self.closed:
            return
        try:
            self._stream.send(data)
        except OSError as exc:
            self.end(RecoverableError(_LOST, str(exc) or "the connection broke"))
            return
        if self._stream.is_blocked:
            self._drained = trio.Event()
            self._nursery.start_soon(self._drain, self._drained)

    async def _drain(self, drained: trio.Event) -> None:
        """Wait for a peer that reads slowly; one that does not read ends the link."""
        try:
            with trio.move_on_after(self._limits.write_stall_s) as scope:
                await self._stream.drain()
            if scope.cancelled_caught:
                self.end(RecoverableError(_LOST, "the peer stopped reading"))
        except OSError as exc:
            self.end(RecoverableError(_LOST, str(exc) or "the connection broke"))
        finally:
            self._drained = None
            drained.set()
        self._send_pong()
        if self._on_room is not None and not self.closed:
            self._on_room()

    async def say_goodbye(self) -> None:
        """Close, with the reason where there is somebody to hear it; within `close_s`."""
        fault = self.fault
        try:
            if fault is None or isinstance(fault, ProtocolError):
                with trio.move_on_after(self._limits.close_s, shield=True):
                    if self._drained is not None:
                        await self._drained.wait()
                    code, reason = close_code(fault)
                    self._stream.send(encode_close(code, reason, self._is_masked))
                    await self._stream.drain()
                    self._stream.shut_down()
                    while not self._has_peer_left and await self._stream.receive():
                        pass  # until the peer has read all and closed
        except OSError:
            pass
        finally:
            self._stream.close()


def close_code(fault: EmcdError | None) -> tuple[int, str]:
    """The WebSocket close code and reason that tell a peer the fault."""
    if fault is None:
        return 1001, ""
    if isinstance(fault, WebSocketError):
        return fault.close_code, fault.detail
    number = int(fault.code[4:])
    return (_CLOSE_BASE + number if 1400 <= number < 1500 else 1002), fault.detail


def fault_of(payload: bytes) -> EmcdError | None:
    """Why the peer closed: its number, as RemoteProtocolError unless trying again is right;
    RecoverableError EMC-1412 for a fault of the WebSocket's own; None for a farewell."""
    code, reason = decode_close(payload)
    if 4400 <= code < 4500:
        name = f"EMC-{code - _CLOSE_BASE}"
        kind = RecoverableError if name in _TRY_AGAIN else RemoteProtocolError
        return kind(name, reason)
    if code in (1000, 1001):
        return None
    return RecoverableError(_LOST, f"closed with {code} {reason}".rstrip())
