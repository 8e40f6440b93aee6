"""The HTTP server's bounds: size, time, number, and requests that two readers would read apart."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

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

QUICK = Limits(header_bytes=1024, body_bytes=10_000, header_s=0.3, body_s=0.3, idle_s=0.5, connections=3)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"<" + body + b">"})


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


async def test_server_client_that_sends_and_closes_its_side_is_answered_and_then_closed() -> None:
    """Its bytes and their end are here before the server looks."""
    async with http_server(echo) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            await trio.testing.wait_all_tasks_blocked()
            sock.sendall(request_bytes(body=b"1") + request_bytes(body=b"2"))
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            with trio.fail_after(3):
                answers = parse_answers(await read_all(stream), ["POST", "POST"])
    assert [a.body for a in answers] == [b"<1>", b"<2>"]


async def test_server_receive_in_a_task_that_outlives_the_application_ends() -> None:
    told = trio.Event()

    async with trio.open_nursery() as nursery:

        async def linger(receive: Any) -> None:
            assert (await receive())["body"] == b"1"
            assert (await receive())["type"] == "http.disconnect"
            told.set()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nursery.start_soon(linger, receive)
            await trio.testing.wait_all_tasks_blocked()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"no need of your body"})

        async with http_server(app) as server:
            await exchange(server.port, request_bytes(body=b"12")[:-1])
            with trio.fail_after(WAIT_S):
                await told.wait()


async def test_server_expectation_of_a_chunked_body_is_answered_once() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with http_server(echo) as server, dial(server.port) as stream:
        await stream.send_all(head)
        data = await read_until(stream, b"\r\n\r\n")
        await stream.send_all(b"2\r\nhi\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"0\r\n\r\n" + request_bytes(close=True))
        data += await read_all(stream)
    assert data.count(b"100 Continue") == 1
    assert [a.body for a in parse_answers(data, ["POST", "POST"])] == [b"<hi>", b"<>"]


async def test_server_expectation_of_a_client_that_sends_at_once_costs_no_answer_of_its_own() -> None:
    data = request_bytes(body=b"hi", close=True).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n", 1)
    async with http_server(echo) as server:
        answer = await exchange(server.port, data)
    assert b"100 Continue" not in answer
    assert parse_answers(answer, ["POST"])[0].body == b"<hi>"


async def test_server_drain_answers_the_first_of_a_pipeline_and_says_that_it_closes() -> None:
    go_on, started = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        await go_on.wait()
        await echo(scope, receive, send)

    async with http_server(app) as server, dial(server.port) as stream:
        await stream.send_all(request_bytes("/", b"1") + request_bytes("/", b"2") + request_bytes("/", b"3"))
        await started.wait()
        server.drain.set()
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        (answer,) = parse_answers(await read_all(stream), ["POST"])
        with trio.fail_after(WAIT_S):
            await server.ended.wait()
    assert (answer.body, answer.headers[b"connection"]) == (b"<1>", b"close")


async def test_server_drain_lets_a_stream_end() -> None:
    go_on, started = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one,", "more_body": True})
        started.set()
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async with http_server(app) as server, dial(server.port) as stream:
        await stream.send_all(request_bytes())
        await started.wait()
        server.drain.set()
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        (answer,) = parse_answers(await read_all(stream), ["POST"])
    assert answer.body == b"one,two"


# TLS: its own waits have deadlines, too.


async def test_server_tls_handshake_that_does_not_come_is_cut(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    context = server_context(tls.cert_file, tls.key_file)
    async with http_server(echo, QUICK, context) as server:
        for started in (b"", b"\x16\x03\x01\x02\x00\x01"):
            async with dial(server.port) as stream:
                await stream.send_all(started)
                with trio.fail_after(5):
                    assert await read_all(stream) == b""
    assert server.errors == []


@pytest.mark.parametrize("kind", ["head", "body", "answer"])
async def test_server_tls_client_that_stalls_is_cut(tmp_path: Path, kind: str) -> None:
    tls = Tls.make(tmp_path)
    ended = trio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        finally:
            ended.set()

    limits = Limits(header_s=0.5, body_s=0.3, write_stall_s=0.3)
    context = server_context(tls.cert_file, tls.key_file)
    async with http_server(endless if kind == "answer" else echo, limits, context) as server:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect(("127.0.0.1", server.port))
        stream = trio.SSLStream(
            trio.SocketStream(sock),
            client_context(tls.ca_file),
            server_hostname="localhost",
            https_compatible=True,
        )
        with trio.fail_after(WAIT_S):
            if kind == "answer":
                await stream.send_all(request_bytes())
                await ended.wait()
            else:
                await stream.send_all(request_bytes(body=bytes(10))[: 20 if kind == "head" else -1])
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 408 ")
        await trio.aclose_forcefully(stream)
    assert server.errors == []
