"""Taking evidence out of whatever a node sends: it is an answer without evidence, or it is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcd.accounting.event_stream import EventKind, EventSplitter, StreamMeter
from emcd.errors import RemoteProtocolError
from emcd.proto.openai import Endpoint, Hidden, read_request
from emcd_hub.calls.evidence import read_piece
from emcd_hub.calls.passage import EventPassage, EvidencePassage
from emcd_hub.calls.uncounted import read_uncounted
from tests.property.test_hub_forms import JSON

ENDPOINTS = st.sampled_from([Endpoint.CHAT, Endpoint.COMPLETIONS])
NAMES = st.sampled_from(
    ["logprobs", "token_ids", "prompt_token_ids", "text", "delta", "message", "index", "x"]
)
ANSWERS = st.fixed_dictionaries(
    {}, optional={"choices": st.lists(st.dictionaries(NAMES, JSON), max_size=3) | JSON, "usage": JSON, "error": JSON,
                  "prompt_token_ids": JSON, "prompt_logprobs": JSON, "id": JSON}
)  # fmt: skip
HIDDEN = st.builds(Hidden, st.none() | st.integers(0, 4), st.booleans())
BODY = b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}'
PLAIN = read_request(Endpoint.CHAT, BODY)
ASKING = read_request(Endpoint.CHAT, BODY, evidence=True, seed=1)
EVERYTHING = read_request(Endpoint.CHAT, ASKING.body, evidence=True)


@given(ENDPOINTS, ANSWERS, HIDDEN)
def test_any_answer_is_cut_or_refused_with_a_code(endpoint: Endpoint, answer: Any, hidden: Hidden) -> None:
    try:
        piece = read_piece(endpoint, msgspec.json.encode(answer), hidden)
    except RemoteProtocolError as exc:
        assert exc.code == "EMC-1793"
        return
    told = msgspec.json.decode(piece.data)
    assert told.keys() <= {"choices", "usage", "error", "id", "prompt_token_ids"}
    for choice in told.get("choices") or ():
        if hidden.most_logprobs is None:
            assert choice.get("logprobs") is None
        assert not hidden.token_ids or not {"token_ids", "prompt_token_ids"} & choice.keys()
    assert not hidden.token_ids or "prompt_token_ids" not in told


@given(ENDPOINTS, st.binary(max_size=200), st.none() | HIDDEN)
def test_garbage_is_refused_with_a_code(endpoint: Endpoint, data: bytes, hidden: Hidden | None) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1793"):
        read_piece(endpoint, data + b"\xff", hidden)
    assert read_uncounted(data) == 0


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
CHUNKS = st.lists(
    st.builds(
        lambda text, ids, usage: {
            "id": "x",
            "choices": [
                {"index": 0, "delta": {"content": text}, "logprobs": {"content": []}, "token_ids": ids}
            ],
            **({"usage": {"prompt_tokens": 1, "completion_tokens": 2}} if usage else {}),
        },
        WORDS,
        st.lists(st.integers(0, 99), max_size=3),
        st.booleans(),
    ),
    max_size=6,
)


@given(CHUNKS, st.lists(st.integers(1, 40), max_size=40), st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_a_stream_is_cut_alike_however_it_comes(chunks: list[Any], cuts: list[int], end: bytes) -> None:
    events = [b"data: " + msgspec.json.encode(chunk) + end for chunk in chunks] + [b"data: [DONE]" + end]
    stream = b"".join(events)

    def run(passage: EventPassage, sizes: list[int]) -> bytes:
        out, at = [], 0
        for size in [*sizes, len(stream)]:
            out.append(passage.take(stream[at : at + size]))
            at += size
        return b"".join(out) + passage.take_rest()

    whole, cut, each = EvidencePassage(ASKING), EvidencePassage(ASKING), EvidencePassage(ASKING)
    told = run(whole, [])
    assert run(cut, cuts) == told == run(each, [len(event) for event in events])
    bare = [b"data: " + msgspec.json.encode(_without(chunk)) + b"\n\n" for chunk in chunks] + [
        b"data: [DONE]\n\n"
    ]
    assert told == b"".join(bare)
    ids = [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]
    for passage in (whole, cut, each):
        assert passage.held is not None
        assert passage.held.ids == ids
        assert passage.produced == len(chunks)
        assert passage.is_ended
    plain, passed = EventPassage(PLAIN), EvidencePassage(EVERYTHING)
    assert run(plain, cuts) == run(passed, cuts) == stream
    assert passed.usage == plain.usage == whole.usage


def _without(chunk: dict[str, Any]) -> dict[str, Any]:
    (choice,) = chunk["choices"]
    told = {"index": 0, "delta": choice["delta"], "logprobs": None}
    return {"id": "x", "choices": [told], **{k: v for k, v in chunk.items() if k == "usage"}}


@given(st.binary(max_size=300))
def test_any_event_of_a_stream_is_told_apart_as_before(event: bytes) -> None:
    """What is read of an event does not depend on the way by which it is read."""
    data = b"data: " + event.replace(b"\n", b"").replace(b"\r", b"") + b"\n\n"
    plain, quick = StreamMeter(Endpoint.CHAT), StreamMeter(Endpoint.CHAT)
    (whole,) = EventSplitter().feed(data)
    kind = plain.read(whole)
    if quick.take_plain(data):
        assert kind in (EventKind.CONTENT, EventKind.OTHER)
        assert quick.produced == plain.produced
