"""Hostile answers, requests and evidence: a verdict or an outcome comes of everything, never an exception."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emcd.errors import RemoteProtocolError
from emcd.proto.messages import Verdict
from emcd_validator.evidence_file import read_whole
from emcd_validator.judge import MAX_ANSWER_BYTES, Judgement
from emcd_validator.judge_answer import read_text_answer
from emcd_validator.judge_embedding import read_answer
from emcd_validator.judge_request import read_embedding_ask, read_text_ask
from emcd_validator.model import JudgedModel
from emcd_validator.reference_text import TextReference
from emcd_validator.verdict_run import judge_writing
from tests.support.json_junk import list_places, spoil
from tests.support.text_writer import CHAT, COMPLETIONS, Writer, make_request, make_text_model

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from([-1, 0, 2**31, 10**18, "\ufffd", "token_id:3", "token_id:99999999999", "bytes:\\xff"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


class Case:
    """One honest exchange to be spoilt."""

    def __init__(self, model: JudgedModel, path: str) -> None:
        self.model, self.path = model, path
        self.reference = TextReference(model, 1)
        self.request = make_request(path, max_tokens=6)
        self.answer: dict[str, Any] = msgspec.json.decode(Writer(model).answer(path, self.request))

    def judge(self, request: bytes, answer: bytes) -> Judgement:
        return judge_writing(self.reference, self.model, self.path, request, answer)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> JudgedModel:
    return make_text_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=[CHAT, COMPLETIONS])
def case(request: pytest.FixtureRequest, model: JudgedModel) -> Case:
    return Case(model, request.param)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_judge_answer_with_junk_in_it_gets_a_verdict(case: Case, data: st.DataObject) -> None:
    answer = case.answer
    for _ in range(data.draw(st.integers(1, 3))):
        answer = spoil(answer, data.draw(st.sampled_from(list_places(answer))), data.draw(JUNK))
    judged = case.judge(case.request, msgspec.json.encode(answer))
    assert judged.verdict in Verdict
    assert 0 <= judged.statistic_e12 < 2**64
    assert len(judged.reason) <= 300


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_judge_request_with_junk_in_it_gets_a_verdict(case: Case, data: st.DataObject) -> None:
    table = msgspec.json.decode(case.request)
    request = spoil(table, data.draw(st.sampled_from(list_places(table))), data.draw(JUNK))
    judged = case.judge(msgspec.json.encode(request), msgspec.json.encode(case.answer))
    assert judged.verdict in Verdict


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=200), is_stream=st.booleans())
def test_readers_take_any_bytes(body: bytes, is_stream: bool) -> None:
    for found in (
        read_text_answer(body, is_stream=is_stream),
        read_text_answer(b"data: " + body + b"\n\ndata: [DONE]\n\n", is_stream=True),
        read_answer(body, 1, 4),
        read_text_ask(CHAT, body),
        read_embedding_ask(body),
    ):
        assert isinstance(found, Judgement)
        assert found.verdict is Verdict.ERROR
    with pytest.raises(RemoteProtocolError, match="EMC-1851"):
        read_whole(body)


def fill(case: Case, count: int) -> dict[str, Any]:
    """The answer with one token very often."""
    answer = copy.deepcopy(case.answer)
    choice = answer["choices"][0]
    choice["token_ids"] = [70] * count
    if case.path == CHAT:
        choice["logprobs"]["content"] = [
            {"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": []}
        ] * count
    else:
        choice["logprobs"] = {"tokens": ["a"] * count, "token_logprobs": [-1] * count, "top_logprobs": None}
    return answer


def test_judge_a_million_tokens_are_refused_unread(case: Case) -> None:
    judged = case.judge(case.request, msgspec.json.encode(fill(case, 10**6)))
    assert judged.verdict is Verdict.ERROR


def test_judge_more_tokens_than_the_context_are_refused_without_a_run(case: Case) -> None:
    for count, reason in ((1000, "of 1000 tokens"), (158, "do not fit")):
        judged = case.judge(case.request, msgspec.json.encode(fill(case, count)))
        assert judged.verdict is Verdict.ERROR
        assert reason in judged.reason


@pytest.mark.parametrize(
    "body",
    [
        b" " * (MAX_ANSWER_BYTES + 1),
        b"[" * 1_000_000,
        b'{"choices":' + b"[" * 200_000,
        b'{"choices": [' + b'{"index": 0},' * 100_000 + b'{"index": 0}]}',
        b'{"usage": {"prompt_tokens": 1e999}}',
        b'{"choices": [{"logprobs": {"content": [{"token": "a", "logprob": NaN}]}}]}',
        b"data: {}\n\n" * 200_000,
        b"data: " + b"x" * (2 << 20),
    ],
    ids=lambda body: str(body[:30]),
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_readers_take_what_is_too_much(body: bytes, is_stream: bool) -> None:
    found = read_text_answer(body, is_stream=is_stream)
    assert isinstance(found, Judgement)
    assert found.verdict is Verdict.ERROR


def test_template_that_loops_is_the_requests_fault(tmp_path: Path, case: Case) -> None:
    messages = [{"role": "user", "content": "x" * 20_000}] * 20
    request = (
        make_request(case.path, messages=messages)
        if case.path == CHAT
        else make_request(case.path, prompt="x" * 400_000)
    )
    judged = case.judge(request, msgspec.json.encode(case.answer))
    assert judged.verdict is Verdict.ERROR
