"""What must hold of the request parser for any bytes, however they are cut: for the property tests and
the fuzzer. h11 is the second reader: it shares no code with the parser."""

from __future__ import annotations

import re

import h11

from emcd.net.http_limit import HEAD_TOO_LARGE, Limits
from emcd.net.http_parse import RequestParser
from emcd.net.http_request import Request

SMALL = Limits(header_bytes=600, header_fields=16, body_bytes=2000)
Outcome = list[tuple[object, ...]]

_LENIENT = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) {2}| {2}HTTP/1")


def read(reads: list[bytes], *, repeats: bool = True) -> RequestParser:
    """A parser that was fed these reads.

    Args:
        repeats: whether it may take heads that it knows by the short way.
    """
    parser = RequestParser(SMALL)
    if not repeats:
        parser._learn_left = 0
    for piece in reads:
        parser.feed(piece)
    return parser


def list_outcomes(parser: RequestParser) -> Outcome:
    """All that an application could see, request by request; whether it is whole comes last."""
    return [
        (
            (r.method, r.version, r.path, r.raw_path, r.query, r.keep_alive, r.wants_trailers),
            r.expects_continue,
            tuple(r.headers),
            b"".join(r.chunks),
            r.complete,
        )
        for r in parser.ready
    ]


def require_same_however_cut(reads: list[bytes]) -> None:
    """The same bytes in one read, in these, and without the short way: the same whole requests."""
    whole, cut, plain = read([b"".join(reads)]), read(reads), read(reads, repeats=False)
    assert list_outcomes(cut) == list_outcomes(plain)
    assert (cut.refusal, cut.last, cut.idle) == (plain.refusal, plain.last, plain.idle)
    if HEAD_TOO_LARGE in (whole.refusal, cut.refusal):
        return  # that one is seen as early as the bytes come
    complete = [row for row in list_outcomes(whole) if row[-1]]
    assert [row for row in list_outcomes(cut) if row[-1]][: len(complete)] == complete
    if whole.refusal is None and cut.refusal is None:
        assert list_outcomes(whole) == list_outcomes(cut)


def require_as_h11(data: bytes) -> None:
    """Where ours sees a whole request, h11 sees the same one, of the same length."""
    if _LENIENT.search(data):
        return  # llhttp takes any number of spaces in the request line, h11 one
    parser = read([data])
    other = h11.Connection(h11.SERVER)
    other.receive_data(data.lstrip(b"\r\n"))
    for request in parser.ready:
        if not request.complete:
            return
        _require_equal(request, other)
        if not request.keep_alive:
            return
        other.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        other.send(h11.EndOfMessage())
        if other.our_state is not h11.DONE or other.their_state is not h11.DONE:
            return
        other.start_next_cycle()
        if other.trailing_data[0].startswith((b"\r", b"\n")):
            return  # h11 takes no empty lines between requests


def _require_equal(request: Request, other: h11.Connection) -> None:
    event = other.next_event()
    assert isinstance(event, h11.Request), event
    assert event.method.decode() == request.method
    assert event.target.partition(b"?")[0] == request.raw_path
    body = b""
    while isinstance(event := other.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage), event
    assert body == b"".join(request.chunks)
