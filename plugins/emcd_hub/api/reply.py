"""A response as the call's path sends it; the HTTP server's own `Exchange` is one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from emcd.net.http_response import Headers


class Reply(Protocol):
    """The one response of a request. Every method raises ClientGoneError when the client left."""

    @property
    def begun(self) -> bool:
        """Whether the client may have seen bytes of it."""
        ...

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a response in one piece."""
        ...

    async def begin(
        self, status: int, headers: Headers, body: bytes = b"", *, trailers: bool = False
    ) -> None:
        """Send the head and a first piece; `trailers`: the end may have some, where the client wants them."""
        ...

    async def more(self, piece: bytes) -> None: ...

    async def end(self, piece: bytes = b"", trailers: Headers = ()) -> None:
        """Send the last piece."""
        ...


@runtime_checkable
class KeepingReply(Reply, Protocol):
    """A reply that a client gets again when it asks again."""

    def keep(self, status: int, headers: Headers, body: bytes) -> None:
        """Keep a whole answer without sending it: the client left."""
        ...
