"""The HTTP server over real sockets: what it serves, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from emcd.net.http_client import request
from emcd.net.http_exchange import ClientGoneError
from emcd.net.http_limit import Limits
from emcd.net.tls import client_context, server_context
from tests.support.net_world import (
    WAIT_S,
    Tls,
    dial,
    exchange,
    http_server,
    parse_answers,
    read_all,
    read_until,
    request_bytes,
)

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


async def read_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += bytes(message["body"])
        if not message["more_body"]:
            return body


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with method, path and body."""
    body = await read_body(receive)
    await send(START)
    await send({"type": "http.response.body", "body": f"{scope['method']} {scope['path']} ".encode() + body})


async def test_server_keep_alive_serves_one_after_the_other() -> None:
    async with http_server(echo) as server, dial(server.port) as stream:
        for number in range(3):
            await stream.send_all(request_bytes(f"/{number}", b"hi"))
            data = await read_until(stream, b"hi")
            assert parse_answers(data, ["POST"])[0].body == f"POST /{number} hi".encode()


async def test_server_pipelined_requests_are_answered_in_order() -> None:
    count = 100
    data = b"".join(request_bytes(f"/{n}", b"x" * n, close=n == count - 1) for n in range(count))
    async with http_server(echo) as server:
        answers = parse_answers(await exchange(server.port, data), ["POST"] * count)
    assert [a.body for a in answers] == [f"POST /{n} ".encode() + b"x" * n for n in range(count)]
    assert b"connection" not in answers[0].headers
    assert answers[-1].headers[b"connection"] == b"close"


@pytest.mark.parametrize("step", [1, 3, 1000])
async def test_server_chunked_body_split_anywhere_is_whole(step: int) -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    data += b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"
    async with http_server(echo) as server, dial(server.port) as stream:
        for at in range(0, len(data), step):
            await stream.send_all(data[at : at + step])
            await trio.lowlevel.checkpoint()
        assert parse_answers(await read_all(stream), ["POST"])[0].body == b"POST / hello world"


async def test_server_large_body_both_ways_is_whole() -> None:
    body = bytes(range(256)) * 20_000
    async with http_server(echo) as server:
        answer = await request("POST", server.url, body=body, max_bytes=1 << 23)
    assert answer.body == b"POST / " + body


async def test_server_head_has_the_length_and_no_body() -> None:
    data = b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n" + request_bytes("/y", close=True)
    async with http_server(echo) as server:
        head, body = parse_answers(await exchange(server.port, data), ["HEAD", "POST"])
    assert head.headers[b"content-length"] == b"8"
    assert head.body == b""
    assert body.body == b"POST /y "


async def test_server_http_1_0_is_answered_and_closed() -> None:
    async with http_server(echo) as server:
        data = await exchange(server.port, b"GET /x HTTP/1.0\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert data.endswith(b"GET /x ")
    assert b"connection: close\r\n" in data


async def test_server_expect_continue_is_sent_when_the_body_is_asked_for() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
    async with http_server(echo) as server, dial(server.port) as stream:
        await stream.send_all(head + b"Connection: close\r\n\r\n")
        assert await read_until(stream, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(b"hi")
        assert parse_answers(await read_all(stream), ["POST"])[0].body == b"POST / hi"


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answer without looking at the body."""
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


async def test_server_expect_continue_is_not_sent_when_the_body_is_not_wanted() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    async with http_server(refuse) as server:
        data = await exchange(server.port, head)
    answer = parse_answers(data, ["POST"])[0]
    assert answer.status == 401
    assert answer.headers[b"connection"] == b"close"


async def test_server_unread_body_is_never_taken_for_a_request() -> None:
    inner = request_bytes("/smuggled")
    async with http_server(refuse) as server:
        data = await exchange(server.port, request_bytes("/", inner + bytes(100_000))[: 400 + len(inner)])
    assert len(parse_answers(data, ["POST"])) == 1


async def stream_three(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    for number in range(3):
        await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        await trio.sleep(0.01)
    await send({"type": "http.response.body"})


async def test_server_stream_is_chunked_and_the_connection_lives_on() -> None:
    data = request_bytes() + request_bytes(close=True)
    async with http_server(stream_three) as server:
        answers = parse_answers(await exchange(server.port, data), ["POST", "POST"])
    assert [a.body for a in answers] == [b"012", b"012"]
    assert answers[0].headers[b"transfer-encoding"] == b"chunked"


async def fail(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/late":
        await send(START)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
    if scope["path"] == "/silent":
        return
    raise ValueError("a secret in the exception")


@pytest.mark.parametrize("path", ["/early", "/silent"])
async def test_server_application_that_fails_gives_500_and_the_server_lives(path: str) -> None:
    async with http_server(fail) as server:
        for _ in range(2):
            answer = parse_answers(await exchange(server.port, request_bytes(path)), ["POST"])[0]
            assert answer.status == 500
            assert json.loads(answer.body)["error"]["code"] == "EMC-1334"
            assert b"secret" not in answer.body
        assert len(server.errors) == 2


async def test_server_application_that_fails_midway_cuts_the_response() -> None:
    async with http_server(fail) as server:
        data = await exchange(server.port, request_bytes("/late"))
        assert data.endswith(b"4\r\nhalf\r\n")
        assert len(server.errors) == 1


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.response.body", "body": b""}],
        [START, START],
        [{"type": "websocket.accept"}],
        [{"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nb: c")]}],
        [{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]}],
    ],
)
async def test_server_application_that_breaks_asgi_gives_500(messages: list[Any]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)
        await send({"type": "http.response.body", "body": b"x"})

    async with http_server(app) as server:
        answer = parse_answers(await exchange(server.port, request_bytes()), ["POST"])[0]
        assert answer.status == 500
        assert len(server.errors) == 1


async def test_server_scope_tells_what_asgi_asks_for() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await refuse(scope, receive, send)

    async with http_server(app) as server, dial(server.port) as stream:
        await stream.send_all(b"GET /%C3%A9?a=%20 HTTP/1.1\r\nHOST: a\r\nX-B: c\r\nConnection: close\r\n\r\n")
        await read_all(stream)
        local = server.port
    scope = seen[0]
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/é", b"/%C3%A9", b"a=%20")
    assert (scope["http_version"], scope["scheme"], scope["method"]) == ("1.1", "http", "GET")
    assert (b"x-b", b"c") in scope["headers"]
    assert scope["client"][0] == "127.0.0.1"
    assert scope["server"] == ("127.0.0.1", local)


class Watched:
    """An application that waits, and tells how it ended."""

    def __init__(self, *, listens: bool = False, streams: bool = False) -> None:
        self.listens = listens
        self.streams = streams
        self.started = trio.Event()
        self.ended = trio.Event()
        self.how = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.how = "returned"
        try:
            await read_body(receive)
            self.started.set()
            if self.listens:
                assert (await receive())["type"] == "http.disconnect"
                self.how = "told"
                await trio.sleep_forever()
            await send(START)
            while self.streams:
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            await trio.sleep_forever()
        except trio.Cancelled:
            self.how += " cancelled"
            with trio.move_on_after(1, shield=True), pytest.raises(ClientGoneError):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            raise
        finally:
            self.ended.set()


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, "returned cancelled"),
        ({"listens": True}, "told cancelled"),
        ({"streams": True}, "returned cancelled"),
    ],
)
async def test_server_client_that_leaves_ends_the_application(options: dict[str, bool], how: str) -> None:
    app = Watched(**options)
    async with http_server(app, Limits(disconnect_grace_s=0.1)) as server:
        async with dial(server.port) as stream:
            await stream.send_all(request_bytes())
            with trio.fail_after(WAIT_S):
                await app.started.wait()
        with trio.fail_after(2):
            await app.ended.wait()
    assert app.how == how
    assert server.errors == []


async def test_server_client_that_leaves_within_its_body_ends_the_application() -> None:
    ended = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["more_body"]
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    async with http_server(app) as server:
        async with dial(server.port) as stream:
            await stream.send_all(request_bytes(body=bytes(1000))[:-500])
        with trio.fail_after(2):
            await ended.wait()
    assert server.errors == []


async def test_server_client_that_stops_reading_is_cut() -> None:
    app = Watched(streams=True)
    async with http_server(app, Limits(write_stall_s=0.3)) as server, dial(server.port, 4096) as stream:
        await stream.send_all(request_bytes())
        with trio.fail_after(5):
            await app.ended.wait()
    assert app.how == "returned cancelled"


async def test_server_disconnect_is_told_after_the_response() -> None:
    messages: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)
        messages.append(await receive())

    async with http_server(app) as server:
        assert (await request("POST", server.url)).status == 200
    assert messages == [{"type": "http.disconnect"}]


async def test_server_work_after_the_response_outlives_the_client() -> None:
    done = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)
        await trio.sleep(0.8)
        done.set()

    async with http_server(app) as server:
        assert (await request("POST", server.url)).status == 200
        with trio.fail_after(3):
            await done.wait()


async def test_server_drain_finishes_what_is_in_flight_and_closes_the_idle() -> None:
    go_on = trio.Event()
    started = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            started.set()
            await go_on.wait()
        await echo(scope, receive, send)

    async with http_server(app) as server, dial(server.port) as idle, dial(server.port) as busy:
        await idle.send_all(request_bytes("/"))
        await read_until(idle, b"POST / ")
        await busy.send_all(request_bytes("/slow"))
        await started.wait()
        server.drain.set()
        with trio.fail_after(2):
            assert await idle.receive_some() == b""
        with pytest.raises(OSError, match=r"."):
            async with dial(server.port):
                pass
        assert not server.ended.is_set()
        go_on.set()
        answer = parse_answers(await read_all(busy), ["POST"])[0]
        assert answer.headers[b"connection"] == b"close"
        with trio.fail_after(2):
            await server.ended.wait()


async def test_server_drain_that_takes_too_long_cuts() -> None:
    app = Watched()
    async with http_server(app, Limits(drain_s=0.2)) as server, dial(server.port) as stream:
        await stream.send_all(request_bytes())
        await app.started.wait()
        server.drain.set()
        data = await read_all(stream)
        with trio.fail_after(3):
            await server.ended.wait()
    assert parse_answers(data, ["POST"])[0].status == 503
    assert "cancelled" in app.how


def starlette_app() -> Starlette:
    async def hello(request: Request) -> Response:
        return JSONResponse({"json": await request.json(), "q": request.query_params.get("q")})

    async def pieces(request: Request) -> Response:
        async def numbers() -> Any:
            for number in range(5):
                yield f"data: {number}\n\n"
                await trio.lowlevel.checkpoint()

        return StreamingResponse(numbers(), media_type="text/event-stream")

    async def upload(request: Request) -> Response:
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return PlainTextResponse(str(size))

    async def broken(request: Request) -> Response:
        raise ValueError

    return Starlette(
        routes=[
            Route("/hello", hello, methods=["POST"]),
            Route("/pieces", pieces),
            Route("/upload", upload, methods=["PUT"]),
            Route("/broken", broken),
        ]
    )


async def test_server_starlette_application_works() -> None:
    async with http_server(starlette_app()) as server:
        answer = await request("POST", server.url + "/hello?q=%C3%A9", json={"a": [1]})
        assert answer.json() == {"json": {"a": [1]}, "q": "é"}
        answer = await request("GET", server.url + "/pieces")
        assert answer.body == b"".join(b"data: %d\n\n" % n for n in range(5))
        assert answer.headers["transfer-encoding"] == "chunked"
        assert (await request("PUT", server.url + "/upload", body=bytes(500_000))).body == b"500000"
        assert (await request("GET", server.url + "/none")).status == 404
        assert (await request("HEAD", server.url + "/pieces")).body == b""
        assert server.errors == []
        assert (await request("GET", server.url + "/broken")).status == 500
        assert len(server.errors) == 1


async def test_server_starlette_stream_stops_when_the_client_leaves() -> None:
    stopped = trio.Event()

    class Numbers:
        """Not a generator: Starlette leaves those to the garbage collector, which trio warns of."""

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            await trio.sleep(0.01)
            return bytes(1000)

    async def endless(request: Request) -> Response:
        return StreamingResponse(Numbers())

    inner = Starlette(routes=[Route("/", endless)])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await inner(scope, receive, send)
        finally:
            stopped.set()

    async with http_server(app) as server:
        async with dial(server.port) as stream:
            await stream.send_all(request_bytes(method="GET"))
            await stream.receive_some()
        with trio.fail_after(2):
            await stopped.wait()
    assert server.errors == []


async def test_server_over_tls_keeps_alive_and_serves(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    async with http_server(echo, ssl_context=server_context(tls.cert_file, tls.key_file)) as server:
        raw = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with trio.SSLStream(
            raw, client_context(tls.ca_file), server_hostname="localhost", https_compatible=True
        ) as stream:
            for number in range(2):
                await stream.send_all(request_bytes(f"/{number}", bytes(100_000)))
                data = b""
                while len(data) < 100_000:
                    data += bytes(await stream.receive_some())
                assert parse_answers(data, ["POST"])[0].status == 200
        answer = await exchange(server.port, request_bytes())
        assert b"200" not in answer
    assert server.errors == []


async def test_server_over_tls_client_that_leaves_ends_the_application(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    app = Watched()
    async with http_server(app, ssl_context=server_context(tls.cert_file, tls.key_file)) as server:
        raw = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with trio.SSLStream(
            raw, client_context(tls.ca_file), server_hostname="localhost", https_compatible=True
        ) as stream:
            await stream.send_all(request_bytes())
            await app.started.wait()
        with trio.fail_after(2):
            await app.ended.wait()
