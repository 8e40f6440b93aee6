"""Server-sent events of a streamed completion, cut out of whatever pieces they come in. Pure.

Invariants: bytes are never changed, only grouped or left out; memory is bounded.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import msgspec

from emcd.accounting.usage import Usage, read_usage
from emcd.errors import RemoteProtocolError
from emcd.proto.openai import Endpoint

MAX_EVENT_BYTES = 1 << 20
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_DONE = b"[DONE]"
_encode = msgspec.json.Encoder().encode


class EventKind(Enum):
    CONTENT = 1
    USAGE = 2  # the chunk that only reports usage
    DONE = 3
    OTHER = 4  # comments, other fields


class EventSplitter:
    """Whole events, each with the blank line that ends it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes. Raises: RemoteProtocolError EMC-1726 when an event does not end."""
        data = self._rest + piece if self._rest else piece
        events = []
        at = 0
        for match in _END.finditer(data):
            events.append(data[at : match.end()])
            at = match.end()
        self._rest = data[at:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise RemoteProtocolError("EMC-1726", f"an event of more than {MAX_EVENT_BYTES} bytes")
        return events

    def take_rest(self) -> bytes:
        """What came after the last whole event, once the stream is over."""
        rest, self._rest = self._rest, b""
        return rest


def event_data(event: bytes) -> bytes:
    """The data of an event of one data line, as OpenAI's streams have them; b"" for none."""
    line = event.strip()
    return line[5:].strip() if line.startswith(b"data:") else b""


def classify_event(event: bytes) -> tuple[EventKind, Usage | None]:
    """What an event is, and the usage it reports."""
    data = event_data(event)
    if not data:
        return EventKind.OTHER, None
    if data == _DONE:
        return EventKind.DONE, None
    if b'"usage"' not in data:
        return EventKind.CONTENT, None
    usage = read_usage(data)
    if usage is not None and _has_no_choices(data):
        return EventKind.USAGE, usage
    return EventKind.CONTENT, usage


def make_event(value: Any) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


DONE_EVENT = b"data: [DONE]\n\n"


def make_cut(endpoint: Endpoint, first: bytes, usage: Usage | None) -> bytes:
    """The end of a stream that the budget cut: finish_reason "length", usage if asked for, [DONE].

    Args:
        first: the first content event, whose id, model and time the last one repeats.
    """
    try:
        like = msgspec.json.decode(event_data(first))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        like = None
    if not isinstance(like, dict):
        like = {}
    chat = endpoint is Endpoint.CHAT
    head = {name: like[name] for name in ("id", "object", "created", "model") if name in like}
    head.setdefault("object", "chat.completion.chunk" if chat else "text_completion")
    choice: dict[str, Any] = {"index": 0, "delta": {}} if chat else {"index": 0, "text": ""}
    out = make_event({**head, "choices": [{**choice, "finish_reason": "length"}]})
    if usage is not None:
        counts = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }
        out += make_event({**head, "choices": [], "usage": counts})
    return out + DONE_EVENT


class _Choices(msgspec.Struct, frozen=True):
    choices: list[msgspec.Raw] = []


_decode_choices = msgspec.json.Decoder(_Choices).decode


def _has_no_choices(data: bytes) -> bool:
    try:
        return not _decode_choices(data).choices
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
