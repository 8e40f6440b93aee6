"""The HTTP server: bounds, watches, drains. ASGI 3 (http, and lifespan where asked) on trio.

One task a connection, one a listener that wakes them when their sockets have something, and one
that holds every deadline and ends the runs of clients that left. It logs nothing and serves no path
of its own. Invariants: at most `connections` open; no exception of an application or a client stops
it; after the drain's end nothing is open.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from emcd.net.http_connection import Connection, Shared, Wait
from emcd.net.http_exchange import ASGIApp, ClientAddress, DirectApp, Exchange
from emcd.net.http_lifespan import run_lifespan
from emcd.net.http_limit import Limits
from emcd.net.http_listen import HttpListener, listen_tcp, listen_unix
from emcd.net.http_ready import ReadyWatch
from emcd.net.http_request import Request
from emcd.net.http_transport import PlainTransport, TlsTransport, Transport

_TICK_S = 0.25
_PRESSURE_IDLE_S = 1.0
_OUT_OF_FILES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


def _log_error(exc: BaseException) -> None:
    logging.getLogger("emcd.net.http").error("application failed", exc_info=exc)


async def serve_http(
    app: ASGIApp | DirectApp,
    *,
    host: str = "",
    port: int = 0,
    unix: Path | None = None,
    unix_mode: int = 0o660,
    ssl_context: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    lifespan: bool = False,
    drain: trio.Event | None = None,
    on_error: Callable[[BaseException], None] = _log_error,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an application until drained or cancelled.

    The application runs in its connection's task. When the client leaves: an application that
    waits in `receive()`, or looks there now and then, gets `http.disconnect` and
    `disconnect_grace_s`; any other is cancelled, within half a second; `send()` raises an OSError.
    So an application that must finish something does it in a `finally`, shielded, with a deadline.

    A client that closes its sending side counts as gone. Work that an application does after its
    response is complete is not disturbed.

    Args:
        app: a DirectApp, or any ASGI application.
        host: an address (a name that has several is bound at the first).
        port: 0 picks a free one.
        unix: listen on this unix socket, and not on host and port.
        unix_mode: of the socket's file: who on this machine may connect.
        lifespan: tell an ASGI application of start and end (http.lifespan); without it no such
            scope is made.
        drain: set it to stop accepting, close idle connections at once, and return when the
            requests in flight are done or `drain_s` is over.
        on_error: told of every exception that an application lets out; must not raise.
        task_status: started with the port once it listens; 0 on a unix socket.

    Raises: OSError when it cannot listen; LocalProtocolError EMC-1341 when an application with a
        lifespan does not start.
    Cancellation: everything is closed at once.
    """
    if unix is None and not host:
        raise ValueError("a host or a unix socket is needed")
    shared = Shared(
        run=app.handle if isinstance(app, DirectApp) else _by_asgi(app),
        limits=limits or Limits(),
        scheme="http" if ssl_context is None else "https",
        on_error=on_error,
        now=trio.current_time(),
        watch=ReadyWatch(),
    )
    async with AsyncExitStack() as stack:
        if lifespan and not isinstance(app, DirectApp):
            shared.state = await stack.enter_async_context(run_lifespan(app, on_error))
        listener = await listen_tcp(host, port) if unix is None else listen_unix(unix, unix_mode)
        stack.callback(listener.close)
        task_status.started(listener.port)
        await _Server(shared, listener, ssl_context).run(trio.Event() if drain is None else drain)


def _by_asgi(app: ASGIApp) -> Callable[[Request, Exchange], Awaitable[None]]:
    def run(_: Request, exchange: Exchange) -> Awaitable[None]:
        return app(exchange.scope(), exchange.receive, exchange.send)

    return run


class _Server:
    """The tasks of one listener and the connections they share."""

    def __init__(self, shared: Shared, listener: HttpListener, ssl_context: ssl.SSLContext | None) -> None:
        self._shared = shared
        self._listener = listener
        self._ssl_context = ssl_context
        self._connections: set[Connection] = set()
        self._leaving: set[Connection] = set()
        self._slot = trio.Event()
        self._empty = trio.Event()
        self._full = False

    async def run(self, drain: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._shared.watch.run)
            nursery.start_soon(self._sweep)
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, nursery)
                await drain.wait()
                accepting.cancel_scope.cancel()
            self._listener.close()
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
        while True:
            if len(self._connections) >= self._shared.limits.connections:
                self._slot = trio.Event()
                self._full = True
                await self._slot.wait()
                self._full = False
            try:
                accepted = await self._listener.accept()
            except OSError as exc:
                if exc.errno not in _OUT_OF_FILES:
                    raise
                await trio.sleep(_TICK_S)
                continue
            if (connection := self._open(accepted)) is not None:
                nursery.start_soon(self._serve, connection)

    def _open(self, accepted: trio.socket.SocketType) -> Connection | None:
        """Take an accepted socket out of trio's wrapper and count it; None when it broke already."""
        family, kind, proto = accepted.family, accepted.type, accepted.proto
        sock = socket.socket(family, kind, proto, fileno=accepted.detach())
        sock.setblocking(False)
        client: ClientAddress | None = None
        server: tuple[str, int | None]
        try:
            if family == socket.AF_UNIX:
                server = (sock.getsockname(), None)
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client, server = sock.getpeername()[:2], sock.getsockname()[:2]
        except OSError:
            sock.close()
            return None
        context, watch = self._ssl_context, self._shared.watch
        transport: Transport = (
            PlainTransport(sock, watch) if context is None else TlsTransport(sock, context, watch)
        )
        connection = Connection(self._shared, transport, client, server)
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
        """Hold the deadlines, and end the runs of clients that left."""
        while True:
            await trio.sleep(_TICK_S)
            now = self._shared.now = trio.current_time()
            leaving = set()
            for connection in list(self._connections):
                if connection.read_deadline <= now or connection.write_deadline <= now:
                    connection.expire()
                elif connection.left:
                    # A tick's grace: who sends a request and then closes its sending side may
                    # still get the answer of a quick application.
                    if connection.working and connection in self._leaving:
                        connection.lose()
                    leaving.add(connection)
                elif self._full and connection.wait is Wait.IDLE:
                    limit = connection.read_deadline - self._shared.limits.idle_s + _PRESSURE_IDLE_S
                    if limit <= now:
                        connection.close_idle()
            self._leaving = leaving
