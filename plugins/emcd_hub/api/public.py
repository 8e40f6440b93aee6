"""The public listener's application: calls take the short way, everything else goes to `cold`.

No framework on the way of a call: one look at the path, the key, the body, then the gateway.
Invariants: whatever goes wrong before a node answers, the client gets a body in OpenAI's shape; no byte of
a body is read without a key; a body is bounded by its route, and all large bodies together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from secrets import randbits

import msgspec
import structlog
import trio

from emcd.errors import EmcdError
from emcd.net.http_exchange import ASGIApp, ClientGoneError, DirectApp, Exchange
from emcd.net.http_request import Request
from emcd.proto.hashing import keccak
from emcd.proto.openai import ENDPOINTS, Endpoint, Once, RequestError, UpstreamRequest, read_request
from emcd.proto.openai_form import drop_boundary, read_boundary
from emcd.proto.openai_wish import join_wishes
from emcd.proto.records import request_hash
from emcd_hub.api.auth import KeyGate
from emcd_hub.api.error import SERVER, ApiError, from_request_error, overloaded, too_large, wrong_method
from emcd_hub.api.head import CallHead, find_length, read_head
from emcd_hub.calls.gateway import Gateway
from emcd_hub.calls.once import OnceDesk
from emcd_hub.metrics import count_refused

_LARGE_BYTES = 1 << 19
"""A body from this size on is read and hashed beside the loop, which takes up to 50 ms for the largest."""
_READ_AT_ONCE = 2
"""How many large bodies are: more would keep the interpreter from the loop."""
_RETRY_AFTER_S = 5
_SEED_BITS = 63


@dataclass(frozen=True)
class BodyLimits:
    """How large bodies may be. `bodies_bytes`: of all that come after their heads, together."""

    json_bytes: int
    form_bytes: int
    bodies_bytes: int


class PublicApp(DirectApp):
    """The application."""

    def __init__(
        self,
        *,
        gate: KeyGate,
        gateway: Gateway,
        once: OnceDesk,
        cold: ASGIApp,
        limits: BodyLimits,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._gate = gate
        self._gateway = gateway
        self._once = once
        self._cold = cold
        self._limits = limits
        self._log = log
        self._held_bytes = 0
        self._readers = trio.CapacityLimiter(_READ_AT_ONCE)

    async def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer one request."""
        endpoint = ENDPOINTS.get(request.head.path)
        if endpoint is None:
            await self._cold(exchange.scope(), exchange.receive, exchange.send)
            return
        try:
            await self._call(endpoint, request, exchange)
        except RequestError as exc:
            await _refuse(exchange, from_request_error(exc))
        except ApiError as exc:
            await _refuse(exchange, exc)
        except EmcdError as exc:
            if exchange.begun:
                raise  # the server cuts the connection: its client sees no proper end
            self._log.error("call failed", code=exc.code, detail=exc.detail)
            await _refuse(exchange, ApiError(exc.code, "the hub has a fault", 500, kind=SERVER))

    async def _call(self, endpoint: Endpoint, request: Request, exchange: Exchange) -> None:
        head: CallHead | None = request.head.note
        if head is None or not self._gate.is_live(head.key):
            if request.method != "POST":
                raise wrong_method(request.method)
            head = read_head(endpoint, request.headers, exchange.client, self._gate)
            request.head.note = head
        if not request.complete:  # who would be refused anyway is spared the rest of it
            self._gateway.require_open(head.key)
        if endpoint.is_form:
            read_boundary(head.content_type)
            await self._call_with_large(head, request, exchange, self._limits.form_bytes)
        elif request.complete:
            body = await exchange.read_body()
            if len(body) > self._limits.json_bytes:
                raise too_large(self._limits.json_bytes)
            await self._serve(head, body, exchange)
        else:
            await self._call_with_large(head, request, exchange, self._limits.json_bytes)

    async def _call_with_large(
        self, head: CallHead, request: Request, exchange: Exchange, limit: int
    ) -> None:
        """A body that did not come with its head: its size is held from all that may be here at once,
        before it is read and until its call ends, for another node may need it.
        """
        size = find_length(request.headers)
        if size is not None and size > limit:
            raise too_large(limit)
        held = limit if size is None else size
        if self._held_bytes + held > max(self._limits.bodies_bytes, limit):
            raise overloaded("too many large requests are being sent at once", _RETRY_AFTER_S)
        self._held_bytes += held
        try:
            await self._serve(head, await _read_body(exchange, request, limit), exchange)
        finally:
            self._held_bytes -= held

    async def _serve(self, head: CallHead, body: bytes, exchange: Exchange) -> None:
        if len(body) < _LARGE_BYTES:
            request = _read(self._gateway, head, body)
        else:
            self._gateway.require_open(head.key)
            request = await trio.to_thread.run_sync(
                _read_large, self._gateway, head, body, limiter=self._readers
            )
        wish = join_wishes(request.wish, head.wish)
        if wish is not request.wish:
            request = msgspec.structs.replace(request, wish=wish)
        if not head.once_key:
            await self._gateway.serve(head.key, request, exchange)
            return
        once = await trio.to_thread.run_sync(_make_once, head, request, body)
        request = msgspec.structs.replace(request, once=once)
        await self._once.run(once, exchange, partial(self._gateway.serve, head.key, request))


async def _refuse(exchange: Exchange, error: ApiError) -> None:
    count_refused(error.code)
    await exchange.whole(error.status, error.headers, error.body)


async def _read_body(exchange: Exchange, request: Request, limit: int) -> bytes:
    """A body that is not here yet, as far as it may be long. Raises: ApiError 413."""
    size = find_length(request.headers)
    if size is not None and size > limit:
        raise too_large(limit)
    pieces = []
    size = 0
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left within its request")
        piece = message["body"]
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        pieces.append(piece)
        if not message["more_body"]:
            return b"".join(pieces)


def _read(gateway: Gateway, head: CallHead, body: bytes) -> UpstreamRequest:
    return read_request(
        head.endpoint, body, head.content_type, evidence=gateway.wants_evidence, seed=_draw_seed
    )


def _read_large(gateway: Gateway, head: CallHead, body: bytes) -> UpstreamRequest:
    request = _read(gateway, head, body)
    known = request_hash(request.endpoint.path, request.body, request.content_type)
    return msgspec.structs.replace(request, known_hash=known)


def _draw_seed() -> int:
    return randbits(_SEED_BITS)


def _make_once(head: CallHead, request: UpstreamRequest, asked: bytes) -> Once:
    """What is remembered of an idempotency key: the account's, and of the request without its boundary.

    A call with evidence is known by what its client asked, not by a seed that is drawn anew.
    """
    body = request.body
    if request.evidence:
        body = read_request(head.endpoint, asked, head.content_type).body
    if request.endpoint.is_form:
        body = drop_boundary(body, read_boundary(request.content_type))
    key = head.key.account_id.encode() + b"\0" + head.once_key
    return Once(keccak(key), request_hash(request.endpoint.path, body))
