"""The response writer: framing, and what an application can't smuggle into a head."""

from __future__ import annotations

import json

import h11
import pytest

from emcd.errors import LocalProtocolError
from emcd.net.http_limit import BODY_TOO_LARGE
from emcd.net.http_response import Framing, ResponseWriter, refusal_bytes


def write(
    method: str = "GET",
    status: int = 200,
    headers: list[tuple[bytes, bytes]] | None = None,
    pieces: tuple[bytes, ...] = (b"hello",),
    version: str = "1.1",
) -> tuple[bytes, ResponseWriter]:
    writer = ResponseWriter(method, version, keep_alive=True)
    whole = len(pieces) == 1
    data = writer.head(status, headers or [], len(pieces[0]) if whole else None)
    for number, piece in enumerate(pieces, 1):
        data += writer.body(piece, more=number < len(pieces))
    return data, writer


def read(data: bytes, method: str = "GET") -> tuple[h11.Response, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    client.receive_data(b"")
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return head, body


def test_writer_whole_body_has_content_length() -> None:
    data, writer = write(headers=[(b"x-a", b"b")])
    head, body = read(data)
    assert (head.status_code, body) == (200, b"hello")
    headers = dict(head.headers)
    assert headers[b"content-length"] == b"5"
    assert headers[b"x-a"] == b"b"
    assert b"date" in headers
    assert writer.complete
    assert writer.keep_alive


def test_writer_pieces_are_chunked() -> None:
    data, writer = write(pieces=(b"a" * 20, b"", b"b", b""))
    head, body = read(data)
    assert body == b"a" * 20 + b"b"
    assert (b"transfer-encoding", b"chunked") in list(head.headers)
    assert writer.complete


def test_writer_pieces_to_http_1_0_end_by_close() -> None:
    data, writer = write(pieces=(b"a", b"b"), version="1.0")
    assert writer.framing is Framing.CLOSE
    assert not writer.keep_alive
    assert data.endswith(b"\r\n\r\nab")


def test_writer_head_request_has_length_and_no_body() -> None:
    data, writer = write("HEAD")
    head, body = read(data, "HEAD")
    assert body == b""
    assert dict(head.headers)[b"content-length"] == b"5"
    assert writer.complete


@pytest.mark.parametrize("status", [204, 304])
def test_writer_bodiless_status_has_no_body(status: int) -> None:
    data, writer = write(status=status)
    assert data.endswith(b"\r\n\r\n")
    assert b"transfer-encoding" not in data
    assert writer.complete


def test_writer_connection_close_of_the_application_is_honoured() -> None:
    data, writer = write(headers=[(b"Connection", b"Close")])
    assert not writer.keep_alive
    assert data.count(b"connection: close\r\n") == 1


def test_writer_framing_headers_of_the_application_are_dropped() -> None:
    data, _ = write(headers=[(b"Transfer-Encoding", b"chunked"), (b"Date", b"x"), (b"Keep-Alive", b"1")])
    head, body = read(data)
    names = [name for name, _ in head.headers]
    assert body == b"hello"
    assert b"transfer-encoding" not in names
    assert names.count(b"date") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x\r\ny", b"a"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"", b"a"),
        (b"content-length", b"5\r\nx: y"),
        (b"content-length", b"-5"),
        (b"content-length", b""),
    ],
)
def test_writer_injected_header_raises(name: bytes, value: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="EMC-1337"):
        write(headers=[(name, value)])


def test_writer_two_content_lengths_raise() -> None:
    with pytest.raises(LocalProtocolError, match="EMC-1337"):
        write(headers=[(b"content-length", b"5"), (b"Content-Length", b"5")])


@pytest.mark.parametrize("status", [0, 99, 101, 1000])
def test_writer_status_out_of_range_raises(status: int) -> None:
    with pytest.raises(LocalProtocolError, match="EMC-1337"):
        write(status=status)


@pytest.mark.parametrize("pieces", [(b"hell",), (b"hello!",), (b"hel", b"lo!"), (b"hel", b"l")])
def test_writer_body_other_than_content_length_raises(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(LocalProtocolError, match="EMC-1338"):
        write(headers=[(b"content-length", b"5")], pieces=pieces)


def test_refusal_is_json_in_the_shape_of_openai() -> None:
    head, body = read(refusal_bytes(BODY_TOO_LARGE))
    assert head.status_code == 413
    assert dict(head.headers)[b"connection"] == b"close"
    assert json.loads(body)["error"]["code"] == "EMC-1332"
    assert refusal_bytes(BODY_TOO_LARGE, with_body=False).endswith(b"\r\n\r\n")
