"""Bytes to and from one tunnel's socket, plain or TLS, where sending never waits.

`send` gives the kernel what it takes and keeps the rest: so all that a hub's tunnels have to say
goes out from one task, and an idle tunnel has a single one. Who sends looks at `is_blocked` first
and lets somebody `drain`, with a deadline. No protocol, no deadlines here.
"""

from __future__ import annotations

import socket
import ssl
from typing import Protocol

import trio

_READ_BYTES = 64 * 1024


class TunnelSocket(Protocol):
    """One connection. All but `close` raise OSError when it is broken or closed here."""

    def send(self, data: bytes) -> None:
        """Send now what can be sent, and keep the rest for `drain`. Not while `is_blocked`."""
        ...

    @property
    def is_blocked(self) -> bool: ...

    async def drain(self) -> None:
        """Wait until the rest is with the kernel."""
        ...

    async def receive(self) -> bytes:
        """At least one byte, or b"" at the end."""
        ...

    def shut_down(self) -> None:
        """Say that nothing more will be sent."""
        ...

    def close(self) -> None: ...

    @property
    def is_open(self) -> bool: ...

    @property
    def source(self) -> str:
        """The peer's IP address, as text."""
        ...


class PlainSocket:
    """A TCP socket without TLS."""

    __slots__ = ("_fileno", "_rest", "_socket", "source")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._fileno = sock.fileno()
        self._rest: memoryview | None = None
        self.source = find_source(sock)

    @property
    def is_open(self) -> bool:
        return self._fileno >= 0

    @property
    def is_blocked(self) -> bool:
        return self._rest is not None

    def send(self, data: bytes) -> None:
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(data):
            self._rest = memoryview(data)[sent:]

    async def drain(self) -> None:
        while self._rest is not None:
            await wait_on(trio.lowlevel.wait_writable, self._fileno)
            try:
                sent = self._socket.send(self._rest)
            except (BlockingIOError, InterruptedError):
                continue
            self._rest = self._rest[sent:] if sent < len(self._rest) else None

    async def receive(self) -> bytes:
        while True:
            await wait_on(trio.lowlevel.wait_readable, self._fileno)
            try:
                return self._socket.recv(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                continue

    def shut_down(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._fileno >= 0:
            trio.lowlevel.notify_closing(self._fileno)
            self._fileno = -1
            self._socket.close()


class TlsSocket:
    """A TCP socket under TLS. `shake_hands` comes first."""

    __slots__ = ("_incoming", "_outgoing", "_plain", "_tls")

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str | None = None,
    ) -> None:
        self._plain = PlainSocket(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )

    async def shake_hands(self) -> None:
        """Raises: OSError, ssl.SSLError when chain or name can't be verified."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._pull()
            except ssl.SSLError:
                self._push()  # the alert that tells the peer why
                raise
        self._push()
        await self.drain()

    @property
    def source(self) -> str:
        return self._plain.source

    @property
    def is_open(self) -> bool:
        return self._plain.is_open

    @property
    def is_blocked(self) -> bool:
        return self._plain.is_blocked

    def send(self, data: bytes) -> None:
        if data:
            self._tls.write(data)
        self._push()

    async def drain(self) -> None:
        await self._plain.drain()
        while self._outgoing.pending:  # what a read wanted to send while the socket was blocked
            self._push()
            await self._plain.drain()

    async def receive(self) -> bytes:
        while True:
            try:
                return self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            await self._pull()

    async def _pull(self) -> None:
        """Send what TLS itself has to say, and feed it with what comes."""
        self._push()
        data = await self._plain.receive()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _push(self) -> None:
        if self._outgoing.pending and not self._plain.is_blocked:
            self._plain.send(self._outgoing.read())

    def shut_down(self) -> None:
        """TLS has no half-closed state that every peer understands: the close frame has said it all."""

    def close(self) -> None:
        self._plain.close()


async def wait_on(wait: WaitFor, fileno: int) -> None:
    """Wait for the socket. Raises: OSError when it was closed here, before or meanwhile."""
    if fileno < 0:
        raise ConnectionError("closed")
    try:
        await wait(fileno)
    except trio.ClosedResourceError as exc:
        raise ConnectionError("closed") from exc


class WaitFor(Protocol):
    """trio's wait_readable and wait_writable."""

    async def __call__(self, sock: int, /) -> None: ...


def find_source(sock: socket.socket) -> str:
    """The peer's IP address, or "unknown" when it has gone."""
    try:
        return str(sock.getpeername()[0])
    except (OSError, IndexError):
        return "unknown"
