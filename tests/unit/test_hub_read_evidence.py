"""What the hub reads of an answer with evidence: bounds, what is named, shapes that harm nobody."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from emcd.errors import RemoteProtocolError
from emcd.proto.openai import read_request
from emcd.proto.openai_shape import Endpoint, Hidden
from emcd_hub.calls.answer import LARGE_BYTES, judge_aside
from emcd_hub.calls.evidence import MAX_NAMED, Bounds, read_piece
from emcd_hub.calls.held import Held
from emcd_hub.calls.passage import EvidencePassage

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS
FEW = Hidden(1, True)
ASKED = b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}'


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{},{}]}',
        b'{"choices":[%s{}]}' % (b"{}," * 100_000),
        b'{"choices":[{"token_ids":[%s1]}]}' % (b"1," * MAX_NAMED),
        b'{"choices":[{"logprobs":{"tokens":[],"top_logprobs":[%s{}]}}]}' % (b"{}," * 10_000),
        b'{"choices":[{"logprobs":{"tokens":[%s""]}}]}' % (b'"",' * 10_000),
    ],
)
def test_answer_of_more_parts_than_its_request_has_use_for_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1793"):
        read_piece(COMPLETIONS, data, FEW, Bounds(1, 9))


@pytest.mark.parametrize("choices", [b"{},{},{},{}", b"{},null", b"null", b"5"])
def test_one_choice_more_or_none_among_them_is_refused(choices: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1793"):
        read_piece(CHAT, b'{"choices":[%s]}' % choices, FEW, Bounds(3))


def test_as_many_choices_as_were_asked_for_are_taken() -> None:
    for number in (1, 3, 16, 4096):
        data = b'{"choices":[%s{}]}' % (b"{}," * (number - 1))
        assert msgspec.json.decode(read_piece(CHAT, data, FEW, Bounds(number)).data) == msgspec.json.decode(
            data
        )


def held_of(*chunks: bytes, inputs: int = 1) -> Held:
    held = Held(inputs)
    for chunk in chunks:
        held.add(read_piece(CHAT, b'{"prompt_token_ids":[1],"choices":[%s]}' % chunk, None))
    return held


@pytest.mark.parametrize(
    "bare", [b'{"delta":{"content":"b"}}', b'{"delta":{"tool_calls":[{}]}}', b'{"delta":{},"finish_reason":"stop"}']
)  # fmt: skip
def test_tokens_are_not_known_once_a_chunk_names_none(bare: bytes) -> None:
    named, first = (
        b'{"delta":{"content":"a"},"token_ids":[5]}',
        b'{"delta":{"role":"assistant","content":""}}',
    )
    assert held_of(first, named, named).bound((9, 9)) == (1, 2)
    for chunks in ((named, bare), (bare, named)):
        assert held_of(*chunks).tokens is None
        assert held_of(*chunks).bound((9, 9)) == (1, 9)


def test_of_several_prompts_the_ids_of_one_bound_nothing() -> None:
    assert held_of(b'{"token_ids":[5]}', inputs=2).bound((9, 9)) == (9, 1)


@pytest.mark.parametrize(
    ("endpoint", "logprobs"),
    [
        (CHAT, b"{}"), (CHAT, b'{"content":null}'), (CHAT, b'{"refusal":null}'), (COMPLETIONS, b"{}"),
        (COMPLETIONS, b'{"tokens":["a"],"token_logprobs":[-1],"top_logprobs":[]}'),
        (COMPLETIONS, b'{"tokens":["a"],"token_logprobs":[-1],"top_logprobs":[null]}'),
        (COMPLETIONS, b'{"tokens":["a"],"token_logprobs":[null],"top_logprobs":[{"b":null}]}'),
    ],
)  # fmt: skip
def test_logprobs_that_harm_nobody_pass(endpoint: Endpoint, logprobs: bytes) -> None:
    data = b'{"choices":[{"logprobs":%s}]}' % logprobs
    assert read_piece(endpoint, data, FEW).data == data


def test_logprobs_of_a_refusal_are_trimmed_too() -> None:
    top = b'{"token":"b","logprob":-2}'
    data = b'{"choices":[{"logprobs":{"refusal":[{"token":"a","logprob":-1,"top_logprobs":[%s]}]}}]}'
    assert read_piece(CHAT, data % (top + b"," + top), FEW).data == data % top
    with pytest.raises(RemoteProtocolError, match="EMC-1793"):
        read_piece(CHAT, b'{"choices":[{"logprobs":{"refusal":[{"x":"SECRET"}]}}]}', FEW)


def test_event_of_several_lines_stays_one_event() -> None:
    passage = EvidencePassage(read_request(CHAT, ASKED, evidence=True, seed=1))
    told = passage.take(b'data: {"choices":[{"delta":{\ndata: "content":"a"},"token_ids":[1]}]}\n\n')
    assert told == b'data: {"choices":[{"delta":{ "content":"a"}}]}\n\n'


def test_event_that_would_keep_the_loop_is_refused() -> None:
    passage = EvidencePassage(read_request(CHAT, ASKED, evidence=True, seed=1))
    with pytest.raises(RemoteProtocolError, match="EMC-1793"):
        passage.take(b'data: {"id":"%s","choices":[]}\n\n' % (b"x" * (1 << 20)))


@pytest.mark.parametrize("owes", [False, True])
def test_stream_of_text_without_evidence_is_a_fault_where_it_is_promised(owes: bool) -> None:
    passage = EvidencePassage(read_request(CHAT, ASKED, evidence=True, seed=1), owes)
    passage.take(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
    passage.take(b'data: {"choices":[{"delta":{"content":"a"},"token_ids":[]}]}\n\n')
    for bare in (b'{"delta":{"content":"a"}}', b'{"delta":{"content":"a"},"token_ids":[1]}'):
        event = b'data: {"choices":[%s]}\n\n' % bare
        if owes:
            with pytest.raises(RemoteProtocolError, match="EMC-1793"):
                passage.take(event)
        else:
            assert passage.take(event)


@pytest.mark.parametrize("size", [LARGE_BYTES - 1, LARGE_BYTES])
async def test_large_answer_is_judged_beside_the_loop(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    def judge(context: Any, answer: Any) -> int:
        return threading.get_ident()

    monkeypatch.setattr("emcd_hub.calls.answer.judge_answer", judge)
    found: Any = await judge_aside(cast("Any", None), cast("Any", SimpleNamespace(body=b"x" * size)))
    assert (found == threading.get_ident()) is (size < LARGE_BYTES)
