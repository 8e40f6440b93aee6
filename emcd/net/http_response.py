"""HTTP/1.1 responses into bytes: pure.

Invariants: an application can't put a line break into a head, nor two framings into one message,
nor more or fewer bytes on the wire than it announced; a response without a body has none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus

import msgspec

from emcd.errors import LocalProtocolError
from emcd.net.http_limit import Refusal

Headers = Iterable[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_OWN = frozenset((b"content-length", b"transfer-encoding", b"connection", b"date", b"upgrade", b"keep-alive"))
_NO_TRAILER = _OWN | {b"host", b"trailer", b"te", b"content-type", b"content-encoding", b"set-cookie"}
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus if s >= 200}
_NAMES_MAX = 1024
_lines: dict[bytes, bytes] = {}
"""A header's name as applications write it, to the beginning of its line; none of those in _OWN."""
_date_s = 0
_date_line = b""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class Framing(Enum):
    """How the end of a body is told."""

    NONE = 1
    LENGTH = 2
    CHUNKED = 3
    CLOSE = 4


_NO_BODY = Framing.NONE
_LENGTH = Framing.LENGTH
_CHUNKED = Framing.CHUNKED
"""Names of this module: to read a member of an Enum costs four times as much."""


class ResponseWriter:
    """The bytes of one response. `keep_alive` and `complete` are facts once the head was built."""

    __slots__ = ("_left", "complete", "framing", "keep_alive", "method", "version")

    def __init__(self, method: str, version: str, keep_alive: bool) -> None:
        self.method = method
        self.version = version
        self.keep_alive = keep_alive
        self.complete = False
        self.framing = _NO_BODY
        self._left = 0

    def head(self, status: int, headers: Headers, body_bytes: int | None) -> bytes:
        """Build the head.

        Args:
            headers: the application's; Connection: close is honoured, Transfer-Encoding and Date
                are ours.
            body_bytes: the body's length when it is known now, None when it comes in pieces.

        Raises: LocalProtocolError EMC-1337 when a header is not valid.
        """
        fields = []
        length: bytes | None = None
        for name, value in headers:
            line = _lines.get(name)
            if line is None:
                lower = name.lower()
                if lower in _OWN:
                    if lower == b"content-length":
                        if length is not None or not _DIGITS.fullmatch(value):
                            raise LocalProtocolError("EMC-1337", "content-length")
                        length = value
                    elif lower == b"connection" and b"close" in value.lower():
                        self.keep_alive = False
                    continue
                line = _make_line(name)
            fields.append(line + value)
        text = _join_fields(fields)
        framing = self._frame(status, length, body_bytes)
        close = b"" if self.keep_alive else b"connection: close\r\n"
        first = _STATUS_LINES.get(status) or _status_line(status)
        return b"".join((first, text, framing, close, _find_date_line()))

    def _frame(self, status: int, length: bytes | None, body_bytes: int | None) -> bytes:
        """Choose the framing and return its header line."""
        if status < 200 or status in (204, 304):
            self.complete = True
            return b"content-length: %b\r\n" % length if length and status == 304 else b""
        if length is None and body_bytes is not None:
            length = b"%d" % body_bytes
        if length is not None:
            self.framing = _LENGTH
            self._left = int(length)
            line = b"content-length: %b\r\n" % length
        elif self.version == "1.1":
            self.framing = _CHUNKED
            line = b"transfer-encoding: chunked\r\n"
        else:
            self.framing = Framing.CLOSE
            self.keep_alive = False
            line = b""
        if self.method == "HEAD":
            self.framing = _NO_BODY
            self.complete = True
        return line

    def body(self, data: bytes, more: bool, trailers: Headers = ()) -> bytes:
        """Frame a piece of the body; `more` is False with the last one. What a HEAD or a 204 has
        no room for is dropped, and so are trailers where no chunk can carry them.

        Raises: LocalProtocolError EMC-1338 when it is more or less than Content-Length said, 1337
            when a trailer is not valid.
        """
        framing = self.framing
        if framing is _NO_BODY:
            return b""
        if framing is _LENGTH:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                raise LocalProtocolError("EMC-1338", f"{-self._left} bytes over its Content-Length")
        elif framing is _CHUNKED and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not more:
            last = LAST_CHUNK if not trailers else b"0\r\n%b\r\n" % _frame_trailers(trailers)
            self.complete = True
            if framing is _CHUNKED:
                return data + last
        return data


def refusal_bytes(refusal: Refusal, *, with_body: bool = True) -> bytes:
    """A whole response that ends the connection, in the shape of OpenAI's errors."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    body = msgspec.json.encode(
        {"error": {"message": refusal.detail, "type": kind, "param": None, "code": refusal.code}}
    )
    writer = ResponseWriter("GET", "1.1", keep_alive=False)
    head = writer.head(refusal.status, [(b"content-type", b"application/json")], len(body))
    return head + body if with_body else head


def _make_line(name: bytes) -> bytes:
    """The beginning of a header's line, remembered for the next time."""
    if not _NAME.fullmatch(name):
        raise LocalProtocolError("EMC-1337", f"{name[:40]!r} is not a header name")
    line = name + b": "
    if len(_lines) < _NAMES_MAX:
        _lines[name] = line
    return line


def _join_fields(fields: list[bytes]) -> bytes:
    """Lines as a block; refuses values that would make other lines of it."""
    if not fields:
        return b""
    fields.append(b"")
    text = b"\r\n".join(fields)
    breaks = len(fields) - 1
    if text.count(b"\n") != breaks or text.count(b"\r") != breaks or b"\0" in text:
        raise LocalProtocolError("EMC-1337", "a header's value holds a line break or a NUL")
    return text


def _frame_trailers(trailers: Headers) -> bytes:
    fields = []
    for name, value in trailers:
        if name.lower() in _NO_TRAILER:
            raise LocalProtocolError("EMC-1337", f"{name[:40]!r} can't be a trailer")
        fields.append((_lines.get(name) or _make_line(name)) + value)
    return _join_fields(fields)


def _status_line(status: int) -> bytes:
    if not 200 <= status <= 999:
        raise LocalProtocolError("EMC-1337", f"status {status}")
    return b"HTTP/1.1 %d \r\n" % status


def _find_date_line() -> bytes:
    """The Date header and the head's end, made anew once a second."""
    global _date_s, _date_line
    now = int(time.time())
    if now != _date_s:
        _date_s = now
        _date_line = f"date: {formatdate(now, usegmt=True)}\r\n\r\n".encode()
    return _date_line
