"""Outgoing HTTP requests with a whole answer: the only place that uses asks.

asks by itself waits for ever, reads without a bound, follows redirects with the Authorization
header to any host, tries again by itself, asks for compressed bodies, writes a wrong Host for
IPv6 and for unusual ports, and lets its errors out as they come. Invariants here: one request
is one attempt on one connection; a deadline around all of it, name lookup included; at most
`max_bytes` of body in memory; the end of the body is known from its framing; every failure is
a RecoverableError, and none of them shows a header, a body or a query.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar, overload

import asks
import msgspec
import trio
from asks.errors import BadHttpResponse, RequestTimeout

from emcd.errors import ConfigError, RecoverableError
from emcd.net.http_stream import code_of_h11
from emcd.net.tls import client_context
from emcd.net.url_guard import Target, parse_target

T = TypeVar("T")

_OURS = frozenset(
    ("host", "connection", "content-length", "transfer-encoding", "accept-encoding", "expect", "upgrade")
)


class _TooLargeError(Exception):
    """The body passed the bound."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer, of any status: 3xx too, since redirects are not followed.

    `headers` has lower-case names; Set-Cookie is left out.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, into: type[T]) -> T: ...
    def json(self, into: Any = Any) -> Any:
        """Decode the body, as `into` where given. Raises: RecoverableError EMC-1307."""
        try:
            return msgspec.json.decode(self.body, type=into)
        except (msgspec.DecodeError, ValueError, RecursionError) as exc:
            raise RecoverableError("EMC-1307", f"{self.url}: {exc}") from exc


def require_anyio() -> None:
    """Refuse to start on an install without the lock: asks drags in anyio 3, which fails on trio.

    Raises: ConfigError EMC-1300.
    """
    version = metadata.version("anyio")
    if int(version.partition(".")[0]) < 4:
        raise ConfigError("EMC-1300", f"anyio {version}")


async def request(
    method: str,
    url: str,
    *,
    json: Any = None,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    max_bytes: int = 1 << 20,
    ssl_context: ssl.SSLContext | None = None,
) -> Response:
    """Send one request and read its whole answer, whatever its status.

    Args:
        json: sent as the body when not None, with its content type (msgspec encodes it).
        body: sent as is when `json` is None.
        headers: those that frame the message (Host, Content-Length, ...) are refused.
        timeout_s: for everything: lookup, connect, TLS, send, wait, read.
        max_bytes: bound of the answer's body.
        ssl_context: default: the machine's CA store, verified.

    Raises: RecoverableError EMC-1301 no connection, 1302 deadline, 1303 body over the bound,
        1304 cut short or without a known end, 1305 not HTTP, 1306 compressed although not asked
        for, 1308 the request itself cannot be sent.
    Cancellation: the connection is closed; the peer may have acted on the request.
    """
    target = _parse(url)
    sent = _build_headers(target, headers)
    if json is not None:
        body = msgspec.json.encode(json)
        sent.setdefault("content-type", "application/json")
    received = bytearray()

    async def collect(chunk: bytes) -> None:
        if len(received) + len(chunk) > max_bytes:
            raise _TooLargeError
        received.extend(chunk)

    with trio.move_on_after(timeout_s):
        try:
            answer = await asks.request(
                method,
                url,
                headers=sent,
                data=bytes(body) or None,
                callback=collect,
                follow_redirects=False,
                retries=0,
                connection_timeout=timeout_s,
                ssl_context=ssl_context or client_context(),
            )
        except Exception as exc:  # asks lets anything through: decoding, assertions, sockets
            raise _translate(exc, target, max_bytes) from exc
        return _check_answer(method, target, answer, received)
    raise RecoverableError("EMC-1302", f"{target.shown} after {timeout_s} s")


def _parse(url: str) -> Target:
    try:
        return parse_target(url)
    except ConfigError as exc:
        raise RecoverableError("EMC-1308", exc.detail) from exc


def _build_headers(target: Target, headers: Mapping[str, str] | None) -> dict[str, str]:
    sent = {name.lower(): value for name, value in (headers or {}).items()}
    if wrong := _OURS & sent.keys():
        raise RecoverableError("EMC-1308", f"header {', '.join(sorted(wrong))} is set by the client itself")
    sent |= {"host": target.authority, "connection": "close", "accept-encoding": "identity"}
    sent.setdefault("user-agent", "emcd")
    return sent


def _translate(exc: Exception, target: Target, max_bytes: int) -> RecoverableError:
    where = target.shown
    if isinstance(exc, RecoverableError):
        return exc
    if isinstance(exc, _TooLargeError):
        return RecoverableError("EMC-1303", f"{where}: more than {max_bytes} bytes")
    if isinstance(exc, RequestTimeout):
        return RecoverableError("EMC-1302", where)
    if isinstance(exc, BadHttpResponse):
        cause = str(exc.__cause__)
        return RecoverableError(code_of_h11(cause), f"{where}: {cause}")
    if isinstance(exc, OSError | trio.BrokenResourceError):
        return RecoverableError("EMC-1301", f"{where}: {exc}")
    name = type(exc).__name__
    if name in ("BrokenResourceError", "ClosedResourceError", "EndOfStream"):  # anyio's
        return RecoverableError("EMC-1301", f"{where}: connection lost")
    if name == "LocalProtocolError":
        return RecoverableError("EMC-1308", f"{where}: method, path or a header")
    return RecoverableError("EMC-1305", f"{where}: {name}")


def _check_answer(method: str, target: Target, answer: Any, received: bytearray) -> Response:
    headers = {name.lower(): value for name, value in answer.headers.items() if isinstance(value, str)}
    headers.pop("set-cookie", None)
    status = int(answer.status_code)
    bodiless = method.upper() == "HEAD" or status in (204, 304)
    framed = "content-length" in headers or "transfer-encoding" in headers
    if not framed and not bodiless:
        raise RecoverableError("EMC-1304", f"{target.shown}: neither Content-Length nor chunked")
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise RecoverableError("EMC-1306", f"{target.shown}: {headers['content-encoding']}")
    return Response(status, headers, bytes(received), target.shown)
