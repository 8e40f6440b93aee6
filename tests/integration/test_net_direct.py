"""The direct door of the HTTP server, and trailers by both doors, over real sockets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import h11
import pytest
import trio

from emcd.errors import LocalProtocolError
from emcd.net.http_exchange import ClientGoneError, DirectApp, Exchange
from emcd.net.http_limit import Limits
from emcd.net.http_request import Request
from tests.support.net_world import (
    WAIT_S,
    Server,
    dial,
    exchange,
    http_server,
    parse_answers,
    read_until,
    request_bytes,
)

Handle = Callable[[Request, Exchange], Awaitable[None]]
ASK = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
ASK_TRAILERS = ASK + b"TE: trailers\r\n\r\n"
CREDITS = [(b"x-emc-credits", b"42")]


class App(DirectApp):
    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def handle(self, request: Request, exchange: Exchange) -> None:
        await self._handle(request, exchange)


def read_by_h11(data: bytes) -> tuple[h11.Response, bytes, list[tuple[bytes, bytes]]]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return head, body, list(event.headers)


async def test_direct_application_reads_and_answers_in_one_piece() -> None:
    clients = []

    async def handle(request: Request, exchange: Exchange) -> None:
        clients.append((exchange.client, exchange.begun))
        body = await exchange.read_body()
        await exchange.whole(201, [(b"x-a", b"b")], f"{request.method} {request.path} ".encode() + body)
        assert exchange.begun and exchange.finished

    body = bytes(range(256)) * 2000
    data = request_bytes("/1", b"hi") + request_bytes("/2") + request_bytes("/3", body, close=True)
    async with http_server(App(handle)) as server, dial(server.port) as stream:
        await stream.send_all(data)
        mine = stream.socket.getsockname()
        answers = parse_answers(await read_until(stream, body), ["POST"] * 3)
    assert [a.body for a in answers] == [b"POST /1 hi", b"POST /2 ", b"POST /3 " + body]
    assert answers[0].status == 201 and answers[0].headers[b"x-a"] == b"b"
    assert clients == [(mine, False)] * 3


async def test_direct_application_streams() -> None:
    async def handle(request: Request, exchange: Exchange) -> None:
        await exchange.begin(200, [], b"")
        for number in range(20):
            await exchange.more(b"%d," % number)
        await exchange.end(b"end", CREDITS)

    async with http_server(App(handle)) as server:
        head, body, trailers = read_by_h11(await exchange(server.port, ASK + b"\r\n"))
    assert dict(head.headers)[b"transfer-encoding"] == b"chunked"
    assert body == b"".join(b"%d," % n for n in range(20)) + b"end"
    assert trailers == []


async def test_direct_application_hands_a_request_to_asgi() -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        scope["headers"].append((b"added", b"by a middleware"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode() + message["body"]})

    async def handle(request: Request, exchange: Exchange) -> None:
        before = list(request.headers)
        await asgi(exchange.scope(), exchange.receive, exchange.send)
        assert request.headers == before

    async with http_server(App(handle)) as server:
        data = await exchange(server.port, request_bytes("/a", b"b", close=True))
    assert parse_answers(data, ["POST"])[0].body == b"/ab"
    assert server.errors == []


async def answer_twice(_: Request, exchange: Exchange) -> None:
    await exchange.whole(200, [], b"one")
    await exchange.whole(200, [], b"two")


async def begin_twice(_: Request, exchange: Exchange) -> None:
    await exchange.begin(200, [])
    await exchange.begin(200, [])


async def end_twice(_: Request, exchange: Exchange) -> None:
    await exchange.begin(200, [])
    await exchange.end(b"one")
    await exchange.end(b"two")


async def more_first(_: Request, exchange: Exchange) -> None:
    await exchange.more(b"one")


async def bad_header(_: Request, exchange: Exchange) -> None:
    await exchange.whole(200, [(b"x", b"a\r\nb: c")], b"")


@pytest.mark.parametrize("handle", [answer_twice, begin_twice, end_twice, more_first, bad_header])
async def test_direct_application_that_breaks_http_is_told_and_reported(handle: Handle) -> None:
    async with http_server(App(handle)) as server:
        data = await exchange(server.port, ASK + b"\r\n")
        assert b"two" not in data and b"b: c" not in data
    assert len(server.errors) == 1
    assert isinstance(server.errors[0], LocalProtocolError)


@pytest.mark.parametrize(
    "headers",
    [[(b"content-length", b"9")], [(b"transfer-encoding", b"chunked")], [(b"host", b"a")], [(b"x", b"a\nb")]],
)
async def test_trailer_that_frames_or_breaks_lines_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    async def handle(_: Request, exchange: Exchange) -> None:
        await exchange.begin(200, [], b"one", trailers=True)
        await exchange.end(b"", headers)

    async with http_server(App(handle)) as server:
        data = await exchange(server.port, ASK_TRAILERS)
    assert data.endswith(b"\r\n\r\n3\r\none\r\n")
    assert [type(error) for error in server.errors] == [LocalProtocolError]


async def stream_with_trailers(_: Request, exchange: Exchange) -> None:
    await exchange.begin(200, [(b"trailer", b"x-emc-credits")], b"one", trailers=True)
    await exchange.end(b"two", CREDITS)


async def asgi_with_trailers(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"trailer", b"x-emc-credits")]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    await send({"type": "http.response.body", "body": b"two"})
    await send({"type": "http.response.trailers", "headers": [(b"x-a", b"b")], "more_trailers": True})
    await send({"type": "http.response.trailers", "headers": CREDITS})


@pytest.mark.parametrize("app", [App(stream_with_trailers), asgi_with_trailers], ids=["direct", "asgi"])
async def test_trailers_reach_who_asked_and_no_other(app: Any) -> None:
    async with http_server(app) as server:
        keep = b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n"
        _, body, trailers = read_by_h11(await exchange(server.port, keep + ASK + b"\r\n"))
        assert body == b"onetwo" and trailers[-1] == CREDITS[0]
        _, body, trailers = read_by_h11(await exchange(server.port, ASK + b"\r\n"))
        assert body == b"onetwo" and trailers == []
        old = await exchange(server.port, b"GET / HTTP/1.0\r\nTE: trailers\r\n\r\n")
        assert old.endswith(b"\r\n\r\nonetwo")
        head = await exchange(server.port, b"HEAD" + ASK_TRAILERS[3:])
        assert head.endswith(b"\r\n\r\n") and b"one" not in head
    assert server.errors == []


async def test_asgi_scope_tells_of_trailers_where_they_are_wanted() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope.get("extensions"))
        await asgi_with_trailers(scope, receive, send)

    async with http_server(app) as server:
        await exchange(server.port, ASK_TRAILERS)
        await exchange(server.port, ASK + b"\r\n")
    assert seen == [{"http.response.trailers": {}}, None]


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.response.trailers", "headers": []}],
        [{"type": "http.response.start", "status": 200}, {"type": "http.response.trailers", "headers": []}],
        [
            {"type": "http.response.start", "status": 200, "trailers": True},
            {"type": "http.response.trailers", "headers": []},
        ],
        [
            {"type": "http.response.start", "status": 200, "trailers": True},
            {"type": "http.response.body", "body": b"a"},
            {"type": "http.response.body", "body": b"b"},
        ],
    ],
)
async def test_asgi_trailers_out_of_order_are_refused(messages: list[Any]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async with http_server(app) as server:
        await exchange(server.port, ASK_TRAILERS)
    assert [type(error) for error in server.errors] == [LocalProtocolError]


class Leaving:
    """Waits for what a client that leaves does to a direct application."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.started = trio.Event()
        self.ended = trio.Event()
        self.how = ""

    async def handle(self, request: Request, exchange: Exchange) -> None:
        try:
            self.started.set()
            if self.doing == "read":
                await exchange.read_body()
            while self.doing == "write":
                await exchange.begin(200, []) if not exchange.begun else await exchange.more(bytes(65536))
            await trio.sleep_forever()
        except BaseException as exc:
            self.how = type(exc).__name__
            raise
        finally:
            self.ended.set()


async def _leave(leaving: Leaving, server: Server, sent: bytes) -> None:
    async with dial(server.port) as stream:
        await stream.send_all(sent)
        with trio.fail_after(WAIT_S):
            await leaving.started.wait()
    with trio.fail_after(2):
        await leaving.ended.wait()


@pytest.mark.parametrize(
    ("doing", "how"), [("read", "ClientGoneError"), ("write", "Cancelled"), ("wait", "Cancelled")]
)
async def test_direct_application_is_ended_when_its_client_leaves(doing: str, how: str) -> None:
    leaving = Leaving(doing)
    async with http_server(App(leaving.handle)) as server:
        whole = request_bytes(body=bytes(1000))
        await _leave(leaving, server, whole[:-1] if doing == "read" else whole)
    assert leaving.how == how
    assert server.errors == []
    assert issubclass(ClientGoneError, OSError)


async def test_direct_application_whose_client_stops_reading_is_cancelled() -> None:
    leaving = Leaving("write")
    async with (
        http_server(App(leaving.handle), Limits(write_stall_s=0.3)) as server,
        dial(server.port, 4096) as stream,
    ):
        await stream.send_all(request_bytes())
        with trio.fail_after(5):
            await leaving.ended.wait()
    assert leaving.how == "Cancelled"
