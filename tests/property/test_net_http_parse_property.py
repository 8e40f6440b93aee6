"""The request parser under any bytes, cut anywhere."""

from __future__ import annotations

from pathlib import Path

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcd.net.http_response import ResponseWriter
from tests.fuzz.fuzz_http_parser import check
from tests.support.http_oracle import read, require_as_h11, require_same_however_cut

INPUTS = Path(__file__).parents[1] / "fuzz" / "http_inputs"
ODD = st.sampled_from(
    [b" ", b"\r\n", b"\n", b"\r", b"\t", b"\0", b":", b";", b"0", b"5", b"\xff", b"x" * 700]
)
LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"POST /a%2e?b HTTP/1.1",
        b"POST / HTTP/1.0",
        b"HEAD * HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
    ]
)
FIELDS = st.sampled_from(
    [
        b"Content-Length: 5",
        b"Content-Length: 5",
        b"content-length:05 ",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding:\tChunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Connection: close",
        b"Connection: keep-alive",
        b"TE: trailers",
        b"CONTENT-LENGTH:\t7",
        b"Host: b",
        b"Upgrade: x",
        b"Expect: 100-continue",
        b"X: y",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"",
        b"hello",
        b"hello, you",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n00\r\nT: x\r\n\r\n",
        b"0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ]
)


@st.composite
def almost_requests(draw: st.DrawFn) -> bytes:
    """A request of sound parts, which need not fit together, with a few bytes out of place."""
    fields = draw(st.lists(FIELDS, max_size=3))
    data = b"\r\n".join([draw(LINES), b"Host: a", *fields, b"", b""]) + draw(BODIES)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(ODD) + data[at + draw(st.integers(0, 2)) :]
    return data


@st.composite
def repeated_requests(draw: st.DrawFn) -> list[bytes]:
    """What a client on one connection sends, read by read: a head again and again, its length and body
    aside, with other requests between, now and then a few bytes out of place or a read cut in two."""
    line, field = draw(LINES), draw(st.sampled_from([b"", b"X: y\r\n", b"Authorization: Bearer emc\r\n"]))
    name = draw(st.sampled_from([b"Content-Length: ", b"content-length:", b"CONTENT-LENGTH:  "]))
    reads = [b""]
    for _ in range(draw(st.integers(2, 8))):
        body = draw(BODIES)
        digits = draw(st.sampled_from([b"%d", b"%d", b"%d", b"%03d"])) % len(body)
        one = line + b"\r\nHost: a\r\n" + name + digits + b"\r\n" + field + b"\r\n" + body
        if draw(st.integers(0, 7)) == 0:
            at = draw(st.integers(0, len(one)))
            one = one[:at] + draw(ODD) + one[at + draw(st.integers(0, 2)) :]
        if draw(st.integers(0, 3)) == 0:
            one += draw(almost_requests())
        at = len(one) if draw(st.booleans()) else draw(st.integers(0, len(one)))
        reads[-1] += one[:at]
        reads.append(one[at:])
    return reads


NOISE = (
    st.lists(almost_requests(), min_size=1, max_size=4).map(b"".join)
    | repeated_requests().map(b"".join)
    | st.binary(max_size=100)
)
CUTS = st.lists(st.integers(1, 200), min_size=1, max_size=10)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


@given(repeated_requests())
@settings(max_examples=600)
def test_parser_repeated_heads_are_read_as_if_each_were_the_first(reads: list[bytes]) -> None:
    require_same_however_cut(reads)
    require_as_h11(b"".join(reads))


@given(NOISE, CUTS)
@settings(max_examples=400)
def test_parser_any_bytes_never_raise_and_are_read_the_same_however_cut(data: bytes, cuts: list[int]) -> None:
    require_same_however_cut(cut(data, cuts))


@given(NOISE)
@settings(max_examples=400)
def test_parser_what_it_accepts_h11_reads_the_same_way(data: bytes) -> None:
    """Two readers never disagree on where a message ends: what ours passes on, h11 passes on alike."""
    require_as_h11(data)


@pytest.mark.parametrize("file", sorted(INPUTS.iterdir()), ids=lambda file: file.name)
def test_parser_inputs_that_a_fuzzer_chose_are_read_soundly(file: Path) -> None:
    check(file.read_bytes())


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8), st.booleans(), CUTS)
def test_parser_requests_that_were_written_come_back(
    bodies: list[bytes], chunked: bool, cuts: list[int]
) -> None:
    data = b""
    for number, body in enumerate(bodies):
        data += b"POST /%d HTTP/1.1\r\nHost: a\r\n" % number
        if chunked:
            middle = len(body) // 2
            data += b"Transfer-Encoding: chunked\r\n\r\n"
            for piece in (body[:middle], body[middle:]):
                data += b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
            data += b"0\r\n\r\n"
        else:
            data += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    parser = read(cut(data, cuts))
    assert parser.refusal is None
    assert [(r.path, b"".join(r.chunks)) for r in parser.ready] == [
        (f"/{n}", b) for n, b in enumerate(bodies)
    ]
    assert parser.idle


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=8), st.sampled_from([200, 201, 404, 500]))
def test_writer_pieces_come_back_by_h11(pieces: list[bytes], status: int) -> None:
    writer = ResponseWriter("GET", "1.1", keep_alive=True)
    data = writer.head(status, [(b"x-a", b"b")], len(pieces[0]) if len(pieces) == 1 else None)
    for number, piece in enumerate(pieces, 1):
        data += writer.body(piece, more=number < len(pieces))
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert (head.status_code, body) == (status, b"".join(pieces))


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_writer_header_is_refused_or_stays_one_header(name: bytes, value: bytes) -> None:
    from emcd.errors import LocalProtocolError

    writer = ResponseWriter("GET", "1.1", keep_alive=True)
    try:
        head = writer.head(200, [(name, value)], 0)
    except LocalProtocolError:
        return
    own = (b"content-length", b"transfer-encoding", b"connection", b"date", b"upgrade", b"keep-alive")
    lines = head.split(b"\r\n")
    assert len(lines) == 5 + (name.lower() not in own) + (b"connection: close" in lines)
