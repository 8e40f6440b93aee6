"""The request parser: what it refuses, whichever way the bytes are cut."""
# ruff: noqa: E501 -- one row of the table is one line

from __future__ import annotations

import pytest

from emcd.net.http_limit import Limits
from emcd.net.http_parse import Request, RequestParser

HOST = b"Host: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL = Limits(header_bytes=512, header_fields=8, body_bytes=1000)

REFUSED = {
    "length and coding": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "coding and length": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    "two lengths": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    "two equal lengths": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "list of lengths": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5, 5\r\n\r\nhello"),
    "signed length": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +5\r\n\r\nhello"),
    "negative length": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\nhello"),
    "hex length": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x5\r\n\r\nhello"),
    "length of two words": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5 5\r\n\r\nhello"),
    "empty length": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\nhello"),
    "length of 24 digits": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 999999999999999999999999\r\n\r\n"),
    "length over the bound": (413, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1001\r\n\r\n"),
    "coding identity": (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: identity\r\n\r\n"),
    "coding gzip, chunked": (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "coding chunked, gzip": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "coding twice": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "coding xchunked": (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "coding after a vertical tab": (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "coding in quotes": (501, b"POST / HTTP/1.1\r\n" + HOST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "coding in HTTP/1.0": (501, b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunk size with a space": (400, CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk size after a space": (400, CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n"),
    "chunk size 0x5": (400, CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size -5": (400, CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk size 0_5": (400, CHUNKED + b"0_5\r\nhello\r\n0\r\n\r\n"),
    "chunk size missing": (400, CHUNKED + b"\r\nhello\r\n0\r\n\r\n"),
    "chunk size of 17 digits": (400, CHUNKED + b"fffffffffffffffff\r\nhello"),
    "chunk lines ended by LF": (400, CHUNKED + b"5\nhello\n0\n\n"),
    "chunk extension ended by LF": (400, CHUNKED + b"5;a\nhello\r\n0\r\n\r\n"),
    "chunk extension with CR": (400, CHUNKED + b"5;a\rX\r\nhello\r\n0\r\n\r\n"),
    "chunk data ended by LF": (400, CHUNKED + b"5\r\nhello\n0\r\n\r\n"),
    "chunk data without CRLF": (400, CHUNKED + b"5\r\nhello0\r\n\r\n"),
    "chunk data too long": (400, CHUNKED + b"5\r\nhelloXX\r\n0\r\n\r\n"),
    "chunks over the bound": (413, CHUNKED + b"3e9\r\n" + bytes(1001)),
    "length in trailers": (400, CHUNKED + b"0\r\nContent-Length: 9\r\n\r\n"),
    "request line ended by LF": (400, b"GET / HTTP/1.1\n" + HOST + b"\r\n"),
    "header ended by LF": (400, b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
    "head ended by LF": (400, b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    "CR in a value": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n"),
    "CR CR LF": (400, b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"),
    "obs-fold by space": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n"),
    "obs-fold by tab": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n"),
    "obs-fold before the first header": (400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    "obs-fold of the coding": (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    "space before the colon": (400, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    "tab before the colon": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX\t: b\r\n\r\n"),
    "length, space, colon": (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello"),
    "space in a name": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n"),
    "empty name": (400, b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
    "no colon": (400, b"GET / HTTP/1.1\r\nHost: a\r\nXab\r\n\r\n"),
    "NUL in a name": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n"),
    "NUL in a value": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n"),
    "control character in a value": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "two equal hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
    "two hosts in HTTP/1.0": (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    "host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "host with a user": (400, b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    "host list": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "HTTP/0.9": (505, b"GET /\r\n\r\n"),
    "HTTP/1.2": (400, b"GET / HTTP/1.2\r\n" + HOST + b"\r\n"),
    "HTTP/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\n" + HOST + b"\r\n"),
    "HTTP/1.01": (400, b"GET / HTTP/1.01\r\n" + HOST + b"\r\n"),
    "http/1.1": (400, b"GET / http/1.1\r\n" + HOST + b"\r\n"),
    "ICE": (501, b"SOURCE / ICE/1.0\r\n" + HOST + b"\r\n"),
    "tab in the request line": (400, b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    "space after the version": (400, b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n"),
    "two versions": (400, b"GET / HTTP/1.1 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "method in lower case": (400, b"get / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "method TRACE": (501, b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "method CONNECT": (501, b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "method unknown": (400, b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "target of another host": (400, b"GET http://b/x HTTP/1.1\r\n" + HOST + b"\r\n"),
    "target without a slash": (400, b"GET x HTTP/1.1\r\n" + HOST + b"\r\n"),
    "target * of GET": (400, b"GET * HTTP/1.1\r\n" + HOST + b"\r\n"),
    "target with a fragment": (400, b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n"),
    "target with a fragment in the query": (400, b"GET /a?b#c HTTP/1.1\r\n" + HOST + b"\r\n"),
    "target with a byte over 127": (400, b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n"),
    "target with a control character": (400, b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "target with a tab": (400, b"GET /a\tb HTTP/1.1\r\n" + HOST + b"\r\n"),
    "path not UTF-8": (400, b"GET /%ff HTTP/1.1\r\n" + HOST + b"\r\n"),
    "path with a NUL": (400, b"GET /a%00b HTTP/1.1\r\n" + HOST + b"\r\n"),
    "upgrade to websocket": (501, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\nXX"),
    "upgrade with a body": (501, b"POST / HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nXX"),
    "expectation of something else": (417, b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 200-ok\r\nContent-Length: 1\r\n\r\nx"),
    "header too large": (431, b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 600 + b"\r\n\r\n"),
    "header without an end": (431, b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 2000),
    "target too long": (431, b"GET /" + b"a" * 600 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    "too many headers": (431, b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 8 + b"\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
}  # fmt: skip


def parse(data: bytes, *, step: int = 0, limits: Limits = SMALL) -> tuple[list[Request], RequestParser]:
    parser = RequestParser(limits)
    for at in range(0, len(data), step or len(data)):
        parser.feed(data[at : at + (step or len(data))])
    return list(parser.ready), parser


@pytest.mark.parametrize("step", [0, 1, 7], ids=["whole", "bytes", "sevens"])
@pytest.mark.parametrize("name", REFUSED)
def test_parser_ambiguous_request_is_refused(name: str, step: int) -> None:
    status, data = REFUSED[name]
    requests, parser = parse(data, step=step)
    assert parser.refusal is not None
    assert parser.refusal.status == status
    assert not any(request.complete for request in requests)


@pytest.mark.parametrize("tail", [b"0\r\nX: ", b"5;"], ids=["trailer", "chunk extension"])
@pytest.mark.parametrize("step", [1, 100])
def test_parser_endless_line_after_the_head_is_refused(tail: bytes, step: int) -> None:
    _, parser = parse(CHUNKED + tail + b"a" * 700, step=step)
    assert parser.refusal is not None
    assert parser.refusal.status == 431


@pytest.mark.parametrize("step", [0, 1, 7])
def test_parser_pipelined_requests_come_out_in_order(step: int) -> None:
    one = b"GET /1?a=b HTTP/1.1\r\n" + HOST + b"\r\n"
    two = b"POST /2 HTTP/1.1\r\nHOST: a:80\r\nContent-Length: 5 \r\n\r\nhello"
    three = CHUNKED + b"3;x=y\r\nhel\r\n02\r\nlo\r\n0\r\nTrailer: dropped\r\n\r\n"
    requests, parser = parse(one + two + three + one, step=step)
    assert parser.refusal is None
    assert [r.path for r in requests] == ["/1", "/2", "/", "/1"]
    assert [b"".join(r.chunks) for r in requests] == [b"", b"hello", b"hello", b""]
    assert all(r.complete and r.keep_alive for r in requests)
    assert requests[0].query == b"a=b"
    assert requests[1].headers == [(b"host", b"a:80"), (b"content-length", b"5")]
    assert requests[2].headers == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]
    assert parser.idle


def test_parser_fault_after_good_requests_keeps_them() -> None:
    requests, parser = parse(b"GET /1 HTTP/1.1\r\n" + HOST + b"\r\nGET /2 HTTP/1.1\nHost: a\n\n")
    assert [r.path for r in requests] == ["/1"]
    assert parser.refusal is not None
    parser.feed(b"GET /3 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert len(parser.ready) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"GET /1 HTTP/1.1\r\nConnection: close\r\nHost: a\r\n\r\n",
        b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [0, 1])
def test_parser_after_the_last_request_looks_at_nothing(head: bytes, step: int) -> None:
    requests, parser = parse(head + b"GET /2 HTTP/1.1\nHost: a\n\n", step=step)
    assert [r.path for r in requests] == ["/1"]
    assert parser.refusal is None
    assert parser.last
    assert not requests[0].keep_alive


def test_parser_large_head_behind_a_small_one_is_refused() -> None:
    one = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    requests, parser = parse(one + b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 600 + b"\r\n\r\n")
    assert len(requests) == 1
    assert parser.refusal is not None
    assert parser.refusal.status == 431


def test_parser_percent_path_is_decoded_once() -> None:
    requests, _ = parse(b"GET /%C3%A9%2541?x=%zz HTTP/1.1\r\n" + HOST + b"\r\n")
    assert requests[0].path == "/é%41"
    assert requests[0].raw_path == b"/%C3%A9%2541"
    assert requests[0].query == b"x=%zz"


def test_parser_options_star_is_served() -> None:
    requests, parser = parse(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n")
    assert parser.refusal is None
    assert requests[0].path == "*"


@pytest.mark.parametrize("host", [b"", b"a.b-c:8420", b"[::1]:80", b"127.0.0.1"])
def test_parser_host_forms_are_served(host: bytes) -> None:
    requests, parser = parse(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert parser.refusal is None
    assert len(requests) == 1


def test_parser_expect_continue_is_marked() -> None:
    requests, _ = parse(b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-Continue\r\nContent-Length: 5\r\n\r\n")
    assert requests[0].expects_continue
    assert not requests[0].complete


def test_parser_body_within_bound_in_many_reads_is_whole() -> None:
    parser = RequestParser(SMALL)
    parser.feed(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n")
    for _ in range(10):
        parser.feed(bytes(100))
    assert parser.refusal is None
    assert parser.ready[0].complete


def test_parser_many_small_chunks_within_bound_are_whole() -> None:
    requests, parser = parse(CHUNKED + b"1\r\nx\r\n" * 900 + b"0\r\n\r\n", step=1)
    assert parser.refusal is None
    assert b"".join(requests[0].chunks) == b"x" * 900


def test_parser_idle_tells_a_started_head() -> None:
    parser = RequestParser(SMALL)
    assert parser.idle
    parser.feed(b"\r\n")
    assert parser.idle
    parser.feed(b"GE")
    assert not parser.idle
