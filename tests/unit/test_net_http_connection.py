"""One connection over a transport whose bytes are always here: nobody else must starve for it."""

from __future__ import annotations

import pytest
import trio

from emcd.net.http_connection import Connection, Shared
from emcd.net.http_exchange import Exchange
from emcd.net.http_limit import Limits
from emcd.net.http_ready import ReadyWatch
from emcd.net.http_request import Request
from tests.support.net_world import request_bytes


class Eager:
    """A transport that gives the same bytes a thousand times, at once, and takes all at once."""

    left = False

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads = 0
        self.sent = bytearray()

    async def start(self) -> None:
        pass

    async def receive(self, _: int) -> bytes:
        self.reads += 1
        return self.data if self.reads <= 1000 else b""

    def send_now(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    async def send(self, data: bytes, sent: int, stalled: object) -> None:
        raise AssertionError("nothing is left to send")

    async def aclose(self, *, shutdown_only: bool = False) -> None:
        pass


FLOODS = {
    "requests": request_bytes(),
    "empty lines": b"\r\n" * 100,
    "a body": b"1\r\nx\r\n",
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_connection_that_always_has_bytes_lets_others_run(kind: str) -> None:
    async def run(_: Request, exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.whole(200, [], b"")

    transport = Eager(FLOODS[kind])
    shared = Shared(run=run, limits=Limits(), scheme="http", on_error=print, now=0.0, watch=ReadyWatch())
    connection = Connection(shared, transport, None, ("test", None))
    if kind == "a body":
        connection._parser.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    passes = 0
    async with trio.open_nursery() as nursery:

        async def count() -> None:
            nonlocal passes
            while True:
                await trio.lowlevel.checkpoint()
                passes += 1

        nursery.start_soon(count)
        await connection.run()
        nursery.cancel_scope.cancel()
    assert transport.reads > 1000
    assert passes > 50
