"""Downloading into a file: what is too large to be held in memory.

Owns one file while it grows. Invariants: a deadline on everything, which grows with the size the
peer announced at the slowest rate that is waited for; a byte limit; no more than one piece in
memory; after a failure or a cancellation there is no file.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from emcd.errors import RecoverableError
from emcd.net.http_stream import StreamResponse, stream

MIN_RATE_BYTES_S = 256 * 1024
IDLE_TIMEOUT_S = 30.0
_PIECE_BYTES = 1 << 20
"""Written at once: a thread for each of the socket's small reads would cost more than the writing."""


@dataclass(frozen=True)
class Download:
    """An answer. With status 200 its body stands in the file; with any other there is no file."""

    status: int
    headers: Mapping[str, str]
    size_bytes: int
    url: str


async def download(
    url: str,
    target: Path,
    *,
    max_bytes: int,
    timeout_s: float = 10.0,
    min_rate_bytes_s: int = MIN_RATE_BYTES_S,
    headers: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Download:
    """GET a URL into a file, which is replaced.

    Args:
        timeout_s: until the answer's head, and for its body beside what `min_rate_bytes_s` grants.
        on_progress: called with (bytes so far, bytes in all; 0 when the peer does not say).

    Raises: RecoverableError EMC-1301 to 1308 (as `emcd.net.http_stream.stream`).
    Cancellation: the connection is closed and the file removed.
    """
    deadline = trio.current_time() + timeout_s
    with trio.move_on_at(deadline) as scope:
        async with stream(
            "GET",
            url,
            headers=headers,
            connect_timeout_s=timeout_s,
            head_timeout_s=timeout_s,
            idle_timeout_s=min(IDLE_TIMEOUT_S, max(timeout_s, 1.0)),
            max_bytes=max_bytes,
            ssl_context=ssl_context,
        ) as answer:
            if answer.status != 200:
                return Download(answer.status, answer.headers, 0, url)
            size = _announced(answer, url, max_bytes)
            scope.deadline = trio.current_time() + timeout_s + (size or max_bytes) / min_rate_bytes_s
            written = await _write(answer, target, size, on_progress)
            return Download(answer.status, answer.headers, written, url)
    raise RecoverableError("EMC-1302", url)


def _announced(answer: StreamResponse, url: str, max_bytes: int) -> int:
    """The size that the peer announced; 0 for none. Raises: RecoverableError EMC-1303."""
    text = answer.headers.get("content-length", "0")
    size = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
    if size > max_bytes:
        raise RecoverableError("EMC-1303", f"{url}: {size} bytes, {max_bytes} are taken")
    return size


async def _write(
    answer: StreamResponse, target: Path, size: int, on_progress: Callable[[int, int], None] | None
) -> int:
    """Append the body to a new file, piece by piece. Returns: its bytes."""
    done = 0
    file = await trio.open_file(target, "wb")
    try:
        async with file:
            waiting = bytearray()
            async for piece in answer:
                waiting += piece
                if len(waiting) >= _PIECE_BYTES:
                    await file.write(waiting)
                    done += len(waiting)
                    waiting = bytearray()
                    if on_progress is not None:
                        on_progress(done, size)
            await file.write(waiting)
            done += len(waiting)
            if on_progress is not None:
                on_progress(done, size or done)
    except BaseException:
        _remove(target)
        raise
    return done


def _remove(target: Path) -> None:
    target.unlink(missing_ok=True)
