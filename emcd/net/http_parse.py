"""HTTP/1.1 requests out of bytes: pure, strict, over httptools (llhttp).

Bytes go in by `feed`, whole heads come out in `ready`, in order; a body grows in its Request.
The first fault of the client is kept in `refusal`; what came before it is still served, and
nothing after it is looked at. Invariants: two readers of the same bytes can't disagree on where
a message ends (RFC 9112 sections 6 and 11.2): what llhttp 9 lets through although a proxy in
front may read it differently is refused here (see `_check_head`; two spaces in the request line are
let through, and a bare CR or LF before it, since they change no length). What is kept is bounded by
the limits plus one `feed`. Trailers are read, counted and dropped; one that frames is refused.
"""

from __future__ import annotations

import re
from collections import deque
from urllib.parse import unquote_to_bytes

import httptools

from emcd.net.http_limit import BODY_TOO_LARGE, HEAD_TOO_LARGE, Limits, Refusal
from emcd.net.http_request import Head, Headers, RepeatedHead, Request

_METHODS = {m.encode(): m for m in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(:[0-9]{0,5})?")
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade"))
_NO_TRAILERS = _FRAMING | {b"connection"}
_REPEATABLE = frozenset((b"host", b"content-length"))
_TRAILERS = re.compile(rb"(^|,)[ \t]*trailers[ \t]*($|,)", re.IGNORECASE)
_LEARN = 4  # heads that are remembered in vain before the connection is taken for one that varies


class _RefusedError(Exception):
    """Stops httptools from inside a callback; `refusal` says why."""


class RequestParser:
    """The requests of one connection."""

    def __init__(self, limits: Limits) -> None:
        self.ready: deque[Request] = deque()
        self.refusal: Refusal | None = None
        self.last = False
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: Headers = []
        self._marks: dict[bytes, bytes] = {}
        self._in_head = False
        self._open: Request | None = None
        self._fed = 0
        self._feed_bytes = 0
        self._body_bytes = 0
        self._quiet = 0
        self._repeated: RepeatedHead | None = None
        self._learn_left = _LEARN
        self._at_first = False
        self._first: Request | None = None

    @property
    def idle(self) -> bool:
        """Whether no byte of an unfinished request is held."""
        return not self._in_head and self._open is None

    def feed(self, data: bytes) -> None:
        """Take bytes as they came; never raises. Look at `ready` and `refusal` afterwards."""
        if self.refusal is not None or self.last:
            return
        fresh = self._open is None and not self._in_head
        if fresh and self._repeated is not None:
            taken = self._repeated.take(data, self.ready, self._limits.body_bytes)
            if taken:
                self._learn_left = _LEARN
                if taken == len(data):
                    return
                data = data[taken:]
        first = self._parse(data, fresh)
        if first is not None and self._learn_left > 0:
            self._learn_left -= 1
            self._repeated = RepeatedHead.find(data, first)

    def _parse(self, data: bytes, fresh: bool) -> Request | None:
        """Parse by httptools. Returns: a request whose head may be sent again, if one begins here."""
        self._at_first, self._first = fresh, None
        self._feed_bytes = len(data)
        self._fed += len(data)
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(Refusal(501, "EMC-1335", "this server does not switch protocols"))
        except httptools.HttpParserError as exc:
            if self.refusal is None and not self.last:
                self._refuse(Refusal(400, "EMC-1330", str(exc)))
        else:
            # In a head, and in trailers and chunk extensions, httptools keeps what it can't
            # hand out yet: without a bound on bytes that led to nothing it would grow for ever.
            if self._quiet > self._limits.header_bytes and not self.idle:
                self._refuse(HEAD_TOO_LARGE)
        return self._first

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = self.refusal or refusal

    def _stop(self, refusal: Refusal) -> None:
        self._refuse(refusal)
        raise _RefusedError

    # Callbacks of httptools, in the order of a message.

    def on_message_begin(self) -> None:
        if self.last:
            raise _RefusedError
        self._url = b""
        self._headers = []
        self._marks = {}
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if not self._in_head:
            if name in _NO_TRAILERS:
                self._stop(Refusal(400, "EMC-1330", f"header {name.decode()} stands in the trailers"))
            return
        if name in _FRAMING:
            if name in self._marks:
                self._stop(Refusal(400, "EMC-1330", f"header {name.decode()} stands twice"))
            self._marks[name] = value = value.rstrip(b" \t")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._fed > self._limits.header_bytes:
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
            if size > self._limits.header_bytes:
                self._stop(HEAD_TOO_LARGE)
        if len(self._headers) > self._limits.header_fields:
            self._stop(HEAD_TOO_LARGE)
        parser = self._parser
        method = _METHODS.get(parser.get_method())
        version = parser.get_http_version()
        if refusal := self._check_head(method, version):
            self._stop(refusal)
        assert method is not None
        head = Head(method, version)
        if refusal := self._read_target(head):
            self._stop(refusal)
        head.keep_alive = version == "1.1" and parser.should_keep_alive()
        head.wants_trailers = version == "1.1" and any(
            name == b"te" and _TRAILERS.search(value) for name, value in self._headers
        )
        request = Request(head, self._headers, [])
        request.expects_continue = b"expect" in self._marks and version == "1.1"
        if self._at_first:
            self._at_first = False
            if head.keep_alive and self._marks.keys() <= _REPEATABLE:
                self._first = request
        self._open = request
        self._body_bytes = self._quiet = 0
        self.ready.append(request)

    def on_chunk_header(self) -> None:
        self._quiet = 0

    def on_body(self, body: bytes) -> None:
        self._quiet = 0
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._stop(BODY_TOO_LARGE)
        assert self._open is not None
        self._open.chunks.append(body)

    def on_message_complete(self) -> None:
        request = self._open
        assert request is not None
        request.complete = True
        self.last = not request.keep_alive
        self._open = None
        self._fed = self._feed_bytes  # the next head may be in the same bytes
        self._quiet = 0

    def _check_head(self, method: str | None, version: str) -> Refusal | None:
        """What llhttp lets through: any method, HTTP/0.9 and 2.0, missing Host, other codings."""
        if version not in ("1.1", "1.0"):
            return Refusal(505, "EMC-1336", f"HTTP/{version} is not served")
        if method is None:
            return Refusal(501, "EMC-1335", "this method is not served")
        marks = self._marks
        host = marks.get(b"host")
        if host is None:
            if version == "1.1":
                return Refusal(400, "EMC-1330", "header host is missing")
        elif not _HOST.fullmatch(host):
            return Refusal(400, "EMC-1330", "header host is not a host")
        if len(marks) <= 1:
            return None
        coding = marks.get(b"transfer-encoding")
        if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
            return Refusal(501, "EMC-1335", "only the transfer coding chunked is served, in HTTP/1.1")
        length = marks.get(b"content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            return BODY_TOO_LARGE
        if marks.get(b"expect", b"100-continue").lower() != b"100-continue":
            return Refusal(417, "EMC-1335", "only the expectation 100-continue is served")
        if b"upgrade" in marks and self._parser.should_upgrade():
            return Refusal(501, "EMC-1335", "this server does not switch protocols")
        return None

    def _read_target(self, head: Head) -> Refusal | None:
        """Origin form only, or * with OPTIONS: a server for one origin needs no other."""
        raw, _, query = self._url.partition(b"?")
        if raw[:1] != b"/" and not (raw == b"*" and head.method == "OPTIONS"):
            return Refusal(400, "EMC-1330", "the request's target must begin with a slash")
        if b"#" in self._url:
            return Refusal(400, "EMC-1330", "the request's target must not hold a fragment")
        try:
            path = unquote_to_bytes(raw) if b"%" in raw else raw
            head.path = path.decode("utf-8")
        except UnicodeDecodeError:
            return Refusal(400, "EMC-1330", "the request's path is not UTF-8")
        if "\0" in head.path:
            return Refusal(400, "EMC-1330", "the request's path holds a NUL")
        head.raw_path = raw
        head.query = query
        return None
