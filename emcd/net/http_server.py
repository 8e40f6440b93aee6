"""The HTTP server: listens, bounds, watches, drains. ASGI 3 (http only) on trio.

One task a connection, one sweep task a listener that holds every deadline and looks for clients
that left. It logs nothing and serves no path of its own. Invariants: at most `connections` open;
no exception of an application or a client stops it; after the drain's end nothing is open.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import ssl
from collections.abc import Callable

import trio

from emcd.net.http_connection import Connection, Shared, Wait
from emcd.net.http_exchange import ASGIApp
from emcd.net.http_limit import Limits
from emcd.net.http_transport import PlainTransport, TlsTransport, Transport

_TICK_S = 0.25
_PRESSURE_IDLE_S = 1.0
_BACKLOG = 1024
_OUT_OF_FILES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_LEFT = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


def _log_error(exc: BaseException) -> None:
    logging.getLogger("emcd.net.http").error("application failed", exc_info=exc)


async def serve_http(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    drain: trio.Event | None = None,
    on_error: Callable[[BaseException], None] = _log_error,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application until drained or cancelled.

    The application runs in its connection's task. When the client leaves: an application that
    waits in `receive()` gets `http.disconnect` and `disconnect_grace_s`; one that does anything
    else is cancelled, within half a second; `send()` raises an OSError. So an application that
    must finish something does it in a `finally`, shielded, with a deadline.

    A client that closes its sending side counts as gone. Work that an application does after its
    response is complete is not disturbed.

    Args:
        host: an address (a name that has several is bound at the first).
        port: 0 picks a free one.
        drain: set it to stop accepting, close idle connections at once, and return when the
            requests in flight are done or `drain_s` is over.
        on_error: told of every exception that an application lets out; must not raise.
        task_status: started with the port once it listens.

    Raises: OSError when it cannot listen.
    Cancellation: everything is closed at once.
    """
    listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
    for extra in listeners[1:]:
        await extra.aclose()
    listener = listeners[0]
    shared = Shared(
        app=app,
        limits=limits or Limits(),
        scheme="http" if ssl_context is None else "https",
        on_error=on_error,
        now=trio.current_time(),
    )
    server = _Server(shared, listener, ssl_context)
    task_status.started(listener.socket.getsockname()[1])
    await server.run(trio.Event() if drain is None else drain)


class _Server:
    """The tasks of one listener and the connections they share."""

    def __init__(
        self, shared: Shared, listener: trio.SocketListener, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._shared = shared
        self._listener = listener
        self._ssl_context = ssl_context
        self._connections: set[Connection] = set()
        self._watched: set[Connection] = set()
        self._slot = trio.Event()
        self._empty = trio.Event()
        self._full = False

    async def run(self, drain: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, nursery)
                await drain.wait()
                accepting.cancel_scope.cancel()
            self._shared.draining = True
            for connection in list(self._connections):
                connection.close_idle()
            with trio.move_on_after(self._shared.limits.drain_s):
                while self._connections:
                    self._empty = trio.Event()
                    await self._empty.wait()
            for connection in list(self._connections):
                connection.cut()
            nursery.cancel_scope.deadline = trio.current_time() + _PRESSURE_IDLE_S
            while self._connections:
                self._empty = trio.Event()
                await self._empty.wait()
            nursery.cancel_scope.cancel()

    async def _accept(self, nursery: trio.Nursery) -> None:
        async with self._listener:
            while True:
                if len(self._connections) >= self._shared.limits.connections:
                    self._slot = trio.Event()
                    self._full = True
                    await self._slot.wait()
                    self._full = False
                try:
                    stream = await self._listener.accept()
                except OSError as exc:
                    if exc.errno not in _OUT_OF_FILES:
                        raise
                    await trio.sleep(_TICK_S)
                    continue
                if (connection := self._open(stream.socket)) is not None:
                    nursery.start_soon(self._serve, connection)

    def _open(self, accepted: trio.socket.SocketType) -> Connection | None:
        """Take an accepted socket out of trio's wrapper and count it; None when it broke already."""
        family, kind, proto = accepted.family, accepted.type, accepted.proto
        sock = socket.socket(family, kind, proto, fileno=accepted.detach())
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client, local = sock.getpeername()[:2], sock.getsockname()[:2]
        except OSError:
            sock.close()
            return None
        context = self._ssl_context
        transport: Transport = PlainTransport(sock) if context is None else TlsTransport(sock, context)
        connection = Connection(self._shared, transport, client, local)
        self._connections.add(connection)
        return connection

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._slot.set()
            if not self._connections:
                self._empty.set()

    async def _sweep(self) -> None:
        """Hold the deadlines, and ask which clients left since the last time."""
        while True:
            await trio.sleep(_TICK_S)
            now = self._shared.now = trio.current_time()
            busy = set()
            for connection in list(self._connections):
                if connection.read_deadline <= now or connection.write_deadline <= now:
                    connection.expire()
                elif connection.working:
                    busy.add(connection)
                elif self._full and connection.wait is Wait.IDLE:
                    limit = connection.read_deadline - self._shared.limits.idle_s + _PRESSURE_IDLE_S
                    if limit <= now:
                        connection.close_idle()
            self._find_left(busy & self._watched)
            self._watched = busy

    def _find_left(self, connections: set[Connection]) -> None:
        """One poll() over the clients whose application has run for a tick or more."""
        poll = select.poll()
        by_file = {c.fileno: c for c in connections if c.fileno >= 0}
        if not by_file:
            return
        for fileno in by_file:
            poll.register(fileno, _LEFT)
        for fileno, _ in poll.poll(0):
            by_file[fileno].lose()
