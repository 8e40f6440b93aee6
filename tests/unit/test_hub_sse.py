"""What the hub itself writes into streams: cuts and errors, in the words of each API."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from emcd.accounting.event_stream import event_data
from emcd.accounting.usage import Usage
from emcd.proto.openai_shape import Endpoint, error_body
from emcd_hub.calls.sse import make_cut, make_error

BODY = error_body("EMC-1714", "cut", type="server_error", code="stream_cut")


def read(event: bytes) -> Any:
    return msgspec.json.decode(event_data(event))


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
    assert read(make_cut(Endpoint.RESPONSES, first, None))["response"]["status"] == "incomplete"


def test_cut_ends_a_response_as_incomplete_and_without_done() -> None:
    first = b'event: response.created\ndata: {"type":"response.created","response":{"id":"r","status":"in_progress"}}\n\n'
    made = make_cut(Endpoint.RESPONSES, first, Usage(3, 4), 7)
    assert made.startswith(b"event: response.incomplete\n")
    assert b"[DONE]" not in made
    event = read(made)
    assert (event["type"], event["sequence_number"]) == ("response.incomplete", 7)
    response = event["response"]
    assert (response["id"], response["status"]) == ("r", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"]["output_tokens"] == 4


def test_error_is_one_for_clients_of_every_api() -> None:
    assert read(make_error(Endpoint.CHAT, BODY))["error"]["emc_code"] == "EMC-1714"
    event = make_error(Endpoint.RESPONSES, BODY, 5)
    assert event.startswith(b"event: error\n")
    told = read(event)
    assert (told["type"], told["code"], told["sequence_number"]) == ("error", "stream_cut", 5)
    assert told["error"]["message"] == "cut"
