"""Request smuggling over real sockets: nothing ambiguous is served, nor anything that comes after it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from emcd.net.http_exchange import DirectApp, Exchange
from emcd.net.http_request import Request
from tests.support.bad_requests import CHUNKED, REFUSED, SMALL
from tests.support.net_world import dial, exchange, http_server, parse_answers, read_all, request_bytes

FIRST = request_bytes("/first", b"first")
SMUGGLED = request_bytes("/smuggled", b"smuggled")


class Echo(DirectApp):
    """Keeps what it served."""

    def __init__(self) -> None:
        self.served: list[tuple[str, bytes]] = []

    async def handle(self, request: Request, exchange: Exchange) -> None:
        body = await exchange.read_body()
        self.served.append((request.path, body))
        await exchange.whole(200, [], body)


def cut(data: bytes, piece_bytes: int) -> list[bytes]:
    return [data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes)]


async def send_pieces(port: int, pieces: list[bytes]) -> bytes:
    """Send in pieces that the server reads one by one; return all that comes back."""
    async with dial(port) as stream:
        for piece in pieces:
            try:
                await stream.send_all(piece)
            except trio.BrokenResourceError:
                break
            await trio.testing.wait_all_tasks_blocked()
        return await read_all(stream)


def require_refused(app: Echo, data: bytes, status: int) -> None:
    first, refusal = parse_answers(data, ["POST", "GET"])
    assert first.body == b"first"
    assert refusal.status == status
    assert refusal.headers[b"connection"] == b"close"
    assert json.loads(refusal.body)["error"]["code"].startswith("EMC-133")
    assert app.served == [("/first", b"first")]


@pytest.mark.parametrize("name", REFUSED)
async def test_server_bad_request_is_refused_and_nothing_after_it_is_served(name: str) -> None:
    status, bad = REFUSED[name]
    app = Echo()
    async with http_server(app, SMALL) as server:
        data = await exchange(server.port, FIRST + bad + SMUGGLED)
    if name == "header without an end":
        status = 400  # it ends by what follows, with a second Host
    require_refused(app, data, status)
    assert server.errors == []


SPLIT = [name for name, (status, _) in REFUSED.items() if status != 431]


@pytest.mark.parametrize("piece_bytes", [1, 7])
async def test_server_bad_requests_split_over_packets_are_refused_alike(piece_bytes: int) -> None:
    for name in SPLIT:
        status, bad = REFUSED[name]
        app = Echo()
        async with http_server(app, SMALL) as server:
            data = await send_pieces(server.port, cut(FIRST + bad + SMUGGLED, piece_bytes))
        require_refused(app, data, status)


async def test_server_repeated_heads_never_swallow_another_request() -> None:
    """The same head again and again, with other bodies, lengths and heads between."""
    app = Echo()
    bodies = [b"", b"a", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", SMUGGLED, b"\r\n\r\n", b"x" * 900, b"0"]
    chunked = CHUNKED.replace(b"POST /", b"POST /chunked") + b"1\r\nc\r\n0\r\n\r\n"
    wanted, requests = [], []
    for number in range(60):
        body = bodies[number % len(bodies)]
        requests.append(request_bytes("/same", body))
        wanted.append(("/same", body))
        if number % 3 == 0:
            requests.append(chunked)
            wanted.append(("/chunked", b"c"))
        if number % 5 == 0:
            requests.append(request_bytes("/other", body))
            wanted.append(("/other", body))
    requests.append(request_bytes("/last", close=True))
    wanted.append(("/last", b""))
    data = b"".join(requests)
    async with http_server(app, SMALL) as server:
        for pieces in (
            [data],
            requests,
            [first + second for first, second in zip(requests[::2], [*requests[1::2], b""], strict=True)],
            *(cut(data, size) for size in (1, 13, 100, 1000)),
        ):
            app.served.clear()
            await send_pieces(server.port, pieces)
            assert app.served == wanted


@pytest.mark.parametrize(
    "changed",
    [
        FIRST.replace(b"Content-Length: 5", b"Content-Length: +5"),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: 5,5"),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: 0x5"),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: -5"),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: "),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: 5\n"),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: 5\r"),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: \xb25"),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: 5\r\nContent-Length: 5"),
        FIRST.replace(b"Content-Length: 5", b"Content-Length: 0000000000000000000000005x"),
    ],
)
async def test_server_head_that_differs_from_the_repeated_one_is_judged_anew(changed: bytes) -> None:
    app = Echo()
    async with http_server(app, SMALL) as server:
        data = await send_pieces(server.port, [FIRST, FIRST, changed + SMUGGLED])
    assert parse_answers(data, ["POST"] * 2 + ["GET"])[-1].status == 400
    assert app.served == [("/first", b"first")] * 2


async def test_server_repeated_head_with_too_long_a_body_gets_413() -> None:
    app = Echo()
    async with http_server(app, SMALL) as server:
        data = await send_pieces(server.port, [FIRST, FIRST, request_bytes("/first", bytes(1001))])
    assert parse_answers(data, ["POST"] * 2 + ["GET"])[-1].status == 413


async def test_server_repeated_head_shares_its_note() -> None:
    notes: list[Any] = []

    class Noting(Echo):
        async def handle(self, request: Request, exchange: Exchange) -> None:
            notes.append(request.head.note)
            request.head.note = request.path
            await super().handle(request, exchange)

    requests = [
        request_bytes("/a", b"1"),
        request_bytes("/a", b"22"),
        request_bytes("/b"),
        request_bytes("/a"),
    ]
    async with http_server(Noting(), SMALL) as server:
        for _ in range(2):
            async with dial(server.port) as stream:
                for data in requests:
                    await stream.send_all(data)
                    await trio.testing.wait_all_tasks_blocked()
    assert notes == [None, "/a", None, None] * 2, "a note belongs to a connection's repeated head"
