"""A response as the call's path sends it, over ASGI's `send`. Nothing is built that was built before."""

from __future__ import annotations

from collections.abc import Sequence

from emcd.net.http_exchange import Send

Headers = Sequence[tuple[bytes, bytes]]


class Reply:
    """The one response of a request. `begun`: the client may have seen bytes of it."""

    __slots__ = ("_send", "begun")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a response in one piece."""
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the head and a first piece."""
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def more(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes) -> None:
        """Send the last piece."""
        await self._send({"type": "http.response.body", "body": body})
