"""The request parser: what it refuses, whichever way the bytes are cut."""

from __future__ import annotations

import pytest

from emcd.net.http_limit import Limits
from emcd.net.http_parse import RequestParser
from emcd.net.http_request import Request
from tests.support.bad_requests import CHUNKED, HOST, REFUSED, SMALL


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


def read(*pieces: bytes) -> RequestParser:
    parser = RequestParser(SMALL)
    for piece in pieces:
        parser.feed(piece)
    return parser


def test_parser_repeated_head_is_the_first_of_a_read_and_no_other() -> None:
    one, two = (b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in (b"/1", b"/2"))
    parser = read(one + two, one, two + one, two, one)
    assert [r.path for r in parser.ready] == ["/1", "/2", "/1", "/2", "/1", "/2", "/1"]
    chunked = CHUNKED + b"0\r\n\r\n"
    parser = read(chunked + one, chunked, one)
    assert [r.path for r in parser.ready] == ["/", "/1", "/", "/1"]


def test_parser_repeated_head_never_begins_within_a_body() -> None:
    one = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
    parser = read(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", b"x" + one, b"x" + one)
    assert [r.path for r in parser.ready] == ["/", "/1"]
    assert parser.refusal is not None


def test_parser_repeated_head_has_the_headers_and_the_body_of_its_own() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX: y\r\n\r\n"
    parser = read(head % 5 + b"hello", head % 2 + b"hi", head % 0, head % 5 + b"he", b"llo")
    assert [b"".join(r.chunks) for r in parser.ready] == [b"hello", b"hi", b"", b"hello"]
    assert [dict(r.headers)[b"content-length"] for r in parser.ready] == [b"5", b"2", b"0", b"5"]
    assert all(r.complete and dict(r.headers)[b"x"] == b"y" for r in parser.ready)
    assert parser.ready[0].head is parser.ready[1].head


def test_parser_that_met_many_heads_goes_on_without_remembering() -> None:
    parser = read(*(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(9)))
    assert [r.path for r in parser.ready] == [f"/{number}" for number in range(9)]


@pytest.mark.parametrize(
    ("value", "version", "wanted"),
    [(b"trailers", b"1.1", True), (b"deflate;q=0.5, Trailers", b"1.1", True), (b"trailers", b"1.0", False),
     (b"xtrailers", b"1.1", False), (b"", b"1.1", False)],
)  # fmt: skip
def test_parser_tells_whether_trailers_are_wanted(value: bytes, version: bytes, wanted: bool) -> None:
    requests, _ = parse(b"GET / HTTP/%b\r\nHost: a\r\nTE: %b\r\n\r\n" % (version, value))
    assert requests[0].wants_trailers is wanted
