"""Server-sent events of streams: cut, told apart, ended."""

from __future__ import annotations

import msgspec
import pytest

from emcd.accounting.usage import Usage
from emcd.errors import RemoteProtocolError
from emcd.proto.openai import Endpoint
from emcd_hub.calls.sse import MAX_EVENT_BYTES, EventKind, EventSplitter, classify_event, make_cut


def test_splitter_keeps_every_byte_and_each_kind_of_blank_line() -> None:
    data = b"data: 1\n\ndata: 2\r\n\r\n: note\r\rdata: rest"
    splitter = EventSplitter()
    assert splitter.feed(data) == [b"data: 1\n\n", b"data: 2\r\n\r\n", b": note\r\r"]
    assert splitter.take_rest() == b"data: rest"
    assert splitter.take_rest() == b""


def test_splitter_refuses_an_event_without_end() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"x" * MAX_EVENT_BYTES) == []
    with pytest.raises(RemoteProtocolError) as caught:
        splitter.feed(b"x")
    assert caught.value.code == "EMC-1726"


@pytest.mark.parametrize(
    ("event", "kind", "usage"),
    [
        (b"data: [DONE]\n\n", EventKind.DONE, None),
        (b"data:[DONE]\r\n\r\n", EventKind.DONE, None),
        (b": ping\n\n", EventKind.OTHER, None),
        (b"event: x\ndata: y\n\n", EventKind.OTHER, None),
        (b'data: {"choices":[{"delta":{}}]}\n\n', EventKind.CONTENT, None),
        (b'data: {"choices":[{"delta":{}}],"usage":null}\n\n', EventKind.CONTENT, None),
        (
            b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
            EventKind.USAGE,
            Usage(1, 2),
        ),
        (
            b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
            EventKind.CONTENT,
            Usage(1, 2),
        ),
        (b'data: {"choices":[{"delta":{"content":"\\"usage\\": {}"}}]}\n\n', EventKind.CONTENT, None),
        (b'data: {"usage":{"prompt_tokens":-1}}\n\n', EventKind.CONTENT, None),
        (b'data: {"usage"\n\n', EventKind.CONTENT, None),
    ],
)
def test_events_are_told_apart(event: bytes, kind: EventKind, usage: Usage | None) -> None:
    assert classify_event(event) == (kind, usage)


def test_cut_ends_a_chat_like_its_first_event() -> None:
    first = b'data: {"id":"x","object":"chat.completion.chunk","created":5,"model":"m","choices":[{"index":0}]}\n\n'
    last, usage, done, rest = make_cut(Endpoint.CHAT, first, Usage(3, 4)).split(b"\n\n")
    assert msgspec.json.decode(last[6:]) == {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "m",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}],
    }
    assert msgspec.json.decode(usage[6:])["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
    }
    assert (done, rest) == (b"data: [DONE]", b"")


@pytest.mark.parametrize("first", [b"", b"data: {", b"data: 5\n\n", b"data: \xff\n\n"])
def test_cut_survives_a_strange_first_event(first: bytes) -> None:
    made = make_cut(Endpoint.COMPLETIONS, first, None)
    assert made.endswith(b"data: [DONE]\n\n")
    assert b'"text":""' in made
