"""A streamed answer as hub and node both read it while it passes: its events, its usage, its end. Pure.

Both sides count by the same code over the same bytes, so that what a cut stream is charged for needs
nobody's word. Each API ends its streams in its own way: completions by `[DONE]`, responses and media by
an event whose `type` says so, with their usage in it. Invariants: bytes are never changed, only grouped;
memory is bounded by one event.

Source: https://platform.openai.com/docs/api-reference (streaming of each endpoint); WHATWG HTML 9.2.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

import msgspec

from emcd.accounting.usage import Usage, read_usage
from emcd.errors import RemoteProtocolError
from emcd.proto.openai_shape import Endpoint

MAX_EVENT_BYTES: Final = 1 << 20
MAX_IMAGE_EVENT_BYTES: Final = 1 << 24
"""An image stands in one event, base64."""
TEMPLATE_TOKENS: Final = 1024
"""What an engine's chat template may add to the tokens of the request itself."""
PROMPT_BYTES_A_TOKEN: Final = 6
"""Of the JSON around a prompt and its prose, engines count a token for four to five bytes."""
_MAX_PROMPT_BYTES = 1 << 20
_BLOB = re.compile(rb"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{256,}")
"""A picture or a sound within a prompt, base64: an engine counts far less for it."""
_EVIDENCE = re.compile(rb'"(?:(?:top_)?logprobs|return_token_ids|seed)":[a-z0-9-]{1,20},?')
"""What all calls of a model that can be verified ask for: no prompt."""
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LONGEST_END = 4
_LINE = re.compile(rb"\r\n|\n|\r")
_DONE = b"[DONE]"
_CHOICES = b'"choices"'
_IMAGES = frozenset((Endpoint.IMAGES, Endpoint.IMAGE_EDITS, Endpoint.IMAGE_VARIATIONS))
_ENDS = frozenset(
    (
        "response.completed",
        "response.incomplete",
        "transcript.text.done",
        "speech.audio.done",
        "image_generation.completed",
        "image_edit.completed",
    )
)
_FAILURES = frozenset(("error", "response.failed"))


class EventKind(Enum):
    CONTENT = 1
    USAGE = 2  # the chunk that only reports usage
    DONE = 3  # the stream is complete; what follows belongs to its end
    OTHER = 4  # comments, other fields
    ERROR = 5  # the engine says that it failed


class EventSplitter:
    """Whole events, each with the blank line that ends it."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._rest = bytearray()
        self._max = max_event_bytes

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes. Raises: RemoteProtocolError EMC-1726 when an event does not end."""
        rest = self._rest
        looked = max(0, len(rest) - _LONGEST_END + 1)
        rest += piece
        events = []
        at = 0
        for match in _END.finditer(rest, looked):
            events.append(bytes(rest[at : match.end()]))
            at = match.end()
        del rest[:at]
        if len(rest) > self._max:
            raise RemoteProtocolError("EMC-1726", f"an event of more than {self._max} bytes")
        return events

    @property
    def is_between(self) -> bool:
        """Whether the bytes so far end with an event's end."""
        return not self._rest

    def take_rest(self) -> bytes:
        """What came after the last whole event, once the stream is over."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest


def make_splitter(endpoint: Endpoint) -> EventSplitter:
    """For streams of an endpoint."""
    return EventSplitter(MAX_IMAGE_EVENT_BYTES if endpoint in _IMAGES else MAX_EVENT_BYTES)


def event_data(event: bytes) -> bytes:
    """The data of an event; b"" for none."""
    line = event.strip()
    if line.startswith(b"data:") and b"\n" not in line and b"\r" not in line:
        return line[5:].strip()
    data = [part[5:].strip() for part in _LINE.split(line) if part.startswith(b"data:")]
    return b"\n".join(data)


class StreamMeter:
    """What a stream said so far. Attributes:

    usage: the last one stated.
    produced: chunks with choices, or events with a type: what a stream is charged for that ends before
        its usage.
    ended: whether it came to its proper end; failed: whether the engine reported an error in it.
    """

    __slots__ = ("_has_types", "ended", "failed", "produced", "usage")

    def __init__(self, endpoint: Endpoint) -> None:
        self._has_types = endpoint is not Endpoint.CHAT and endpoint is not Endpoint.COMPLETIONS
        self.usage: Usage | None = None
        self.produced = 0
        self.ended = False
        self.failed = False

    def take_plain(self, piece: bytes) -> bool:
        """Take a piece that holds nothing but whole chunks of content, as nearly all of a stream is.

        Returns: False, and nothing was taken, where that can't be told by a few searches.
        """
        if (
            self._has_types
            or self.ended
            or not piece.endswith(b"\n\n")
            or b'"usage"' in piece
            or b"[DONE]" in piece
            or b'"error"' in piece
            or b"\r" in piece
        ):
            return False
        self.produced += piece.count(_CHOICES)
        return True

    def read(self, event: bytes) -> EventKind:
        """Take the next event. What follows the end is not looked at."""
        if self.ended:
            return EventKind.DONE
        data = event_data(event)
        if data == _DONE:
            self.ended = True
            return EventKind.DONE
        if self._has_types:
            return self._read_typed(data) if data else EventKind.OTHER
        return self._read_chunk(event, data)

    def _read_chunk(self, event: bytes, data: bytes) -> EventKind:
        usage = read_usage(data) if b'"usage"' in data else None
        if usage is not None:
            self.usage = usage
            if not _read_choices(data):
                return EventKind.USAGE
        elif data.startswith(b'{"error"') and _read_error(data):
            self.failed = True
            return EventKind.ERROR
        self.produced += event.count(_CHOICES)  # of all of it, as `take_plain` does
        return EventKind.CONTENT if data else EventKind.OTHER

    def _read_typed(self, data: bytes) -> EventKind:
        try:
            typed = _decode_typed(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            typed = _Typed()
        if b'"usage"' in data:
            self.usage = read_usage(bytes(typed.response) or data) or self.usage
        if typed.type in _ENDS:
            self.ended = True
            return EventKind.DONE
        if typed.type in _FAILURES or (data.startswith(b'{"error"') and _read_error(data)):
            self.failed = True
            return EventKind.ERROR
        self.produced += max(typed.type != "", data.count(_CHOICES))
        return EventKind.CONTENT


def count_cut(endpoint: Endpoint, body: bytes, usage: Usage | None, produced: int) -> Usage:
    """What a stream used that was left or cut, as hub and node both count it. Nothing if it brought nothing.

    The output is what it stated, else a token an event. The input is what it stated, if the request can
    hold that, else a token for every `PROMPT_BYTES_A_TOKEN` of the prompt; of sounds and images, which may
    be metered by the call, none.

    Args:
        body: the request as the node gets it; usage, produced: the meter's.
    """
    if not produced:
        return Usage(0, 0)
    made = produced if usage is None else usage.output_tokens
    if usage is not None and usage.input_tokens <= len(body) + TEMPLATE_TOKENS:
        return usage
    return Usage(0 if endpoint.is_media else _count_prompt_floor(body), made)


def _count_prompt_floor(body: bytes) -> int:
    """Tokens of a request, rather too few than too many: what is no prose in it is left out."""
    looked = body[:_MAX_PROMPT_BYTES]
    blobs = sum(match.end() - match.start() for match in _BLOB.finditer(looked))
    asked = sum(match.end() - match.start() for match in _EVIDENCE.finditer(looked))
    return (len(looked) - blobs - asked) // PROMPT_BYTES_A_TOKEN


class PassingStream:
    """Meters bytes as they pass, however they are cut."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.meter = StreamMeter(endpoint)
        self._splitter = make_splitter(endpoint)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes. Raises: RemoteProtocolError EMC-1726 when an event does not end."""
        if self._splitter.is_between and self.meter.take_plain(piece):
            return
        for event in self._splitter.feed(piece):
            self.meter.read(event)

    def end(self) -> None:
        """The bytes are over: what is left of them is an event, too."""
        rest = self._splitter.take_rest()
        if rest:
            self.meter.read(rest)


class _Choices(msgspec.Struct, frozen=True):
    choices: list[msgspec.Raw] = []


class _Error(msgspec.Struct, frozen=True):
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Typed(msgspec.Struct, frozen=True):
    type: str = ""
    response: msgspec.Raw = msgspec.Raw(b"")


_decode_choices = msgspec.json.Decoder(_Choices).decode
_decode_error = msgspec.json.Decoder(_Error).decode
_decode_typed = msgspec.json.Decoder(_Typed).decode


def _read_choices(data: bytes) -> bool:
    """Whether a chunk has choices; one that can't be read counts as one that has."""
    try:
        return bool(_decode_choices(data).choices)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return True


def _read_error(data: bytes) -> bool:
    try:
        return bytes(_decode_error(data).error) != b"null"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
