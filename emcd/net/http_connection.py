"""One client's connection: requests in, the application run on each in turn, responses out.

The application runs in the connection's own task and within its one cancel scope: a request
costs no nursery and no timer. While it runs nobody reads, so a client that pipelines is held by
TCP. Deadlines are plain numbers that the server's sweep looks at (`expire`); that sweep also
ends the runs of clients that left (`lose`). Invariants: every wait on the client has one of the
two deadlines set; a cancelled scope is never used for another request; nothing that a client or an
application does leaves `run` as an exception.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import trio

from emcd.net.http_exchange import ClientAddress, ClientGoneError, Exchange, Scope
from emcd.net.http_limit import APP_FAILED, BODY_TIMEOUT, DRAINED, HEAD_TIMEOUT, Limits, Refusal
from emcd.net.http_parse import RequestParser
from emcd.net.http_ready import ReadyWatch
from emcd.net.http_request import Request
from emcd.net.http_response import refusal_bytes
from emcd.net.http_transport import Transport

_HEAD_READ = 16 * 1024
_BODY_READ = 128 * 1024
_YIELD_EVERY = 16
_LINGER_S = 2.0
_LINGER_BYTES = 4 * 1024 * 1024
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Wait(Enum):
    """What the connection waits for from its client."""

    HEAD = 1
    IDLE = 2
    BODY = 3
    APP = 4
    LEAVE = 5


_HEAD = Wait.HEAD
_IDLE = Wait.IDLE
_APP = Wait.APP
"""Names of this module: to read a member of an Enum costs four times as much."""


@dataclass
class Shared:
    """What the connections of one listener share. `now` is trio's clock, a quarter second coarse."""

    run: Callable[[Request, Exchange], Awaitable[None]]
    limits: Limits
    scheme: str
    on_error: Callable[[BaseException], None]
    now: float
    watch: ReadyWatch
    state: dict[str, Any] | None = None
    draining: bool = False

    def report(self, exc: BaseException) -> None:
        self.on_error(exc)


class Connection:
    """One accepted connection."""

    def __init__(
        self,
        shared: Shared,
        transport: Transport,
        client: ClientAddress | None,
        server: tuple[str, int | None],
    ) -> None:
        self._shared = shared
        self._transport = transport
        self.client = client
        self._server = server
        self._parser = RequestParser(shared.limits)
        self._scope = trio.CancelScope()
        self._refusal: Refusal | None = None
        self._exchange: Exchange | None = None
        self._body_deadline = math.inf
        self._stall_start = 0.0
        self._writing = False
        self.wait = _HEAD
        self.gone = False
        self.over = False
        self.read_deadline = shared.now + shared.limits.header_s
        self.write_deadline = math.inf

    @property
    def left(self) -> bool:
        """Whether the client closed its sending side, or all of it."""
        return self._transport.left

    @property
    def working(self) -> bool:
        """Whether an application still owes a response, so that its client's leaving matters."""
        exchange = self._exchange
        return self.wait is _APP and exchange is not None and not exchange.finished

    @property
    def draining(self) -> bool:
        return self._shared.draining

    def add_origin(self, scope: Scope) -> None:
        """Part of `Peer`."""
        shared = self._shared
        scope["scheme"] = shared.scheme
        scope["client"] = self.client
        scope["server"] = self._server
        if shared.state is not None:
            scope["state"] = shared.state.copy()

    async def run(self) -> None:
        """Serve until the client or the server ends it.

        Cancellation: closes at once.
        """
        try:
            try:
                with self._scope:
                    await self._transport.start()
                    await self._serve()
            except _BROKEN:
                self.gone = True
            except Exception as exc:  # noqa: BLE001 -- one client's trouble is not the others'
                self._shared.report(exc)
            if not self.gone:
                await self._say_goodbye()
        finally:
            await self._transport.aclose()

    # What the server's sweep and its drain call: no waiting here.

    def expire(self) -> None:
        """A deadline passed."""
        if self.write_deadline > self._shared.now:
            if self.wait is _HEAD and not self._parser.idle:
                self._refusal = HEAD_TIMEOUT
            elif self.wait is Wait.BODY:
                self._refusal = BODY_TIMEOUT
        else:
            self.gone = True
        self._end()

    def lose(self) -> None:
        """The client is gone. An application that listens for it gets a moment, another none."""
        if self.gone:
            return
        self.gone = self.over = True
        exchange = self._exchange
        if exchange is not None and exchange.listens:
            self.wait = Wait.LEAVE
            self.read_deadline = self._shared.now + self._shared.limits.disconnect_grace_s
            exchange.end_wait()
        else:
            self._end()

    def close_idle(self) -> None:
        """Close if no byte of a request is here."""
        if self._exchange is None and self._parser.idle and not self._parser.ready:
            self._end()

    def cut(self) -> None:
        """The drain's time is over."""
        self._refusal = DRAINED
        self._end()

    def _end(self) -> None:
        self.over = True
        self._scope.cancel()

    # The connection's task.

    async def _serve(self) -> None:
        parser, shared = self._parser, self._shared
        served = 0
        while True:
            if not parser.ready:
                if parser.refusal is not None:
                    self._refusal = parser.refusal
                    return
                if parser.last or (shared.draining and parser.idle):
                    return
                data = await self._transport.receive(_HEAD_READ)
                if not data:
                    self.gone = True
                    return
                if self.wait is _IDLE:
                    self.wait = _HEAD
                    self.read_deadline = shared.now + shared.limits.header_s
                parser.feed(data)
                if not parser.ready:
                    await trio.lowlevel.checkpoint()  # what is here already comes without one
                continue
            served += 1
            if served % _YIELD_EVERY == 0:
                await trio.lowlevel.checkpoint()
            self.wait = _APP
            self.read_deadline = self._body_deadline = math.inf
            if not await self._run_app(parser.ready.popleft()):
                return
            self.wait = _IDLE
            self.read_deadline = shared.now + shared.limits.idle_s

    async def _run_app(self, request: Request) -> bool:
        """Run the application on one request. Returns whether another may follow."""
        shared = self._shared
        exchange = self._exchange = Exchange(self, request)
        try:
            await shared.run(request, exchange)
        except Exception as exc:  # noqa: BLE001 -- whatever the application lets out
            if not self.gone:
                shared.report(exc)
        else:
            if not exchange.finished and not self.gone:
                shared.report(RuntimeError(f"no whole response to {request.method} {request.path!r}"))
        if not exchange.finished:
            self._refusal = None if exchange.begun else APP_FAILED
            return False
        self._exchange = None
        return exchange.reusable

    async def read_body(self) -> bool:
        """Read more of the current request's body. Part of `Peer`."""
        shared, limits = self._shared, self._shared.limits
        await self._require_sound_body()
        if self._body_deadline == math.inf:
            self._body_deadline = shared.now + limits.body_s
        self.read_deadline = self._body_deadline
        self.wait = Wait.BODY
        try:
            await trio.lowlevel.checkpoint()
            data = await self._transport.receive(_BODY_READ)
        except _BROKEN:
            data = b""
        finally:
            self.wait = _APP
            self.read_deadline = math.inf
        if not data:
            self._leave()
            return False
        self._body_deadline += len(data) / limits.min_rate_bytes_s
        self._parser.feed(data)
        await self._require_sound_body()
        return True

    async def _require_sound_body(self) -> None:
        """End the run when the body that it waits for will never be whole."""
        exchange = self._exchange
        if self._parser.refusal is not None and exchange is not None and not exchange.request.complete:
            self._refusal = self._parser.refusal
            self._end()
            await trio.lowlevel.checkpoint()

    async def write(self, data: bytes) -> None:
        """Send to the client within the stall limit. Part of `Peer`."""
        if self._writing:
            raise RuntimeError("two tasks send at once")
        try:
            sent = self._transport.send_now(data)
            if sent < len(data):
                await self._write_rest(data, sent)
        except _BROKEN as exc:
            self.lose()
            await trio.lowlevel.checkpoint()
            raise ClientGoneError("the client is gone") from exc

    async def _write_rest(self, data: bytes, sent: int) -> None:
        self._writing = True
        try:
            await self._transport.send(data, sent, self._stalled)
        finally:
            self._writing = False
            self.write_deadline = math.inf

    def _stalled(self, sent_bytes: int) -> None:
        limits = self._shared.limits
        if self.write_deadline == math.inf:
            self._stall_start = self._shared.now
        self.write_deadline = self._stall_start + limits.write_stall_s + sent_bytes / limits.min_rate_bytes_s

    def _leave(self) -> None:
        """The client left while the application waits in `receive`: it is told, and has a moment."""
        self.gone = self.over = True
        self.wait = Wait.LEAVE
        self.read_deadline = self._shared.now + self._shared.limits.disconnect_grace_s

    async def _say_goodbye(self) -> None:
        """Answer for the application where it can't, and let the client read it.

        Closing a socket with unread bytes resets it, and the client may lose what it was sent.
        """
        exchange = self._exchange
        if exchange is not None and exchange.begun and not exchange.finished:
            return
        unread = self._refusal is not None or not self._parser.idle
        if not unread:
            return
        with trio.move_on_after(_LINGER_S):
            try:
                if self._refusal is not None:
                    head_only = exchange is not None and exchange.request.method == "HEAD"
                    payload = refusal_bytes(self._refusal, with_body=not head_only)
                    sent = self._transport.send_now(payload)
                    await self._transport.send(payload, sent, lambda _: None)
                await self._transport.aclose(shutdown_only=True)
                left = _LINGER_BYTES
                while left > 0 and (data := await self._transport.receive(_BODY_READ)):
                    left -= len(data)
            except (*_BROKEN, trio.BusyResourceError):  # busy: a task that outlived its application
                return
