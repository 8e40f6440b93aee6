"""The streaming client: pieces as they come, and a cut is never an end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from emcd.errors import RecoverableError
from emcd.net.http_stream import stream
from emcd.net.tls import client_context, server_context
from tests.support.net_world import Tls, http_server, tcp_server

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def read_head(sock: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await sock.receive_some()
    return data


async def test_stream_pieces_arrive_before_the_end() -> None:
    go_on = trio.Event()

    async def handle(sock: trio.SocketStream) -> None:
        assert (await read_head(sock)).endswith(b"\r\n\r\nbody")
        await sock.send_all(HEAD + b"3\r\none\r\n")
        await go_on.wait()
        await sock.send_all(b"3\r\ntwo\r\n0\r\n\r\n")

    async with (
        tcp_server(handle) as port,
        stream("POST", f"http://127.0.0.1:{port}/v1", body=b"body") as answer,
    ):
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        pieces = []
        async for piece in answer:
            pieces.append(piece)
            go_on.set()
        assert pieces == [b"one", b"two"]
        assert await answer.read() == b""


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "EMC-1301"),
        (HEAD, "EMC-1304"),
        (HEAD + b"3\r\none\r\n", "EMC-1304"),
        (HEAD + b"3\r\non", "EMC-1304"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "EMC-1304"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "EMC-1304"),
        (HEAD + b"zz\r\n", "EMC-1305"),
        (b"nonsense\r\n\r\n", "EMC-1305"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, "EMC-1305"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", "EMC-1306"),
        (HEAD + b"65\r\n" + bytes(101) + b"\r\n0\r\n\r\n", "EMC-1303"),
    ],
)
async def test_stream_bad_answer_raises_its_code(data: bytes, code: str) -> None:
    async def handle(sock: trio.SocketStream) -> None:
        await read_head(sock)
        await sock.send_all(data)

    async with tcp_server(handle) as port:
        with pytest.raises(RecoverableError) as caught:
            async with stream("GET", f"http://127.0.0.1:{port}/?key=secret", max_bytes=100) as answer:
                await answer.read()
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


async def test_stream_early_hints_are_skipped() -> None:
    async def handle(sock: trio.SocketStream) -> None:
        await read_head(sock)
        await sock.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD + b"1\r\nx\r\n0\r\n\r\n")

    async with tcp_server(handle) as port, stream("GET", f"http://127.0.0.1:{port}/") as answer:
        assert await answer.read() == b"x"


@pytest.mark.parametrize("head", [b"", HEAD])
async def test_stream_silence_raises_at_the_idle_deadline(head: bytes) -> None:
    async def handle(sock: trio.SocketStream) -> None:
        await sock.send_all(head)
        await trio.sleep_forever()

    async with tcp_server(handle) as port:
        with trio.fail_after(3), pytest.raises(RecoverableError, match="EMC-1302"):
            async with stream("GET", f"http://127.0.0.1:{port}/", idle_timeout_s=0.2) as answer:
                await answer.read()


async def test_stream_left_early_closes_the_connection() -> None:
    closed = trio.Event()

    async def handle(sock: trio.SocketStream) -> None:
        await sock.send_all(HEAD)
        try:
            while True:
                await sock.send_all(b"1\r\nx\r\n")
                await trio.sleep(0.01)
        except trio.BrokenResourceError:
            closed.set()

    async with tcp_server(handle) as port:
        async with stream("GET", f"http://127.0.0.1:{port}/") as answer:
            assert await anext(answer) == b"x"
        with trio.fail_after(3):
            await closed.wait()


async def test_stream_exception_of_the_caller_passes_through() -> None:
    async def handle(sock: trio.SocketStream) -> None:
        await sock.send_all(HEAD)
        await trio.sleep_forever()

    async with tcp_server(handle) as port:
        with pytest.raises(KeyError):
            async with stream("GET", f"http://127.0.0.1:{port}/"):
                raise KeyError


async def test_stream_to_nobody_raises() -> None:
    with pytest.raises(RecoverableError, match="EMC-1301"):
        async with stream("GET", "http://127.0.0.1:1/"):
            pass


@pytest.mark.parametrize(
    ("url", "headers"),
    [("http://u@a/", {}), ("http://127.0.0.1:1/", {"Host": "x"}), ("http://127.0.0.1:1/", {"x": "a\nb"})],
)
async def test_stream_request_that_cannot_be_sent_raises(url: str, headers: dict[str, str]) -> None:
    with pytest.raises(RecoverableError, match="EMC-1308"):
        async with stream("GET", url, headers=headers):
            pass


async def parts(scope: object, receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
    for _ in range(100):
        await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})  # type: ignore[operator]
    await send({"type": "http.response.body"})  # type: ignore[operator]


async def test_stream_over_tls_verifies_and_reads(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    async with http_server(parts, ssl_context=server_context(tls.cert_file, tls.key_file)) as server:
        url = f"https://localhost:{server.port}/"
        async with stream("GET", url, ssl_context=client_context(tls.ca_file)) as answer:
            assert len(await answer.read()) == 100_000
        with pytest.raises(RecoverableError, match="EMC-1301"):
            async with stream("GET", url):
                pass
