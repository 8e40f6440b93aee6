"""The HTTP server's bounds: size, time, number, and requests that two readers would read apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from emcd.net.http_limit import Limits
from tests.support.net_world import (
    dial,
    exchange,
    http_server,
    parse_answers,
    read_all,
    read_until,
    request_bytes,
)

QUICK = Limits(header_bytes=1024, body_bytes=10_000, header_s=0.3, body_s=0.3, idle_s=0.5, connections=3)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"<" + body + b">"})


HOST = b"Host: a\r\n"
REFUSED = {
    "length and coding": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "bad chunk size": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "obs-fold": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_server_ambiguous_request_gets_400_and_nothing_after_it_is_read(name: str) -> None:
    async with http_server(echo) as server:
        before = request_bytes("/", b"first")
        data = await exchange(server.port, before + REFUSED[name] + request_bytes("/", b"smuggled"))
    first, refusal = parse_answers(data, ["POST", "GET"])
    assert first.body == b"<first>"
    assert refusal.status == 400
    assert refusal.headers[b"connection"] == b"close"
    assert json.loads(refusal.body)["error"]["code"] == "EMC-1330"
    assert b"smuggled" not in data


async def test_server_header_too_large_gets_431() -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 2000 + b"\r\n\r\n"
    async with http_server(echo, QUICK) as server:
        assert parse_answers(await exchange(server.port, data), ["GET"])[0].status == 431


async def test_server_body_too_large_by_its_length_gets_413_before_it_is_sent() -> None:
    async with http_server(echo, QUICK) as server:
        data = await exchange(server.port, request_bytes(body=bytes(10_001))[:100])
    assert parse_answers(data, ["POST"])[0].status == 413


async def test_server_body_too_large_in_chunks_gets_413() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with http_server(echo, QUICK) as server, dial(server.port) as stream:
        await stream.send_all(head)
        for _ in range(11):
            await stream.send_all(b"3e8\r\n" + bytes(1000) + b"\r\n")
            await trio.sleep(0.01)
        assert parse_answers(await read_all(stream), ["POST"])[0].status == 413


async def test_server_large_upload_that_is_refused_lets_the_client_read_why() -> None:
    async with http_server(echo, QUICK) as server:
        data = await exchange(server.port, request_bytes(body=bytes(2_000_000)))
    assert parse_answers(data, ["POST"])[0].status == 413


async def test_server_head_that_does_not_end_gets_408() -> None:
    async with http_server(echo, QUICK) as server, dial(server.port) as stream:
        with trio.fail_after(3):
            for letter in b"GET / HTTP/1.1\r\n":
                await stream.send_all(bytes([letter]))
            data = await read_all(stream)
    assert parse_answers(data, ["GET"])[0].status == 408


async def test_server_head_that_drips_gets_408() -> None:
    async with http_server(echo, QUICK) as server, dial(server.port) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        data = b""
        with trio.fail_after(3):
            while not data:
                await stream.send_all(b"X: y\r\n")
                with trio.move_on_after(0.05):
                    data = bytes(await stream.receive_some())
    assert data.startswith(b"HTTP/1.1 408 ")


async def test_server_second_head_that_does_not_end_gets_408_before_the_idle_limit() -> None:
    limits = Limits(header_s=0.3, idle_s=60)
    async with http_server(echo, limits) as server, dial(server.port) as stream:
        await stream.send_all(request_bytes())
        await read_until(stream, b"<>")
        await stream.send_all(b"GET / HT")
        with trio.fail_after(3):
            assert parse_answers(await read_all(stream), ["GET"])[0].status == 408


async def test_server_connection_without_a_byte_is_closed() -> None:
    async with http_server(echo, QUICK) as server, dial(server.port) as stream:
        with trio.fail_after(3):
            assert await read_all(stream) == b""


async def test_server_body_that_does_not_come_gets_408() -> None:
    async with http_server(echo, QUICK) as server, dial(server.port) as stream:
        await stream.send_all(request_bytes(body=bytes(1000))[:-1])
        with trio.fail_after(3):
            assert parse_answers(await read_all(stream), ["POST"])[0].status == 408
    assert server.errors == []


async def test_server_idle_connection_is_closed() -> None:
    async with http_server(echo, QUICK) as server, dial(server.port) as stream:
        await stream.send_all(request_bytes())
        await read_until(stream, b"<>")
        with trio.fail_after(3):
            assert await read_all(stream) == b""


async def test_server_connections_over_the_bound_wait_for_a_slot() -> None:
    async with (
        http_server(echo, Limits(connections=2)) as server,
        dial(server.port) as one,
        dial(server.port) as two,
        dial(server.port) as three,
    ):
        for stream in (one, two):
            await stream.send_all(request_bytes())
            await read_until(stream, b"<>")
        await three.send_all(request_bytes())
        with trio.move_on_after(0.3) as scope:
            await three.receive_some()
        assert scope.cancelled_caught
        with trio.fail_after(3):  # the idle ones make room
            await read_until(three, b"<>")


async def test_server_endless_pipelining_does_not_starve_others() -> None:
    async with (
        http_server(echo) as server,
        dial(server.port) as greedy,
        dial(server.port) as modest,
        trio.open_nursery() as nursery,
    ):

        async def flood() -> None:
            while True:
                await greedy.send_all(request_bytes() * 500)

        async def drink() -> None:
            while True:
                await greedy.receive_some()

        nursery.start_soon(flood)
        nursery.start_soon(drink)
        with trio.fail_after(5):
            for _ in range(20):
                await modest.send_all(request_bytes())
                await read_until(modest, b"<>")
        nursery.cancel_scope.cancel()
