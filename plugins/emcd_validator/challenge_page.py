"""The pages about challenged receipts: to challenge one, to learn of it as the node, to open it, to look.

Invariants: what is brought is checked before it is kept; a source that brings what proves nothing is not
listened to for a while; an opening is read only for a challenge that waits for it; bodies are read a few
at a time, those of openings in places of their own, few of one source and none for long, so that nobody
keeps the openings of others out; the answer is told to who shows the request, and to nobody else.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.accounting.receipt import CallReceipt
from emcd.errors import RemoteProtocolError
from emcd.net.ratelimit import FailureLimiter, source_key
from emcd.proto.address import parse_address
from emcd.proto.json_form import from_json, to_json
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.proto.records import format_call_id, parse_call_id
from emcd_validator.challenge_desk import ChallengeDesk, Shown
from emcd_validator.page import FAILURES, MAX_ANSWER_BYTES, fault, find_source, read_body, reply
from emcd_validator.queries.challenges import ChallengeRow, Filed
from emcd_validator.statement import write_signature

MAX_CHALLENGE_BYTES = 4 << 20
BODY_S = 15.0
"""Within which a whole body has to come."""
_CHALLENGE_READERS = (8, 1)
_OPENING_READERS = (8, 2)
"""Bodies at a time, in all and of one source."""


class _Readers:
    """Places for bodies that are being read: bounded in all, and for each source."""

    def __init__(self, in_all: int, per_source: int) -> None:
        self._in_all = in_all
        self._per_source = per_source
        self._held: Counter[str] = Counter()

    @contextmanager
    def place(self, source: str) -> Iterator[bool]:
        """Hold a place, for as long as the context is open. Yields: whether there was one."""
        key = source_key(source)
        is_free = self._held.total() < self._in_all and self._held[key] < self._per_source
        if not is_free:
            yield False
            return
        self._held[key] += 1
        try:
            yield True
        finally:
            self._held[key] -= 1
            self._held += Counter()


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A challenge: the receipt as the hub serves it, and the request as the caller sent it."""

    receipt: dict[str, Any]
    path: str
    request: bytes
    seed: int | None = None


class _Opening(msgspec.Struct, frozen=True):
    response: bytes


class ChallengePages:
    """The pages of one validator."""

    def __init__(self, desk: ChallengeDesk) -> None:
        self._desk = desk
        self._limiter = FailureLimiter(FAILURES)
        self._challenge_readers = _Readers(*_CHALLENGE_READERS)
        self._opening_readers = _Readers(*_OPENING_READERS)

    def routes(self) -> list[Route]:
        return [
            Route("/challenges", self._challenge, methods=["POST"]),
            Route("/challenges/{node}", self._list, methods=["GET"]),
            Route("/challenges/{node}/{call_id}", self._state, methods=["GET"]),
            Route("/openings/{call_id}", self._open, methods=["POST"]),
        ]

    async def _challenge(self, request: Request) -> Response:
        """Challenge a receipt, or ask again what came of it: with the answer, where it was opened."""
        source, now_s = find_source(request), trio.current_time()
        if not self._limiter.check_allowed(source, now_s):
            return reply(429, {"code": "EMC-1870", "reason": "too many challenges of nothing"})
        body = await _read(request, self._challenge_readers, MAX_CHALLENGE_BYTES, "EMC-1870")
        if isinstance(body, Response):
            return body
        try:
            shown = await trio.to_thread.run_sync(_read_challenge, body)
            row = await self._desk.challenge(shown)
        except RemoteProtocolError as exc:
            self._limiter.add_failure(source, now_s)
            return fault(exc)
        if isinstance(row, Filed):
            return reply(409, {"code": "EMC-1870", "reason": "too many receipts are challenged"})
        answer = {} if row.response is None else {"response": b64encode(row.response).decode()}
        return reply(200 if answer else 202, {**self._show(row), **answer})

    async def _list(self, request: Request) -> Response:
        """What a node is to open. The request stands nowhere in it."""
        try:
            node = parse_address(request.path_params["node"])
        except RemoteProtocolError as exc:
            return fault(exc)
        waiting = await self._desk.list_for(node)
        rows = [{"challenge": to_json(item), "signature": write_signature(sig)} for item, sig in waiting]
        return reply(200, {"challenges": rows})

    async def _state(self, request: Request) -> Response:
        row = await self._find(request)
        if isinstance(row, Response):
            return row
        is_of_node = request.path_params["node"].lower() == row.node.lower()
        return reply(200, self._show(row)) if is_of_node else _nothing()

    async def _open(self, request: Request) -> Response:
        row = await self._find(request)
        if isinstance(row, Response):
            return row
        state = self._desk.describe(row)
        if state != "open":
            return reply(200 if state == "opened" else 410, self._show(row))
        source, now_s = find_source(request), trio.current_time()
        if not self._limiter.check_allowed(source, now_s):
            return reply(429, {"code": "EMC-1873", "reason": "too many openings of something else"})
        body = await _read(request, self._opening_readers, MAX_ANSWER_BYTES, "EMC-1873")
        if isinstance(body, Response):
            return body
        try:
            await self._desk.open(row, await trio.to_thread.run_sync(_read_opening, body))
        except RemoteProtocolError as exc:
            self._limiter.add_failure(source, now_s)
            return fault(exc)
        return reply(202, {"state": "opened"})

    async def _find(self, request: Request) -> ChallengeRow | Response:
        try:
            call_id = parse_call_id(request.path_params["call_id"])
        except RemoteProtocolError as exc:
            return fault(exc)
        return await self._desk.find(call_id) or _nothing()

    def _show(self, row: ChallengeRow) -> dict[str, Any]:
        return {
            "call_id": format_call_id(row.call_id),
            "node": row.node,
            "round": row.round,
            "state": self._desk.describe(row),
            "deadline_ms": row.expires_at_ms,
        }


async def _read(request: Request, readers: _Readers, max_bytes: int, code: str) -> bytes | Response:
    with readers.place(find_source(request)) as is_free:
        if not is_free:
            return reply(503, {"code": code, "reason": "too many at once"})
        body = None
        with trio.move_on_after(BODY_S) as scope:
            body = await read_body(request, max_bytes)
    if scope.cancelled_caught:
        return reply(408, {"code": code, "reason": f"it did not come within {BODY_S:.0f} s"})
    if body is None:
        return reply(413, {"code": code, "reason": f"more than {max_bytes} bytes"})
    return body


def _nothing() -> Response:
    return reply(404, {"reason": "this receipt is not challenged here"})


def _read_challenge(body: bytes) -> Shown:
    """Raises: RemoteProtocolError EMC-1870, EMC-1499, EMC-17xx (the request is none)."""
    try:
        page = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1870", f"it is no challenge: {exc}") from exc
    endpoint = ENDPOINTS.get(page.path)
    if endpoint is None:
        raise RemoteProtocolError("EMC-1870", f"{page.path[:80]!r} is no path of a call")
    upstream = read_request(endpoint, page.request, evidence=True, seed=page.seed)
    return Shown(from_json(CallReceipt, page.receipt), page.path, upstream.body)


def _read_opening(body: bytes) -> bytes:
    """Raises: RemoteProtocolError EMC-1873."""
    try:
        return msgspec.json.decode(body, type=_Opening).response
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1873", f"it is no opening: {exc}") from exc
