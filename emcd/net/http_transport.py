"""Bytes to and from one accepted socket, plain or TLS. No protocol, no deadlines.

The plain transport talks to the non-blocking socket itself: a send that fits into the kernel's
buffer costs no pass through the scheduler, which is a third of the server's speed. So `send`
is NOT always a checkpoint; who sends in a loop must make one.
"""

from __future__ import annotations

import socket
import ssl
from typing import Protocol

import trio

_GOODBYE_S = 1.0  # how long a TLS goodbye may take


class Transport(Protocol):
    """One connection's bytes. Both calls raise OSError or trio.BrokenResourceError when it broke."""

    fileno: int

    async def start(self) -> None:
        """Make it ready for bytes (the TLS handshake)."""
        ...

    async def receive(self, max_bytes: int) -> bytes:
        """At least one byte, or b"" at the end."""
        ...

    async def send(self, data: bytes, stalled: Stalled) -> None:
        """All of it. Calls `stalled(sent)` before each wait for the client."""
        ...

    async def aclose(self, *, shutdown_only: bool = False) -> None:
        """Close, or only say that nothing more will be sent. Never raises but Cancelled."""
        ...


class Stalled(Protocol):
    """Told that a send has to wait, and how much of it went out already."""

    def __call__(self, sent_bytes: int, /) -> None: ...


class PlainTransport:
    """A TCP socket without TLS."""

    __slots__ = ("_recv", "_send", "_socket", "fileno")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._recv = sock.recv
        self._send = sock.send
        self.fileno = sock.fileno()

    async def start(self) -> None:
        """Nothing to do."""

    async def receive(self, max_bytes: int) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self.fileno)
            try:
                return self._recv(max_bytes)
            except (BlockingIOError, InterruptedError):
                continue

    async def send(self, data: bytes, stalled: Stalled) -> None:
        try:
            sent = self._send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(data):
            return
        view = memoryview(data)
        while sent < len(data):
            stalled(sent)
            await trio.lowlevel.wait_writable(self.fileno)
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
        if self.fileno >= 0:
            trio.lowlevel.notify_closing(self.fileno)
            self.fileno = -1
            self._socket.close()


class TlsTransport:
    """A TCP socket under TLS."""

    __slots__ = ("_stream", "fileno")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.fileno = sock.fileno()
        self._stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(sock)),
            context,
            server_side=True,
            https_compatible=True,
        )

    async def start(self) -> None:
        await self._stream.do_handshake()

    async def receive(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send(self, data: bytes, stalled: Stalled) -> None:
        for start in range(0, len(data), 65536):
            stalled(start)
            await self._stream.send_all(data[start : start + 65536])

    async def aclose(self, *, shutdown_only: bool = False) -> None:
        if shutdown_only:
            return
        self.fileno = -1
        with trio.move_on_after(_GOODBYE_S):
            try:
                await self._stream.aclose()
            except (OSError, trio.BrokenResourceError, trio.BusyResourceError):
                await trio.aclose_forcefully(self._stream)
