"""Downloading into a file: whole or not at all, within bytes and time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.errors import RecoverableError
from emcd.net.download import download

BODY = bytes(range(256)) * 10_000


@asynccontextmanager
async def serving(answer: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that reads a request and answers as it is told."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65_536)
        await answer(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}/file"
        nursery.cancel_scope.cancel()


def say(head: str, body: bytes = b"", then_s: float = 0.0) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(f"HTTP/1.1 {head}\r\n\r\n".encode() + body)
        await trio.sleep(then_s)

    return answer


async def fetch(url: str, target: Path, **settings: Any) -> Any:
    return await download(url, target, **{"max_bytes": 1 << 24, "timeout_s": 5.0, **settings})


async def test_download_is_the_whole_body_in_a_file(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    target = tmp_path / "file"
    target.write_bytes(b"what was there before")

    async with serving(say(f"200 OK\r\ncontent-length: {len(BODY)}\r\nx-mark: 7", BODY)) as url:
        done = await fetch(url, target, on_progress=lambda *said: told.append(said))

    assert (done.status, done.size_bytes, done.headers["x-mark"]) == (200, len(BODY), "7")
    assert target.read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert len(told) > 1


async def test_other_status_leaves_no_file(tmp_path: Path) -> None:
    async with serving(say("404 Not Found\r\ncontent-length: 2", b"{}")) as url:
        done = await fetch(url, tmp_path / "file")

    assert done.status == 404
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("head", "body", "settings", "code"),
    [
        ("200 OK\r\ncontent-length: 5000", b"x" * 5000, {"max_bytes": 4999}, "EMC-1303"),
        ("200 OK\r\ntransfer-encoding: chunked", b"1388\r\n" + b"x" * 5000 + b"\r\n0\r\n\r\n", {"max_bytes": 4999}, "EMC-1303"),
        ("200 OK\r\ncontent-length: 5000", b"x" * 4999, {}, "EMC-1304"),
        ("200 OK", b"x", {}, "EMC-1304"),
    ],
)  # fmt: skip
async def test_body_too_large_or_cut_is_an_error_and_no_file(
    tmp_path: Path, head: str, body: bytes, settings: dict[str, Any], code: str
) -> None:
    async with serving(say(head, body)) as url:
        with pytest.raises(RecoverableError) as caught:
            await fetch(url, tmp_path / "file", **settings)

    assert caught.value.code == code
    assert not (tmp_path / "file").exists()


async def test_peer_that_drips_is_cut_at_the_deadline_of_its_size(tmp_path: Path) -> None:
    async def drip(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(1000):
            await stream.send_all(b"x")
            await trio.sleep(0.1)

    async with serving(drip) as url:
        started = trio.current_time()
        with pytest.raises(RecoverableError) as caught:
            await fetch(url, tmp_path / "file", timeout_s=0.5, min_rate_bytes_s=2000)

    assert caught.value.code == "EMC-1302"
    assert 0.9 < trio.current_time() - started < 3
    assert not (tmp_path / "file").exists()


async def test_cancelled_download_leaves_no_file(tmp_path: Path) -> None:
    async with serving(say("200 OK\r\ncontent-length: 100", b"x", then_s=60)) as url:
        with trio.move_on_after(0.3) as scope:
            await fetch(url, tmp_path / "file")

    assert scope.cancelled_caught
    assert not (tmp_path / "file").exists()
