"""One request and its response: what a connection and an application have between them.

Two doors to the same exchange: ASGI's `receive` and `send`, and a direct one for applications that
are made for this server (`DirectApp`), which costs no scope and no messages. Invariants: at most
one response, and none after the application returned; the client's faults reach the application as
cancellation, its leaving as `http.disconnect` where the application listens, as cancellation where
it does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import trio

from emcd.errors import LocalProtocolError
from emcd.net.http_request import Request
from emcd.net.http_response import CONTINUE, Headers, ResponseWriter

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
ClientAddress = tuple[str, int]

_ASGI = {"version": "3.0", "spec_version": "2.4"}
_CHECKPOINT_EVERY = 8
_JOIN_BYTES = 64 * 1024


class ClientGoneError(OSError):
    """Raised by whatever sends when the client left (ASGI 2.4 asks for an OSError)."""


class DirectApp(ABC):
    """An application that takes requests by the direct door."""

    @abstractmethod
    async def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer one request. What cancels it, and when, is as with ASGI (see `serve_http`)."""


class Peer(Protocol):
    """What an exchange needs of its connection."""

    over: bool
    """Whether nothing more will be sent: the client left, or the server gave up on it."""

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        ...

    @property
    def client(self) -> ClientAddress | None: ...

    def add_origin(self, scope: Scope) -> None:
        """Add the connection's part of an ASGI scope: scheme, client, server, state."""
        ...

    async def read_body(self) -> bool:
        """Read more of the body into the request; False when the client left."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of it, or raise ClientGoneError. No checkpoint where the kernel takes all of it."""
        ...


class Exchange:
    """One run of the application.

    The direct door is `read_body`, `whole`, `begin`, `more` and `end`; none of them suspends where
    the body is here already and the kernel takes what is sent. All raise ClientGoneError when the
    client left, and LocalProtocolError EMC-1337 to 1339 for what breaks HTTP.
    """

    __slots__ = (
        "_body_done",
        "_body_sent",
        "_ended",
        "_head",
        "_peer",
        "_sends",
        "_trailers",
        "_writer",
        "listens",
        "request",
    )

    def __init__(self, peer: Peer, request: Request) -> None:
        self._peer = peer
        self.request = request
        head = request.head
        self._writer = ResponseWriter(head.method, head.version, head.keep_alive)
        self._head: tuple[int, Headers, bool] | None = None
        self._body_done = False
        self._body_sent = False
        self._sends = 0
        self._trailers: list[tuple[bytes, bytes]] | None = None
        self._ended: trio.Event | None = None
        self.listens = False
        """Whether the application waits for its client to leave, or looks now and then."""

    @property
    def begun(self) -> bool:
        """Whether bytes of a response may be on the wire."""
        return self._sends > 0

    @property
    def finished(self) -> bool:
        return self._writer.complete and self._sends > 0

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request after this."""
        return self.finished and self._writer.keep_alive and self.request.complete

    @property
    def client(self) -> ClientAddress | None:
        """Who asks; None on a unix socket."""
        return self._peer.client

    def end_wait(self) -> None:
        """The response is complete or the client left: wake who waits for `http.disconnect`."""
        if self._ended is not None:
            self._ended.set()

    # The direct door.

    async def read_body(self) -> bytes:
        """The whole body, once. Cancellation: no byte is lost, it may be asked for again."""
        request = self.request
        while not request.complete:
            if not await self._read_more():
                raise ClientGoneError("the client left within its request")
        self._body_done = True
        chunks, request.chunks = request.chunks, []
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a response in one piece."""
        self._require_sendable()
        if self._sends:
            raise LocalProtocolError("EMC-1339", "a second response")
        await self._send_head(status, headers, body, more=False)

    async def begin(
        self, status: int, headers: Headers, body: bytes = b"", *, trailers: bool = False
    ) -> None:
        """Send the head and a first piece, which may be empty.

        Args:
            trailers: `end` may have some. They go to clients that asked for them, and to no other.
        """
        self._require_sendable()
        if self._sends:
            raise LocalProtocolError("EMC-1339", "a second response")
        await self._send_head(status, headers, body, more=True)
        if trailers and self.request.wants_trailers:
            self._trailers = []

    async def more(self, piece: bytes) -> None:
        """Send a piece."""
        self._require_sendable()
        await self._send_more(piece, True)

    async def end(self, piece: bytes = b"", trailers: Headers = ()) -> None:
        """Send the last piece."""
        self._require_sendable()
        await self._send_more(piece, False, () if self._trailers is None else trailers)

    # ASGI.

    def scope(self) -> Scope:
        """The ASGI scope, made when it is asked for."""
        request = self.request
        head = request.head
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": head.version,
            "method": head.method,
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": request.headers.copy(),
        }
        self._peer.add_origin(scope)
        if head.wants_trailers:
            scope["extensions"] = {"http.response.trailers": {}}
        return scope

    async def receive(self) -> Message:
        """ASGI receive.

        Cancellation: no byte of the body is lost.
        """
        request = self.request
        while not self._body_done:
            if request.chunks or request.complete:
                chunks, request.chunks = request.chunks, []
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                self._body_done = request.complete
                return {"type": "http.request", "body": body, "more_body": not request.complete}
            if not await self._read_more():
                return {"type": "http.disconnect"}
        if not (self._peer.over or self.finished):
            if self._ended is None:
                self._ended = trio.Event()
            self.listens = True
            await self._ended.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI send. A head goes out with the first piece of the body (which may be empty)."""
        self._require_sendable()
        kind = message["type"]
        if kind == "http.response.body":
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start":
            if self._head is not None:
                raise LocalProtocolError("EMC-1339", "a second http.response.start")
            announced = message.get("trailers", False)
            self._head = (message["status"], message.get("headers", ()), announced)
            if announced and self.request.wants_trailers:
                self._trailers = []
        elif kind == "http.response.trailers":
            await self._send_trailers(message)
        else:
            raise LocalProtocolError("EMC-1339", f"message {kind!r}")

    async def _send_body(self, body: bytes, more: bool) -> None:
        if self._body_sent:
            raise LocalProtocolError("EMC-1339", "http.response.body after the last one")
        if self._trailers is not None and not more:
            self._body_sent = more = True
        if self._sends:
            await self._send_more(body, more)
        elif self._head is None:
            raise LocalProtocolError("EMC-1339", "http.response.body before http.response.start")
        else:
            await self._send_head(self._head[0], self._head[1], body, more)

    async def _send_trailers(self, message: Message) -> None:
        """Trailers may come in several messages; the last of them ends the response."""
        if self._head is None or not self._head[2]:
            raise LocalProtocolError("EMC-1339", "http.response.trailers, and the start did not tell of them")
        if self._trailers is None:
            return
        if not self._body_sent:
            raise LocalProtocolError("EMC-1339", "http.response.trailers before the body's end")
        self._trailers += message.get("headers", ())
        if not message.get("more_trailers", False):
            await self._send_more(b"", False, self._trailers)

    # What both share.

    async def _read_more(self) -> bool:
        request = self.request
        if request.expects_continue and not self._sends:
            request.expects_continue = False
            await self._peer.write(CONTINUE)
        return await self._peer.read_body()

    def _require_sendable(self) -> None:
        if self._peer.over:
            raise ClientGoneError("the connection is at its end")

    async def _send_head(self, status: int, headers: Headers, body: bytes, more: bool) -> None:
        peer, writer = self._peer, self._writer
        if peer.draining or not self.request.complete:
            writer.keep_alive = False  # what the application left unread would be the next request
        head = writer.head(status, headers, None if more else len(body))
        payload = writer.body(body, more)
        self._sends = 1
        if writer.complete:
            self.end_wait()
        if len(payload) < _JOIN_BYTES:
            await peer.write(head + payload)
        else:
            await peer.write(head)
            await peer.write(payload)

    async def _send_more(self, body: bytes, more: bool, trailers: Headers = ()) -> None:
        writer = self._writer
        if not self._sends:
            raise LocalProtocolError("EMC-1339", "a piece of a response before its head")
        if writer.complete:
            if writer.method == "HEAD" or not body:
                return
            raise LocalProtocolError("EMC-1339", "a piece of a response after the last one")
        payload = writer.body(body, more, trailers)
        if not more:
            self.end_wait()
        self._sends += 1
        if payload:
            await self._peer.write(payload)
        if self._sends % _CHECKPOINT_EVERY == 0:
            await trio.lowlevel.checkpoint()
