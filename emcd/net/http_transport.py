"""Bytes to and from one accepted socket, plain or TLS. No protocol, no deadlines.

The plain transport talks to the non-blocking socket itself: bytes that are here already and a send
that fits into the kernel's buffer cost no pass through the scheduler, which is half of the server's
speed. So neither call is ALWAYS a checkpoint; who loops over them must make one.
"""

from __future__ import annotations

import socket
import ssl
from typing import Protocol

import trio

from emcd.net.http_ready import LEFT, READABLE, ReadyWatch
from emcd.net.wake import WOKEN

_GOODBYE_S = 1.0  # how long a TLS goodbye may take


class Transport(Protocol):
    """One connection's bytes. What receives or sends raises OSError or trio.BrokenResourceError
    when the connection broke."""

    left: bool
    """Whether the client closed its sending side, or all of it; known without reading."""

    async def start(self) -> None:
        """Make it ready for bytes (the TLS handshake)."""
        ...

    async def receive(self, max_bytes: int) -> bytes:
        """At least one byte, or b"" at the end."""
        ...

    def send_now(self, data: bytes) -> int:
        """Send what can go without waiting. Returns: how many bytes that were."""
        ...

    async def send(self, data: bytes, sent: int, stalled: Stalled) -> None:
        """Send the rest, of which `sent` bytes went. Calls `stalled(sent)` before each wait."""
        ...

    async def aclose(self, *, shutdown_only: bool = False) -> None:
        """Close, or only say that nothing more will be sent. Never raises but Cancelled."""
        ...


class Stalled(Protocol):
    """Told that a send has to wait, and how much of it went out already."""

    def __call__(self, sent_bytes: int, /) -> None: ...


class PlainTransport:
    """A stream socket without TLS."""

    __slots__ = ("_fileno", "_readable", "_reader", "_recv", "_send", "_socket", "_watch", "left")

    def __init__(self, sock: socket.socket, watch: ReadyWatch) -> None:
        self._socket = sock
        self._recv = sock.recv
        self._send = sock.send
        self._fileno = sock.fileno()
        self._watch = watch
        self._readable = True
        self._reader: trio.lowlevel.Task | None = None
        self.left = False

    async def start(self) -> None:
        self._watch.add(self._fileno, READABLE, self._tell)

    def _tell(self, events: int) -> None:
        self._readable = True
        if events & LEFT:
            self.left = True
        reader = self._reader
        if reader is not None:
            self._reader = None
            trio.lowlevel.reschedule(reader, WOKEN)

    async def receive(self, max_bytes: int) -> bytes:
        while True:
            if self._readable:
                try:
                    data = self._recv(max_bytes)
                except (BlockingIOError, InterruptedError):
                    self._readable = False
                else:
                    # Less than asked for is all there was, and more makes a new edge; but an end
                    # that came before this read made its edge already.
                    if len(data) < max_bytes and not self.left:
                        self._readable = False
                    return data
            if self._reader is not None:
                raise trio.BusyResourceError("two tasks receive at once")
            if self._fileno < 0:
                raise trio.ClosedResourceError
            self._reader = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def send_now(self, data: bytes) -> int:
        try:
            return self._send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    async def send(self, data: bytes, sent: int, stalled: Stalled) -> None:
        view = memoryview(data)
        while sent < len(data):
            stalled(sent)
            await trio.lowlevel.wait_writable(self._fileno)
            try:
                sent += self._send(view[sent:])
            except (BlockingIOError, InterruptedError):
                continue

    async def aclose(self, *, shutdown_only: bool = False) -> None:
        if shutdown_only:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            return
        if self._fileno >= 0:
            self._watch.remove(self._fileno)
            trio.lowlevel.notify_closing(self._fileno)
            self._fileno = -1
            self._socket.close()
            self._tell(0)


class TlsTransport:
    """A stream socket under TLS."""

    __slots__ = ("_fileno", "_stream", "_watch", "left")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, watch: ReadyWatch) -> None:
        self._fileno = sock.fileno()
        self._watch = watch
        self.left = False
        self._stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(sock)),
            context,
            server_side=True,
            https_compatible=True,
        )

    async def start(self) -> None:
        self._watch.add(self._fileno, LEFT, self._tell)
        await self._stream.do_handshake()

    def _tell(self, _: int) -> None:
        self.left = True

    async def receive(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    def send_now(self, data: bytes) -> int:
        """Nothing: TLS goes by way of trio."""
        return 0

    async def send(self, data: bytes, sent: int, stalled: Stalled) -> None:
        for start in range(sent, len(data), 65536):
            stalled(start)
            await self._stream.send_all(data[start : start + 65536])

    async def aclose(self, *, shutdown_only: bool = False) -> None:
        if shutdown_only:
            return
        if self._fileno >= 0:
            self._watch.remove(self._fileno)
            self._fileno = -1
        with trio.move_on_after(_GOODBYE_S):
            try:
                await self._stream.aclose()
            except (OSError, trio.BrokenResourceError, trio.BusyResourceError):
                await trio.aclose_forcefully(self._stream)
