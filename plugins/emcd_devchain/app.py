"""The JSON-RPC endpoint as a pure ASGI app, for loopback only.

Owns the envelope: HTTP method, Host and Origin (a web page must not reach the chain by DNS
rebinding or a cross-site POST), the body bound, batches, JSON-RPC framing. All methods of one
body run in one visit to the chain's worker thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import trio

from emcd_devchain.fault import INVALID_REQUEST, PARSE_ERROR, SERVER_ERROR, RpcFault
from emcd_devchain.rpc import RpcMethods

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 1 << 20
MAX_BATCH = 100
_LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))


class RpcApp:
    """`limiter` has one token: the chain is one thread's at a time. `on_fault` hears of our own bugs."""

    def __init__(
        self,
        methods: RpcMethods,
        limiter: trio.CapacityLimiter,
        origins: Collection[str] = (),
        on_fault: Callable[[BaseException], None] = lambda exc: None,
    ) -> None:
        self._methods = methods
        self._limiter = limiter
        self._origins = frozenset(origins)
        self._on_fault = on_fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
            status, body = await self._serve(scope["method"], headers, receive)
            allowed = headers.get(b"origin", "") if status < 400 else ""
            await _respond(send, status, body, allowed)

    async def _serve(self, method: str, headers: Mapping[bytes, str], receive: Receive) -> tuple[int, bytes]:
        origin = headers.get(b"origin", "")
        if not _is_loopback_host(headers.get(b"host", "")):
            return 403, b'{"error":"Host is not this machine"}'
        if origin and origin not in self._origins and not _is_loopback_origin(origin):
            return 403, b'{"error":"Origin is not allowed"}'
        if method == "OPTIONS":
            return 204, b""
        if method != "POST":
            return 405, b'{"error":"POST JSON-RPC here"}'
        body = await _read_body(receive)
        if body is None:
            return 413, b'{"error":"body too large"}'
        return 200, await trio.to_thread.run_sync(self._answer, body, limiter=self._limiter)

    def _answer(self, body: bytes) -> bytes:
        try:
            decoded = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return msgspec.json.encode(_error(None, RpcFault(PARSE_ERROR, "parse error")))
        if not isinstance(decoded, list):
            return msgspec.json.encode(self._run(decoded))
        if not 0 < len(decoded) <= MAX_BATCH:
            fault = RpcFault(INVALID_REQUEST, f"a batch has 1 to {MAX_BATCH} requests")
            return msgspec.json.encode(_error(None, fault))
        return msgspec.json.encode([self._run(entry) for entry in decoded])

    def _run(self, request: Any) -> dict[str, Any]:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, RpcFault(INVALID_REQUEST, "invalid request"))
        request_id = request.get("id")
        if not (request_id is None or isinstance(request_id, int | float | str)):
            return _error(None, RpcFault(INVALID_REQUEST, "invalid request id"))
        params = [] if request.get("params") is None else request["params"]
        if not isinstance(params, list):
            return _error(request_id, RpcFault(INVALID_REQUEST, "parameters must be a list"))
        try:
            result = self._methods.handle(request["method"], params)
        except RpcFault as fault:
            return _error(request_id, fault)
        except Exception as exc:  # noqa: BLE001  a bug of ours must not take the chain down; it is reported
            self._on_fault(exc)
            return _error(request_id, RpcFault(SERVER_ERROR, f"internal error: {type(exc).__name__}"))
        return {"jsonrpc": "2.0", "id": request_id, "result": result}


def _error(request_id: Any, fault: RpcFault) -> dict[str, Any]:
    error: dict[str, Any] = {"code": fault.code, "message": fault.message}
    if fault.data is not None:
        error["data"] = fault.data
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def _is_loopback_host(authority: str) -> bool:
    try:
        return urlsplit(f"//{authority}").hostname in _LOOPBACK
    except ValueError:
        return False


def _is_loopback_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.hostname in _LOOPBACK


async def _read_body(receive: Receive) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


async def _respond(send: Send, status: int, body: bytes, origin: str = "") -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 204:
        headers = []
    if origin:
        headers += [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-headers", b"content-type"),
            (b"access-control-allow-methods", b"POST"),
            (b"vary", b"origin"),
        ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
