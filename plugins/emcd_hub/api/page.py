"""What the cold routes share: JSON answers, errors in OpenAI's shape, strict bodies. Over Starlette."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.errors import EmcdError, RecoverableError, RemoteProtocolError
from emcd.proto.openai import RequestError
from emcd_hub.api.error import INVALID, SERVER, ApiError, from_request_error, not_found, wrong_method

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer; structs by field name."""
    return Response(_encode(value), status, {**_HEADERS, **(headers or {})}, "application/json")


def refuse(error: ApiError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return Response(error.body, error.status, {**_HEADERS, **headers})


async def read_json(request: Request, kind: type[T], max_bytes: int = 65_536) -> T:
    """The request's body as a strict struct. Raises: ApiError 400, 413."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                raise ApiError("EMC-1715", f"the body is larger than {max_bytes} bytes", 413)
    except ClientDisconnect as exc:
        raise ApiError("EMC-1701", "the body is not whole", 400) from exc
    try:
        return msgspec.json.decode(bytes(body), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ApiError("EMC-1701", f"the body does not fit: {exc}", 400) from exc


def build_app(routes: Sequence[Route], log: structlog.stdlib.BoundLogger) -> Starlette:
    """An application of these routes with the hub's error bodies."""

    async def on_api_error(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, ApiError)
        return refuse(exc)

    async def on_http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        known = {404: not_found(request.url.path), 405: wrong_method(request.method)}
        return refuse(known.get(exc.status_code) or ApiError("EMC-1711", str(exc.detail), exc.status_code))

    async def on_fault(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, EmcdError)
        if isinstance(exc, RequestError):
            return refuse(from_request_error(exc))
        if isinstance(exc, RemoteProtocolError):
            return refuse(ApiError(exc.code, exc.detail, exc.status, kind=INVALID))
        if isinstance(exc, RecoverableError):
            return refuse(ApiError(exc.code, "try again later", 503, kind=SERVER, retry_after_s=1))
        log.error("request failed", path=request.url.path, code=exc.code, detail=exc.detail)
        return refuse(ApiError(exc.code, "the hub has a fault", 500, kind=SERVER))

    return Starlette(
        routes=list(routes),
        exception_handlers={ApiError: on_api_error, HTTPException: on_http, EmcdError: on_fault},
    )
