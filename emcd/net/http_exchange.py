"""One request and its response: the ASGI side of a connection.

Owns `receive` and `send` of one application run. Invariants: at most one response, and none
after the application returned; the client's faults reach the application as cancellation, its
leaving as `http.disconnect` where the application listens, as cancellation where it does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import trio

from emcd.errors import LocalProtocolError
from emcd.net.http_parse import Request
from emcd.net.http_response import CONTINUE, ResponseWriter

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_CHECKPOINT_EVERY = 8
_JOIN_BYTES = 64 * 1024


class ClientGoneError(OSError):
    """Raised by `send` when the client left (ASGI 2.4 asks for an OSError)."""


class Peer(Protocol):
    """What an exchange needs of its connection."""

    over: bool
    """Whether nothing more will be sent: the client left, or the server gave up on it."""

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        ...

    async def read_body(self) -> bool:
        """Read more of the body into the request; False when the client left."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of it, or raise ClientGoneError."""
        ...


class Exchange:
    """`receive` and `send` for one run of the application."""

    __slots__ = ("_body_done", "_ended", "_head", "_peer", "_sends", "_writer", "listening", "request")

    def __init__(self, peer: Peer, request: Request) -> None:
        self._peer = peer
        self.request = request
        self._writer = ResponseWriter(request.method, request.version, request.keep_alive)
        self._head: tuple[int, Any] | None = None
        self._body_done = False
        self._sends = 0
        self._ended: trio.Event | None = None
        self.listening = 0

    @property
    def started(self) -> bool:
        """Whether bytes of a response may be on the wire."""
        return self._sends > 0

    @property
    def finished(self) -> bool:
        return self._writer.complete and self._sends > 0

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request after this."""
        return self.finished and self._writer.keep_alive and self.request.complete

    def end(self) -> None:
        """The response is complete or the client left: wake who waits for `http.disconnect`."""
        if self._ended is not None:
            self._ended.set()

    async def receive(self) -> Message:
        """ASGI receive.

        Cancellation: no byte of the body is lost.
        """
        request = self.request
        while not self._body_done:
            if request.chunks or request.complete:
                chunks = request.chunks
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                chunks.clear()
                self._body_done = request.complete
                return {"type": "http.request", "body": body, "more_body": not request.complete}
            if request.expects_continue and not self._sends:
                request.expects_continue = False
                await self._peer.write(CONTINUE)
            if not await self._peer.read_body():
                return {"type": "http.disconnect"}
        if not (self._peer.over or self.finished):
            if self._ended is None:
                self._ended = trio.Event()
            self.listening += 1
            try:
                await self._ended.wait()
            finally:
                self.listening -= 1
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI send. A head goes out with the first piece of the body (which may be empty).

        Raises: ClientGoneError; LocalProtocolError EMC-1337 to 1339 for what breaks HTTP or ASGI.
        """
        if self._peer.over:
            raise ClientGoneError("the connection is at its end")
        if message["type"] == "http.response.body":
            if self._sends:
                await self._send_more(message.get("body", b""), message.get("more_body", False))
            else:
                await self._send_first(message.get("body", b""), message.get("more_body", False))
        elif message["type"] == "http.response.start":
            if self._head is not None:
                raise LocalProtocolError("EMC-1339", "a second http.response.start")
            self._head = (message["status"], message.get("headers", ()))
        else:
            raise LocalProtocolError("EMC-1339", f"message {message['type']!r}")

    async def _send_first(self, body: bytes, more: bool) -> None:
        if self._head is None:
            raise LocalProtocolError("EMC-1339", "http.response.body before http.response.start")
        writer = self._writer
        if self._peer.draining or not self.request.complete:
            writer.keep_alive = False  # what the application left unread would be the next request
        head = writer.head(*self._head, None if more else len(body))
        payload = writer.body(body, more)
        self._sends = 1
        if writer.complete:
            self.end()
        if len(payload) < _JOIN_BYTES:
            await self._peer.write(head + payload)
        else:
            await self._peer.write(head)
            await self._peer.write(payload)

    async def _send_more(self, body: bytes, more: bool) -> None:
        writer = self._writer
        if writer.complete:
            if writer.method == "HEAD" or not body:
                return
            raise LocalProtocolError("EMC-1339", "http.response.body after the last one")
        payload = writer.body(body, more)
        if not more:
            self.end()
        self._sends += 1
        if payload:
            await self._peer.write(payload)
        if self._sends % _CHECKPOINT_EVERY == 0:
            await trio.lowlevel.checkpoint()
