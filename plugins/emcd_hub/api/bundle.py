"""A round's bundle as it is sent: from its file, piece by piece, whole or a range of it.

Invariants: what is sent is the canonical bytes, packed or not at rest; no more than one piece of a
bundle in memory for each reader; a reader that does not read is cut by the server, which puts a
deadline on each piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from emcd.ledger import Connection, Ledger
from emcd.proto.address import hex_hash
from emcd_hub.api.error import ApiError
from emcd_hub.rounds.bundle_folder import BundleFolder, Content
from emcd_hub.rounds.bundle_row import BundleFacts, BundleFile, find_bundle_file, find_facts

T = TypeVar("T")

PIECE_BYTES = 256 * 1024
READING_AT_ONCE = 8
"""Threads that read for all readers together."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class Part:
    """Which bytes are sent: from `start` to before `stop`."""

    status: int
    start: int
    stop: int


def choose_part(headers: Mapping[str, str], etag: str, size: int) -> Part:
    """By the request's headers; a range that this server can't read is answered with everything.

    Raises: ApiError 416 for a range outside the bundle.
    """
    if etag in [item.strip().removeprefix("W/") for item in headers.get("if-none-match", "").split(",")]:
        return Part(304, 0, 0)
    asked = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if asked is None or asked[0] == "bytes=-" or headers.get("if-range", etag) != etag:
        return Part(200, 0, size)
    first, last = asked[1], asked[2]
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise ApiError("EMC-1757", f"the bundle has {size} bytes", 416, param="range")
    return Part(206, start, stop)


class BundlePages:
    """The handler, and the threads it reads with."""

    def __init__(self, ledger: Ledger, folder: BundleFolder) -> None:
        self._ledger = ledger
        self._folder = folder
        self._limiter = trio.CapacityLimiter(READING_AT_ONCE)

    async def find(self, request: Request, index: int) -> Response | None:
        """The answer for a round; None while it has no sealed bundle."""

        def read(con: Connection) -> tuple[BundleFacts | None, BundleFile | None]:
            return find_facts(con, index), find_bundle_file(con, index)

        facts, file = await self._ledger.read(read)
        if facts is None or facts.seal is None or file is None:
            return None
        etag = f'"{facts.bundle_hash.hex()}"'
        part = choose_part(request.headers, etag, file.size_bytes)
        headers = {
            "x-emc-bundle-hash": hex_hash(facts.bundle_hash),
            "x-emc-bundle-seal": hex_hash(facts.seal),
            "cache-control": "public, max-age=31536000, immutable",
            "etag": etag,
            "accept-ranges": "bytes",
        }
        if part.status == 304:
            return Response(None, 304, headers)
        if part.status == 206:
            headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{file.size_bytes}"
        headers["content-length"] = str(part.stop - part.start)
        return _FileResponse(self._folder, file, part, headers, self._limiter)


class _FileResponse(Response):
    """Sends a part of a file."""

    def __init__(
        self,
        folder: BundleFolder,
        file: BundleFile,
        part: Part,
        headers: dict[str, str],
        limiter: trio.CapacityLimiter,
    ) -> None:
        super().__init__(None, part.status, headers, "application/octet-stream")
        self._folder = folder
        self._file = file
        self._part = part
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ExitStack() as stack:
            data = await self._in_thread(stack.enter_context, self._folder.opened(self._file))
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            place, stop = self._part.start, self._part.stop
            while place < stop and scope["method"] != "HEAD":
                piece = await self._in_thread(_read, data, place, min(stop, place + PIECE_BYTES))
                place += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": place < stop})
            if place < stop or self._part.start == stop:
                await send({"type": "http.response.body", "body": b""})

    async def _in_thread(self, fn: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(partial(fn, *args), limiter=self._limiter)


def _read(data: Content, start: int, stop: int) -> bytes:
    return data[start:stop]
