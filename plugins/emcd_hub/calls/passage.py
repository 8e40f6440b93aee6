"""What of a stream goes to the client, and when: events one way, the bytes of a sound another. Pure.

Invariants: bytes are never changed, only left out or held back, but where a client did not ask for the
evidence in its answer: there every event is written anew without it, and nothing that can't be read
passes; the end of a stream of events is held back until somebody asks for it; the usage chunk passes only
for who asked for it.
"""

from __future__ import annotations

from typing import Protocol

from emcd.accounting.event_stream import (
    MAX_EVENT_BYTES,
    EventKind,
    StreamMeter,
    count_cut,
    event_data,
    make_splitter,
)
from emcd.accounting.usage import Usage
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.proto.openai_shape import UpstreamRequest, error_body
from emcd_hub.calls.evidence import Bounds, read_piece, require_evidence
from emcd_hub.calls.held import Held
from emcd_hub.calls.sse import DONE_EVENT, make_cut, make_error
from emcd_hub.calls.uncounted import MARK, REASONING, read_uncounted, shows_reasoning

_FIRST_PIECES = 16
_EVENT_POSITIONS = 2048
"""Events carry a few tokens: one of more would keep the loop."""
_QUIET = b":\n\n"
"""A comment: what says nothing but that the stream goes on."""


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
    def held(self) -> Held | None:
        """What it names of its tokens; None: nothing was asked for."""
        ...

    @property
    def uncounted(self) -> int:
        """Tokens of a reasoning that it does not show: nobody can count them."""
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
        self.held = Held(request.inputs) if request.evidence else None
        self._reasoning = 0
        self._shows_reasoning = False
        self._looks = _FIRST_PIECES

    @property
    def uncounted(self) -> int:
        return 0 if self._shows_reasoning else self._reasoning

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
        if self._looks:
            self._look_for_reasoning(piece)
        if self._first and self._splitter.is_between and meter.take_plain(piece):
            return piece
        out = []
        for event in self._splitter.feed(piece):
            kind = meter.read(event)
            if MARK in event:
                self._reasoning = read_uncounted(event_data(event))
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

    def _look_for_reasoning(self, piece: bytes) -> None:
        """A model thinks before it speaks: later pieces need not be looked at."""
        self._looks -= 1
        if REASONING in piece and shows_reasoning(piece):
            self._shows_reasoning = True
            self._looks = 0

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


class EvidencePassage(EventPassage):
    """The events of a model that can be verified: token ids are counted, and what is hidden is taken out."""

    def __init__(self, request: UpstreamRequest, owes_evidence: bool = False) -> None:
        """
        Args:
            owes_evidence: a text without evidence is the node's fault.
        """
        super().__init__(request)
        self._owes_evidence = owes_evidence
        self._bounds = Bounds(request.choices, _EVENT_POSITIONS)

    def take(self, piece: bytes) -> bytes:
        if self._looks:
            self._look_for_reasoning(piece)
        meter = self._meter
        if _is_one_line(piece) and self._splitter.is_between and meter.take_plain(piece):
            told = self._tell(piece, piece[6:-2])
            self._first = self._first or told
            self._events += 1
            return told
        out = []
        for event in self._splitter.feed(piece):
            kind = meter.read(event)
            if kind is EventKind.DONE:
                self._hold(event)
                continue
            told = self._read(event, kind)
            if kind is EventKind.USAGE and not self._request.wants_usage:
                continue
            if kind is EventKind.CONTENT:
                self._first = self._first or told
            self._events += 1
            out.append(told)
        return out[0] if len(out) == 1 else b"".join(out)

    def take_rest(self) -> bytes:
        rest = self._splitter.take_rest()
        if rest and self._meter.read(rest) is EventKind.DONE:
            self._hold(rest)
        held, self._held = self._held, b""
        return held

    def _hold(self, event: bytes) -> None:
        """The end. What a node sends after it is nothing that its API knows, and passes to nobody."""
        if self._request.hidden is None:
            self._held += event
        else:
            self._held = DONE_EVENT

    def _read(self, event: bytes, kind: EventKind) -> bytes:
        """Raises: RemoteProtocolError EMC-1793."""
        if kind is EventKind.OTHER:
            return event if self._request.hidden is None else _QUIET
        data = event_data(event)
        if MARK in data:
            self._reasoning = read_uncounted(data)
        return self._tell(event, data)

    def _tell(self, event: bytes, data: bytes) -> bytes:
        """An event as its client gets it. Raises: RemoteProtocolError EMC-1793."""
        request, held = self._request, self.held
        if len(data) > MAX_EVENT_BYTES:
            raise RemoteProtocolError("EMC-1793", f"an event of more than {MAX_EVENT_BYTES} bytes")
        piece = read_piece(request.endpoint, data, request.hidden, self._bounds)
        if self._owes_evidence:
            require_evidence(piece)
        assert held is not None
        held.add(piece)
        if request.hidden is None:
            return event
        told = piece.data
        if b"\n" in told or b"\r" in told:  # between its values: in an event a line ends there
            told = told.replace(b"\n", b" ").replace(b"\r", b" ")
        return b"data: %b\n\n" % told


def _is_one_line(piece: bytes) -> bool:
    """Whether a piece is one event of one line of data, as nearly all are."""
    return piece.startswith(b"data: {") and piece.find(b"\n") == len(piece) - 2


class SoundPassage:
    """Bytes of a sound: only the end of the answer tells their end."""

    usage = None
    counted = own_count = Usage(0, 0)
    is_ended = is_failed = False
    fault = ""
    uncounted = 0
    held = None

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
