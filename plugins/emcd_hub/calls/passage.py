"""What of a stream goes to the client, and when: events one way, the bytes of a sound another. Pure.

Invariants: bytes are never changed, only left out or held back; the end of a stream of events is held
back until somebody asks for it; the usage chunk passes only for who asked for it.
"""

from __future__ import annotations

from typing import Protocol

from emcd.accounting.event_stream import EventKind, StreamMeter, count_cut, make_splitter
from emcd.accounting.usage import Usage
from emcd.errors import RecoverableError
from emcd.proto.openai_shape import UpstreamRequest, error_body
from emcd_hub.calls.sse import make_cut, make_error


class Passage(Protocol):
    """One stream's way through the hub."""

    @property
    def produced(self) -> int:
        """What it brought so far, in tokens as far as they can be counted in passing."""
        ...

    @property
    def usage(self) -> Usage | None:
        """What the stream itself says that it used."""
        ...

    @property
    def counted(self) -> Usage:
        """What a stream used that ends early, as the node counts it, too."""
        ...

    @property
    def own_count(self) -> Usage:
        """What a stream used that ends early, whatever is stated in it."""
        ...

    @property
    def is_ended(self) -> bool:
        """Whether it came to the end that its API has."""
        ...

    @property
    def fault(self) -> str:
        """Why it is no whole answer, now that it is over; "" for nothing."""
        ...

    @property
    def is_failed(self) -> bool:
        """Whether the engine reported an error in it."""
        ...

    def take(self, piece: bytes) -> bytes:
        """What of a piece goes to the client now. Raises: RemoteProtocolError EMC-1726."""
        ...

    def take_rest(self) -> bytes:
        """What was held back for the end; the bytes are over."""
        ...

    def make_cut(self) -> bytes:
        """The end of a stream whose budget is used up."""
        ...

    def make_error(self, detail: str) -> bytes:
        """The end of a stream that failed. Raises: RecoverableError EMC-1714 where it has no way to say so."""
        ...


class EventPassage:
    """Server-sent events."""

    def __init__(self, request: UpstreamRequest) -> None:
        self._request = request
        self._splitter = make_splitter(request.endpoint)
        self._meter = StreamMeter(request.endpoint)
        self._held = b""
        self._first = b""
        self._events = 0

    @property
    def produced(self) -> int:
        return self._meter.produced

    @property
    def usage(self) -> Usage | None:
        return self._meter.usage

    @property
    def counted(self) -> Usage:
        return self._count(self._meter.usage)

    @property
    def own_count(self) -> Usage:
        return self._count(None)

    def _count(self, stated: Usage | None) -> Usage:
        request = self._request
        return count_cut(request.endpoint, request.body, stated, self._meter.produced)

    @property
    def is_ended(self) -> bool:
        return self._meter.ended

    @property
    def is_failed(self) -> bool:
        return self._meter.failed

    @property
    def fault(self) -> str:
        if self._meter.failed:
            return "the engine reports an error in its stream"
        return "" if self._meter.ended else "the node's stream stopped without its end"

    def take(self, piece: bytes) -> bytes:
        meter = self._meter
        if self._first and self._splitter.is_between and meter.take_plain(piece):
            return piece
        out = []
        for event in self._splitter.feed(piece):
            kind = meter.read(event)
            if kind is EventKind.DONE:
                self._held += event
                continue
            if kind is EventKind.USAGE and not self._request.wants_usage:
                continue
            if kind is EventKind.CONTENT:
                self._first = self._first or event
            self._events += 1
            out.append(event)
        return out[0] if len(out) == 1 else b"".join(out)

    def take_rest(self) -> bytes:
        held, self._held = self._held, b""
        rest = self._splitter.take_rest()
        if rest:
            self._meter.read(rest)
        return held + rest

    def make_cut(self) -> bytes:
        usage = self.counted if self._request.wants_usage else None
        return make_cut(self._request.endpoint, self._first, usage, self._events)

    def make_error(self, detail: str) -> bytes:
        body = error_body("EMC-1714", f"{detail} (EMC-1714)", type="server_error", code="stream_cut")
        return make_error(self._request.endpoint, body, self._events)


class SoundPassage:
    """Bytes of a sound: only the end of the answer tells their end."""

    usage = None
    counted = own_count = Usage(0, 0)
    is_ended = is_failed = False
    fault = ""

    def __init__(self) -> None:
        self.produced = 0

    def take(self, piece: bytes) -> bytes:
        self.produced = 1
        return piece

    def take_rest(self) -> bytes:
        return b""

    def make_cut(self) -> bytes:
        return b""

    def make_error(self, detail: str) -> bytes:
        raise RecoverableError("EMC-1714", detail)
