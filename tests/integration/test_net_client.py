"""The outgoing client against servers that lie, stall and cut."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import trio

from emcd.errors import RecoverableError
from emcd.net.http_client import request, require_anyio
from emcd.net.tls import client_context, server_context
from tests.support.net_world import Tls, http_server, tcp_server

OK = b"HTTP/1.1 200 OK\r\n"


async def answer_to(data: bytes, **options: object) -> object:
    """Send a request to a server that answers with these bytes and closes."""

    async def handle(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(data)

    async with tcp_server(handle) as port:
        return await request("GET", f"http://127.0.0.1:{port}/path?key=secret", **options)  # type: ignore[arg-type]


async def read_request(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length:
        body += await stream.receive_some()
    return head + b"\r\n\r\n" + body


async def failure_of(data: bytes, **options: object) -> str:
    with pytest.raises(RecoverableError) as caught:
        await answer_to(data, **options)
    assert "secret" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "EMC-1301"),
        (OK, "EMC-1304"),
        (OK + b"Content-Length: 9\r\n\r\n", "EMC-1304"),
        (OK + b"Content-Length: 9\r\n\r\nhello", "EMC-1304"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", "EMC-1304"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "EMC-1304"),
        (OK + b"Connection: close\r\n\r\nhello", "EMC-1304"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", "EMC-1304"),
        (OK + b"Content-Length: x\r\n\r\n", "EMC-1305"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "EMC-1305"),
        (OK + b"X: \xff\r\nContent-Length: 0\r\n\r\n", "EMC-1305"),
        (OK + b"Set-Cookie: a\r\nContent-Length: 0\r\n\r\n", "EMC-1305"),
        (OK + b"A: " + b"b" * 200_000, "EMC-1305"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "EMC-1305"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "EMC-1305"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n", "EMC-1305"),
        (OK + b"Content-Encoding: gzip\r\nContent-Length: 23\r\n\r\n" + gzip.compress(b"abc"), "EMC-1306"),
    ],
)
async def test_request_bad_answer_raises_its_code(data: bytes, code: str) -> None:
    assert await failure_of(data) == code


async def test_request_body_over_bound_raises() -> None:
    chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
    assert await failure_of(OK + b"Content-Length: 11\r\n\r\nhello world", max_bytes=10) == "EMC-1303"
    assert (
        await failure_of(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 50, max_bytes=10_000)
        == "EMC-1303"
    )


async def test_request_good_answer_is_whole() -> None:
    data = OK + b'X-A: b\r\nSet-Cookie: a=b\r\nContent-Length: 8\r\n\r\n{"a": 1}'
    answer = await answer_to(data)
    assert answer.status == 200  # type: ignore[attr-defined]
    assert answer.headers == {"x-a": "b", "content-length": "8"}  # type: ignore[attr-defined]
    assert answer.json() == {"a": 1}  # type: ignore[attr-defined]


async def test_request_redirect_is_returned_and_not_followed() -> None:
    data = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    answer = await answer_to(data, headers={"authorization": "Bearer secret"})
    assert answer.status == 302  # type: ignore[attr-defined]


async def test_response_json_of_another_shape_raises() -> None:
    answer = await answer_to(OK + b"Content-Length: 5\r\n\r\n[1, 2")
    with pytest.raises(RecoverableError, match="EMC-1307"):
        answer.json()  # type: ignore[attr-defined]
    answer = await answer_to(OK + b"Content-Length: 6\r\n\r\n[1, 2]")
    with pytest.raises(RecoverableError, match="EMC-1307"):
        answer.json(dict[str, int])  # type: ignore[attr-defined]


async def test_request_to_silent_server_raises_at_its_deadline() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await trio.sleep_forever()

    async with tcp_server(handle) as port:
        with trio.fail_after(3), pytest.raises(RecoverableError, match="EMC-1302"):
            await request("GET", f"http://127.0.0.1:{port}/", timeout_s=0.2)


async def test_request_to_dripping_server_raises_at_its_deadline() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.send_all(OK + b"Content-Length: 1000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.02)

    async with tcp_server(handle) as port:
        with trio.fail_after(3), pytest.raises(RecoverableError, match="EMC-1302"):
            await request("GET", f"http://127.0.0.1:{port}/", timeout_s=0.3)


async def test_request_to_nobody_raises() -> None:
    with pytest.raises(RecoverableError, match="EMC-1301"):
        await request("GET", "http://127.0.0.1:1/")


async def test_request_is_sent_once_and_asks_for_nothing_it_cannot_read() -> None:
    seen: list[bytes] = []

    async def handle(stream: trio.SocketStream) -> None:
        seen.append(await read_request(stream))

    async with tcp_server(handle) as port:
        with pytest.raises(RecoverableError, match="EMC-1301"):
            await request("POST", f"http://127.0.0.1:{port}/a/b?c=%20d", json={"x": 1}, headers={"X-A": "b"})
    assert len(seen) == 1
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert head.startswith(b"POST /a/b?c=%20d HTTP/1.1\r\n")
    assert body == b'{"x":1}'
    assert b"accept-encoding: identity" in lines
    assert b"connection: close" in lines
    assert b"content-length: 7" in lines
    assert b"content-type: application/json" in lines
    assert f"host: 127.0.0.1:{port}".encode() in lines


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("ftp://a/", {}),
        ("http://u:p@a/", {}),
        ("http://127.0.0.1:1/", {"Host": "b"}),
        ("http://127.0.0.1:1/", {"content-length": "3"}),
        ("http://127.0.0.1:1/", {"Transfer-Encoding": "chunked"}),
    ],
)
async def test_request_that_cannot_be_sent_raises(url: str, headers: dict[str, str]) -> None:
    with pytest.raises(RecoverableError, match="EMC-1308"):
        await request("GET", url, headers=headers)


async def test_request_header_with_a_line_break_raises() -> None:
    assert await failure_of(OK, headers={"x": "a\r\nb: c"}) == "EMC-1308"


async def test_request_cancelled_leaves_no_task() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with tcp_server(handle) as port:
        with trio.move_on_after(0.1) as scope:
            await request("GET", f"http://127.0.0.1:{port}/")
    assert scope.cancelled_caught


async def hello(scope: dict[str, object], receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b"hello"})  # type: ignore[operator]


async def test_request_over_tls_verifies_chain_and_name(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    async with http_server(hello, ssl_context=server_context(tls.cert_file, tls.key_file)) as server:
        trusted = client_context(tls.ca_file)
        answer = await request("GET", f"https://localhost:{server.port}/", ssl_context=trusted)
        assert answer.body == b"hello"
        with pytest.raises(RecoverableError, match="EMC-1301"):
            await request("GET", f"https://127.0.0.1:{server.port}/", ssl_context=trusted)
        with pytest.raises(RecoverableError, match="EMC-1301"):
            await request("GET", f"https://localhost:{server.port}/")


def test_require_anyio_of_the_lock_passes() -> None:
    require_anyio()
