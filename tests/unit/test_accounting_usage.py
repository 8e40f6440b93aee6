from __future__ import annotations

import pytest

from emcd.accounting.usage import MAX_EVENT_BYTES, StreamUsage, Usage, read_usage

CHAT = b'{"id":"x","usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46}}'


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (CHAT, Usage(12, 34)),
        (b'{"usage":{"prompt_tokens":5,"total_tokens":5}}', Usage(5, 0)),
        (b'{"usage":{"prompt_tokens":5,"completion_tokens":null}}', Usage(5, 0)),
        (b'{"usage":null}', None),
        (b'{"choices":[]}', None),
        (b'{"usage":{"prompt_tokens":-1}}', None),
        (b'{"usage":{"prompt_tokens":1.5}}', None),
        (b'{"usage":{"prompt_tokens":"1"}}', None),
        (b'{"usage":{"prompt_tokens":true}}', None),
        (b'{"usage":{"prompt_tokens":99999999999999999999999}}', None),
        (b'{"usage":{"prompt_tokens":18446744073709551615}}', None),
        (b'{"usage":{}}', None),
        (b"[1]", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b'{"usage":' + b"[" * 100_000, None),
    ],
)
def test_read_usage_of_an_answer(body: bytes, usage: Usage | None) -> None:
    assert read_usage(body) == usage


def stream() -> bytes:
    return (
        b": comment\r\n"
        b'data: {"choices":[{"delta":{"content":"the \\"usage\\" of"}}],"usage":null}\r\n\r\n'
        b'data: {"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
        b'event: x\ndata:{"usage":{"prompt_tokens":7,"completion_tokens":9}}\n\n'
        b"data: [DONE]\n\n"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_stream_usage_cut_anywhere_is_the_last_one(size: int) -> None:
    reader, data = StreamUsage(), stream()
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])

    assert reader.usage == Usage(7, 9)


def test_stream_usage_endless_line_is_passed_over_in_bounded_memory() -> None:
    reader = StreamUsage()
    for _ in range(20):
        reader.feed(b"x" * (MAX_EVENT_BYTES // 4))
        assert len(reader._rest) <= MAX_EVENT_BYTES
    reader.feed(b'"usage"\ndata: ' + CHAT + b"\n")

    assert reader.usage == Usage(12, 34)


def test_stream_usage_without_usage_is_none() -> None:
    reader = StreamUsage()
    reader.feed(b'data: {"choices":[]}\n\ndata: [DONE]\n\n')

    assert reader.usage is None
