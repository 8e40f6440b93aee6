"""Outgoing HTTP requests whose answer is read as it comes: h11 on trio, for local engines.

Owns one connection a request. Invariants: every wait has a deadline; a stream that was cut is
an error, never an end; no redirects, no retries, no compression; what is held in memory is one
read; every failure is a RecoverableError without header, body or query in it.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio

from emcd.errors import ConfigError, RecoverableError
from emcd.net.tls import client_context
from emcd.net.url_guard import Target, parse_target

_READ_BYTES = 64 * 1024
_HEAD_BYTES = 32 * 1024
_OURS = frozenset(("host", "connection", "content-length", "transfer-encoding", "accept-encoding", "expect"))
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class StreamResponse(AsyncIterator[bytes]):
    """The head of an answer, and its body as an async iterator of non-empty pieces.

    Attributes:
        headers: lower-case names; a name that stands twice has its last value.
    """

    def __init__(self, wire: _Wire, head: h11.Response, method: str) -> None:
        self.status = head.status_code
        self.headers: Mapping[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers
        }
        self._wire = wire
        self._require_framed(method)

    def _require_framed(self, method: str) -> None:
        if self.headers.get("content-encoding", "identity") != "identity":
            raise RecoverableError("EMC-1306", self._wire.where)
        bodiless = method == "HEAD" or self.status in (204, 304)
        if not bodiless and not self.headers.keys() & {"content-length", "transfer-encoding"}:
            raise RecoverableError("EMC-1304", f"{self._wire.where}: neither Content-Length nor chunked")

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Raises: RecoverableError EMC-1302 idle too long, 1303 over `max_bytes`, 1304 cut."""
        piece = await self._wire.next_piece()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def read(self) -> bytes:
        """The rest of the body, within `max_bytes`. Raises as iterating does."""
        return b"".join([piece async for piece in self])


class _Wire:
    """h11 and its socket."""

    def __init__(self, stream: trio.abc.Stream, where: str, idle_timeout_s: float, max_bytes: int) -> None:
        self.where = where
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        self._idle_timeout_s = idle_timeout_s
        self._left = max_bytes
        self._ended = False

    async def send(self, request: h11.Request, body: bytes) -> None:
        try:
            data = self._http.send(request) or b""
            if body:
                data += self._http.send(h11.Data(data=body)) or b""
            data += self._http.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError as exc:
            raise RecoverableError("EMC-1308", f"{self.where}: {exc}") from exc
        try:
            with trio.fail_after(self._idle_timeout_s):
                await self._stream.send_all(data)
        except trio.TooSlowError as exc:
            raise RecoverableError("EMC-1302", f"{self.where}: sending") from exc
        except _BROKEN as exc:
            raise RecoverableError("EMC-1301", f"{self.where}: {exc}") from exc

    async def head(self, timeout_s: float) -> h11.Response:
        deadline = trio.current_time() + timeout_s
        while True:
            event = await self._next_event(deadline)
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise RecoverableError("EMC-1301", f"{self.where}: closed without an answer")

    async def next_piece(self) -> bytes | None:
        if self._ended:
            return None
        event = await self._next_event(trio.current_time() + self._idle_timeout_s)
        if isinstance(event, h11.EndOfMessage):
            self._ended = True
            return None
        if not isinstance(event, h11.Data):
            raise RecoverableError("EMC-1304", self.where)
        self._left -= len(event.data)
        if self._left < 0:
            raise RecoverableError("EMC-1303", self.where)
        return bytes(event.data)

    async def _next_event(self, deadline: float) -> Any:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as exc:
                raise RecoverableError(code_of_h11(str(exc)), f"{self.where}: {exc}") from exc
            if event is not h11.NEED_DATA:
                return event
            with trio.move_on_at(deadline) as scope:
                try:
                    self._http.receive_data(bytes(await self._stream.receive_some(_READ_BYTES)))
                except _BROKEN as exc:
                    raise RecoverableError("EMC-1304", f"{self.where}: {exc}") from exc
            if scope.cancelled_caught:
                raise RecoverableError("EMC-1302", self.where)


@asynccontextmanager
async def stream(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    connect_timeout_s: float = 10.0,
    head_timeout_s: float | None = None,
    idle_timeout_s: float = 60.0,
    max_bytes: int = 1 << 26,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[StreamResponse]:
    """Send one request and read its answer piece by piece; leaving the block closes the connection.

    Args:
        head_timeout_s: from the request's end to the answer's head; default `idle_timeout_s`.
        idle_timeout_s: the longest silence within the body, and for sending the request.
        max_bytes: bound of the answer's whole body.

    Raises: RecoverableError EMC-1301 to 1308, as `emcd.net.http_client.request`.
    Cancellation: the connection is closed, which is how an engine learns to stop.
    """
    target = _parse(url)
    request = _build_request(method, target, headers, body)
    transport = await _connect(target, connect_timeout_s, ssl_context)
    try:
        wire = _Wire(transport, target.shown, idle_timeout_s, max_bytes)
        await wire.send(request, body)
        head = await wire.head(idle_timeout_s if head_timeout_s is None else head_timeout_s)
        yield StreamResponse(wire, head, method)
    finally:
        await trio.aclose_forcefully(transport)


def _parse(url: str) -> Target:
    try:
        return parse_target(url)
    except ConfigError as exc:
        raise RecoverableError("EMC-1308", exc.detail) from exc


def _build_request(
    method: str, target: Target, headers: Mapping[str, str] | None, body: bytes
) -> h11.Request:
    sent = {name.lower(): value for name, value in (headers or {}).items()}
    if wrong := _OURS & sent.keys():
        raise RecoverableError("EMC-1308", f"header {', '.join(sorted(wrong))} is set by the client itself")
    sent = {"host": target.authority, "connection": "close", "accept-encoding": "identity"} | sent
    sent["content-length"] = str(len(body))
    sent.setdefault("user-agent", "emcd")
    try:
        return h11.Request(method=method, target=target.path, headers=list(sent.items()))
    except (h11.LocalProtocolError, UnicodeEncodeError) as exc:
        raise RecoverableError("EMC-1308", f"{target.shown}: {type(exc).__name__}") from exc


def code_of_h11(text: str) -> str:
    """By h11's words: closed without an answer, cut within it, or not HTTP at all."""
    if "ConnectionClosed" in text:
        return "EMC-1301"
    cut = "without sending complete message body" in text or "unexpectedly closed" in text
    return "EMC-1304" if cut else "EMC-1305"


async def _connect(target: Target, timeout_s: float, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    try:
        with trio.fail_after(timeout_s):
            tcp = await trio.open_tcp_stream(target.host, target.port)
            if not target.tls:
                return tcp
            context = ssl_context or client_context()
            secure = trio.SSLStream(tcp, context, server_hostname=target.host, https_compatible=True)
            try:
                await secure.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(tcp)
                raise
            return secure
    except trio.TooSlowError as exc:
        raise RecoverableError("EMC-1302", f"{target.shown}: connecting") from exc
    except _BROKEN as exc:
        raise RecoverableError("EMC-1301", f"{target.shown}: {exc.__cause__ or exc}") from exc
