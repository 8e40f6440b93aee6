"""Streams as hub and node read them: cut, told apart, counted, ended, each API in its own way."""

from __future__ import annotations

import pytest

from emcd.accounting.event_stream import (
    MAX_EVENT_BYTES,
    TEMPLATE_TOKENS,
    EventKind,
    EventSplitter,
    PassingStream,
    StreamMeter,
    count_cut,
    event_data,
    make_splitter,
)
from emcd.accounting.usage import Usage
from emcd.errors import RemoteProtocolError
from emcd.proto.openai_shape import Endpoint

DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
USED = b'"usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}'


def test_splitter_keeps_every_byte_and_each_kind_of_blank_line() -> None:
    data = b"data: 1\n\ndata: 2\r\n\r\n: note\r\rdata: rest"
    splitter = EventSplitter()
    assert splitter.feed(data) == [b"data: 1\n\n", b"data: 2\r\n\r\n", b": note\r\r"]
    assert not splitter.is_between
    assert splitter.take_rest() == b"data: rest"
    assert splitter.take_rest() == b""


def test_splitter_refuses_an_event_without_end() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"x" * MAX_EVENT_BYTES) == []
    with pytest.raises(RemoteProtocolError) as caught:
        splitter.feed(b"x")
    assert caught.value.code == "EMC-1726"


def test_splitter_of_images_takes_an_image() -> None:
    assert make_splitter(Endpoint.IMAGES).feed(b"x" * (2 * MAX_EVENT_BYTES)) == []


@pytest.mark.parametrize("event", [b"data: a\n\n", b"event: x\r\ndata:a\r\n\r\n", b"id: 1\rdata: a\r\r"])
def test_event_data_is_found_on_whatever_line_it_stands(event: bytes) -> None:
    assert event_data(event) == b"a"


def test_event_data_of_several_lines_is_joined() -> None:
    assert event_data(b"data: a\ndata: b\n\n") == b"a\nb"


@pytest.mark.parametrize(
    ("event", "kind", "usage", "produced"),
    [
        (b"data: [DONE]\n\n", EventKind.DONE, None, 0),
        (b"data:[DONE]\r\n\r\n", EventKind.DONE, None, 0),
        (b": ping\n\n", EventKind.OTHER, None, 0),
        (b"event: x\n\n", EventKind.OTHER, None, 0),
        (b'data: {"choices":[{"delta":{}}]}\n\n', EventKind.CONTENT, None, 1),
        (b'data: {"choices":[{"delta":{}}],"usage":null}\n\n', EventKind.CONTENT, None, 1),
        (b'data: {"error":null,"choices":[{}]}\n\n', EventKind.CONTENT, None, 1),
        (b'data: {"error":{"message":"out of memory"}}\n\n', EventKind.ERROR, None, 0),
        (
            b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
            EventKind.USAGE,
            Usage(1, 2),
            0,
        ),
        (
            b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
            EventKind.CONTENT,
            Usage(1, 2),
            1,
        ),
        (b'data: {"choices":[{"delta":{"content":"\\"usage\\": {}"}}]}\n\n', EventKind.CONTENT, None, 1),
        (b'data: {"usage":{"prompt_tokens":-1}}\n\n', EventKind.CONTENT, None, 0),
        (b'data: {"usage"\n\n', EventKind.CONTENT, None, 0),
    ],
)
def test_chat_events_are_told_apart(
    event: bytes, kind: EventKind, usage: Usage | None, produced: int
) -> None:
    meter = StreamMeter(Endpoint.CHAT)
    assert meter.read(event) is kind
    assert (meter.usage, meter.produced) == (usage, produced)
    assert meter.ended == (kind is EventKind.DONE)
    assert meter.failed == (kind is EventKind.ERROR)


@pytest.mark.parametrize(
    ("endpoint", "event", "kind", "usage"),
    [
        (Endpoint.RESPONSES, DELTA, EventKind.CONTENT, None),
        (
            Endpoint.RESPONSES,
            b'event: response.completed\ndata: {"type":"response.completed","response":{%s}}\n\n' % USED,
            EventKind.DONE,
            Usage(3, 4),
        ),
        (
            Endpoint.RESPONSES,
            b'data: {"type":"response.incomplete","response":{%s}}\n\n' % USED,
            EventKind.DONE,
            Usage(3, 4),
        ),
        (Endpoint.RESPONSES, b'data: {"type":"response.failed","response":{}}\n\n', EventKind.ERROR, None),
        (Endpoint.RESPONSES, b'data: {"type":"error","message":"x"}\n\n', EventKind.ERROR, None),
        (Endpoint.RESPONSES, b'data: {"type":"response.created","response":{}}\n\n', EventKind.CONTENT, None),
        (Endpoint.RESPONSES, b'data: {"type":7,"usage"\n\n', EventKind.CONTENT, None),
        (
            Endpoint.TRANSCRIPTIONS,
            b'data: {"type":"transcript.text.done","text":"a",%s}\n\n' % USED,
            EventKind.DONE,
            Usage(3, 4),
        ),
        (Endpoint.TRANSCRIPTIONS, b"data: [DONE]\n\n", EventKind.DONE, None),
        (
            Endpoint.SPEECH,
            b'data: {"type":"speech.audio.done",%s}\n\n' % USED,
            EventKind.DONE,
            Usage(3, 4),
        ),
        (
            Endpoint.IMAGES,
            b'data: {"type":"image_generation.completed","b64_json":"",%s}\n\n' % USED,
            EventKind.DONE,
            Usage(3, 4),
        ),
    ],
)
def test_typed_events_are_told_apart(
    endpoint: Endpoint, event: bytes, kind: EventKind, usage: Usage | None
) -> None:
    meter = StreamMeter(endpoint)
    assert meter.read(event) is kind
    assert meter.usage == usage


def test_done_mark_does_not_end_a_chat_from_within_a_text() -> None:
    meter = StreamMeter(Endpoint.CHAT)
    event = b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n'
    assert not meter.take_plain(event)
    assert meter.read(event) is EventKind.CONTENT
    assert not meter.ended


def test_typed_end_of_another_api_does_not_end_a_chat() -> None:
    meter = StreamMeter(Endpoint.CHAT)
    meter.read(b'data: {"type":"response.completed"}\n\n')
    assert not meter.ended


def test_cut_stream_is_counted_by_its_events_unless_it_states_a_usage() -> None:
    stream = PassingStream(Endpoint.RESPONSES)
    stream.feed(DELTA * 3)
    assert (stream.meter.usage, stream.meter.produced) == (None, 3)
    assert count_cut(Endpoint.RESPONSES, b"x " * 9, None, 3) == Usage(3, 3)
    stream.feed(b'data: {"type":"response.in_progress","response":{%s}}\n\n' % USED)
    assert count_cut(Endpoint.RESPONSES, b"x " * 9, stream.meter.usage, 4) == Usage(3, 4)


def test_cut_stream_that_brought_nothing_used_nothing() -> None:
    assert count_cut(Endpoint.CHAT, b"x " * 900, None, 0) == Usage(0, 0)
    assert count_cut(Endpoint.CHAT, b"x " * 900, Usage(9, 9), 0) == Usage(0, 0)


def test_cut_stream_states_no_more_input_than_its_request_can_hold() -> None:
    body = b"word " * 60
    most = len(body) + TEMPLATE_TOKENS
    assert count_cut(Endpoint.CHAT, body, Usage(most, 7), 1) == Usage(most, 7)
    assert count_cut(Endpoint.CHAT, body, Usage(most + 1, 7), 1) == Usage(50, 7)


def test_prompt_of_a_cut_stream_counts_no_pictures_and_is_looked_at_for_so_long_only() -> None:
    prose = b"word " * 60
    picture = b'"data:image/png;base64,' + b"iVBO+/9_" * 10_000 + b'=="'
    assert count_cut(Endpoint.CHAT, prose + picture, None, 1).input_tokens <= (len(prose) + 32) // 6
    assert count_cut(Endpoint.CHAT, prose + b"a" * 255, None, 1).input_tokens == (len(prose) + 255) // 6
    assert count_cut(Endpoint.CHAT, prose * 10_000, None, 1).input_tokens == (1 << 20) // 6


@pytest.mark.parametrize("endpoint", [endpoint for endpoint in Endpoint if endpoint.is_media])
def test_media_that_are_cut_count_no_input_of_their_own(endpoint: Endpoint) -> None:
    assert count_cut(endpoint, b"word " * 60, None, 2) == Usage(0, 2)


@pytest.mark.parametrize(
    ("endpoint", "type_"),
    [
        (Endpoint.IMAGES, "image_generation.partial_image"),
        (Endpoint.IMAGE_EDITS, "image_edit.partial_image"),
        (Endpoint.RESPONSES, "response.output_text.done"),
        (Endpoint.TRANSCRIPTIONS, "transcript.text.segment"),
    ],
)
def test_typed_event_that_is_passed_on_counts(endpoint: Endpoint, type_: str) -> None:
    stream = PassingStream(endpoint)
    stream.feed(b'data: {"type":"%s","b64_json":"AAAA"}\n\n' % type_.encode())
    assert stream.meter.produced == 1


def test_what_follows_the_end_counts_nothing() -> None:
    stream = PassingStream(Endpoint.CHAT)
    stream.feed(b'data: [DONE]\n\ndata: {"choices":[1]}\n\n')
    stream.feed(b'data: {"choices":[1]}\n\n')
    assert stream.meter.produced == 0


def test_last_event_without_its_blank_line_counts() -> None:
    stream = PassingStream(Endpoint.CHAT)
    stream.feed(b"data: [DONE]")
    assert not stream.meter.ended
    stream.end()
    assert stream.meter.ended
