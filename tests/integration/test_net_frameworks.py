"""What ASGI frameworks and other protocols' clients do, against the HTTP server over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import websockets.exceptions
from starlette.applications import Starlette
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from emcd.errors import LocalProtocolError
from emcd.net.http_client import request
from emcd.net.http_server import serve_http
from tests.support.net_world import (
    WAIT_S,
    dial,
    exchange,
    http_server,
    parse_answers,
    read_until,
    request_bytes,
)


class Counter:
    """An async iterator and no generator: Starlette leaves those to the garbage collector."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __aiter__(self) -> Counter:
        return self

    async def __anext__(self) -> bytes:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        await trio.lowlevel.checkpoint()
        return b"piece %d\n" % self.left


async def test_starlette_background_tasks_run_after_the_answer() -> None:
    done: list[int] = []
    go_on, finished = trio.Event(), trio.Event()

    async def slow(number: int) -> None:
        await go_on.wait()
        done.append(number)
        if number == 2:
            finished.set()

    async def handler(_: Request) -> Response:
        tasks = BackgroundTasks([BackgroundTask(slow, 1), BackgroundTask(slow, 2)])
        return PlainTextResponse("at once", background=tasks)

    async with http_server(Starlette(routes=[Route("/", handler)])) as server:
        async with dial(server.port) as stream:
            await stream.send_all(request_bytes(method="GET"))
            await read_until(stream, b"at once")
            assert done == []
        go_on.set()
        with trio.fail_after(WAIT_S):
            await finished.wait()
    assert done == [1, 2]
    assert server.errors == []


async def test_starlette_middlewares_work() -> None:
    class Marking(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            response.headers["x-marked"] = request.headers["host"]
            return response

    async def large(request: Request) -> Response:
        return PlainTextResponse("x" * 10_000 + (await request.body()).decode())

    async def stream(_: Request) -> Response:
        return StreamingResponse(Counter(5))

    async def wrong(_: Request) -> Response:
        raise ValueError("within")

    app = Starlette(
        routes=[
            Route("/large", large, methods=["POST"]),
            Route("/stream", stream),
            Mount("/below", routes=[Route("/wrong", wrong)]),
        ],
        middleware=[
            Middleware(Marking),
            Middleware(GZipMiddleware),
            Middleware(CORSMiddleware, allow_origins=["https://dapp"]),
        ],
    )
    async with http_server(app) as server:
        answer = await request("POST", server.url + "/large", body=b"end")
        assert answer.body == b"x" * 10_000 + b"end"
        assert answer.headers["x-marked"] == f"127.0.0.1:{server.port}"
        zipped = b"GET /stream HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
        assert b"content-encoding: gzip" in await exchange(server.port, zipped)
        answer = await request("GET", server.url + "/stream", headers={"origin": "https://dapp"})
        assert answer.body == b"".join(b"piece %d\n" % n for n in (4, 3, 2, 1, 0))
        assert answer.headers["access-control-allow-origin"] == "https://dapp"
        assert server.errors == []
        assert (await request("GET", server.url + "/below/wrong")).status == 500
        assert len(server.errors) == 1


async def test_starlette_endpoints_heads_and_redirects_work() -> None:
    class Thing(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            return JSONResponse({"client": request.client is not None, "id": request.path_params["id"]})

        async def delete(self, _: Request) -> Response:
            return Response(status_code=204)

    async def away(_: Request) -> Response:
        return RedirectResponse("/things/1")

    async with http_server(Starlette(routes=[Route("/things/{id:int}", Thing), Route("/", away)])) as server:
        assert (await request("GET", server.url + "/things/7")).json() == {"client": True, "id": 7}
        assert (await request("DELETE", server.url + "/things/7")).status == 204
        assert (await request("PUT", server.url + "/things/7")).status == 405
        head = await exchange(
            server.port, b"HEAD /things/7 HTTP/1.1\r\nHost: a\r\n\r\n" * 2 + request_bytes("/", close=True)
        )
        first, second, _ = parse_answers(head, ["HEAD", "HEAD", "POST"])
        assert first.headers[b"content-length"] == second.headers[b"content-length"] == b"22"
        away_to = await request("GET", server.url + "/")
        assert (away_to.status, away_to.headers["location"]) == (307, "/things/1")


async def test_starlette_sees_that_a_client_left() -> None:
    seen, ready = trio.Event(), trio.Event()

    async def poll(request: Request) -> Response:
        ready.set()
        while not await request.is_disconnected():
            await trio.sleep(0.01)
        seen.set()
        return Response()

    async def upload(request: Request) -> Response:
        ready.set()
        with pytest.raises(ClientDisconnect):
            await request.body()
        seen.set()
        return Response()

    app = Starlette(routes=[Route("/poll", poll), Route("/upload", upload, methods=["POST"])])
    async with http_server(app) as server:
        for data in (request_bytes("/poll", method="GET"), request_bytes("/upload", bytes(100))[:-1]):
            async with dial(server.port) as stream:
                await stream.send_all(data)
                with trio.fail_after(WAIT_S):
                    await ready.wait()
            with trio.fail_after(WAIT_S):
                await seen.wait()
            ready, seen = trio.Event(), trio.Event()
    assert server.errors == []


# Lifespan.


async def test_lifespan_is_run_around_the_serving_and_shares_its_state() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        events.append("up")
        yield {"pool": events}
        events.append("down")

    async def handler(request: Request) -> Response:
        request.state.pool.append("served")
        request.state.mine = "of this request alone"
        return PlainTextResponse(str(hasattr(request.state, "mine")))

    app = Starlette(routes=[Route("/", handler)], lifespan=lifespan)
    async with http_server(app, lifespan=True) as server:
        assert events == ["up"]
        assert (await request("GET", server.url + "/")).status == 200
        server.drain.set()
        with trio.fail_after(WAIT_S):
            await server.ended.wait()
    assert events == ["up", "served", "down"]


async def test_lifespan_that_fails_to_start_stops_the_server() -> None:
    def open_database() -> dict[str, Any]:
        raise ValueError("no database")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield open_database()

    with pytest.raises(LocalProtocolError, match="no database"):
        await serve_http(Starlette(lifespan=lifespan), host="127.0.0.1", lifespan=True)


async def test_lifespan_that_fails_to_stop_is_reported() -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        raise ValueError("still in use")

    async with http_server(Starlette(lifespan=lifespan), lifespan=True) as server:
        server.drain.set()
        with trio.fail_after(WAIT_S):
            await server.ended.wait()
    assert any("still in use" in str(error) for error in server.errors)


@pytest.mark.parametrize("lifespan", [True, False])
async def test_application_without_lifespan_is_served(lifespan: bool) -> None:
    scopes: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope["type"])
        assert scope["type"] == "http"
        assert "state" not in scope or scope["state"] == {}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async with http_server(app, lifespan=lifespan) as server:
        assert (await request("GET", server.url + "/")).body == b"x"
    assert scopes == (["lifespan", "http"] if lifespan else ["http"])
    assert server.errors == []


# WebSockets and other upgrades.


def websocket_app() -> Starlette:
    async def talk(socket: WebSocket) -> None:
        await socket.accept()

    return Starlette(routes=[WebSocketRoute("/ws", talk)])


async def test_websocket_client_is_refused_with_501_and_let_go() -> None:
    async with http_server(websocket_app()) as server:

        def dial_in() -> int:
            with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
                connect(f"ws://127.0.0.1:{server.port}/ws", open_timeout=WAIT_S)
            return caught.value.response.status_code

        with trio.fail_after(WAIT_S):
            assert await trio.to_thread.run_sync(dial_in) == 501
    assert server.errors == []


UPGRADES = {
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "TLS": b"Connection: upgrade\r\nUpgrade: TLS/1.2\r\n",
}


@pytest.mark.parametrize("name", UPGRADES)
@pytest.mark.parametrize("eager", [b"", b"\x81\x85\x00\x00\x00\x00hello" * 100], ids=["waits", "eager"])
async def test_upgrade_is_refused_and_what_follows_is_never_a_request(name: str, eager: bytes) -> None:
    data = b"GET /ws HTTP/1.1\r\nHost: a\r\n" + UPGRADES[name] + b"\r\n" + eager + request_bytes("/smuggled")
    async with http_server(websocket_app()) as server:
        (answer,) = parse_answers(await exchange(server.port, data), ["GET"])
    assert answer.status == 501
    assert answer.headers[b"connection"] == b"close"
    assert server.errors == []


async def test_upgrade_without_its_connection_option_is_not_one() -> None:
    async def hello(_: Request) -> Response:
        return PlainTextResponse("hello")

    data = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: close\r\n\r\n"
    async with http_server(Starlette(routes=[Route("/", hello)])) as server:
        (answer,) = parse_answers(await exchange(server.port, data), ["GET"])
    assert answer.body == b"hello"
