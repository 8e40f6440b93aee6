"""What every page of a validator shares: reading a request with bounds, and answering."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from emcd.errors import EmcdError

MAX_ROUND = 1 << 40
MAX_ANSWER_BYTES = 24 << 20
"""A node's answer of 16 MiB, in base64."""
FAILURES = 30
"""What one source may bring in a minute that proves nothing."""
_encode = msgspec.json.Encoder().encode


def read_index(request: Request, name: str = "round") -> int | None:
    """A round or epoch of the path; None for what is none."""
    text = request.path_params[name]
    if not text.isascii() or not text.isdigit() or len(text) > 13:
        return None
    index = int(text)
    return index if index < MAX_ROUND else None


async def read_body(request: Request, max_bytes: int) -> bytes | None:
    """The whole body; None when it is larger."""
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > max_bytes:
                return None
    return bytes(body)


def find_source(request: Request) -> str:
    """Who asks, as far as limits go."""
    return "" if request.client is None else request.client.host


def fault(exc: EmcdError, status: int = 400) -> Response:
    return reply(status, {"code": exc.code, "reason": exc.detail})


def reply(status: int, body: Any) -> Response:
    return Response(_encode(body), status, media_type="application/json")
