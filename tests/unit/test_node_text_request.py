"""Requests for text: what is read, what is refused and how, in OpenAI's words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from emcd.inference.token_choice import Sampling
from emcd_node.served_model import Refused
from emcd_node.text_request import COMPLETION_TOKENS, TextWish, read_chat, read_completion

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> TextWish | Refused:
    return read_chat(msgspec.json.encode({"model": "m", "messages": MESSAGES, **fields}))


def completion(**fields: Any) -> TextWish | Refused:
    return read_completion(msgspec.json.encode({"model": "m", "prompt": "hi", **fields}))


def refusal(outcome: TextWish | Refused) -> tuple[str, str | None, str | None]:
    assert isinstance(outcome, Refused)
    assert outcome.status == 400
    assert outcome.kind == "invalid_request_error"
    return outcome.emc_code, outcome.code, outcome.param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'{"model":"\xff"}', b"[" * 9000, b'{"a":' * 9000])
def test_body_that_is_no_object_is_refused(body: bytes) -> None:
    for read in (read_chat, read_completion):
        assert refusal(read(body)) == ("EMC-2005", None, None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 5}, "stream_options"),
        ({"return_token_ids": 1}, "return_token_ids"),
    ],
)
def test_chat_field_at_fault_is_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(chat(**fields)) == ("EMC-2005", None, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -2},
        {"logit_bias": {"1": 1}},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"functions": [{}]},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["text", "audio"]},
        {"audio": {}},
        {"prediction": {"type": "content"}},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"n": True},
    ],
)
def test_chat_field_that_is_not_served_is_named(fields: dict[str, Any]) -> None:
    assert refusal(chat(**fields)) == ("EMC-2025", "unsupported_parameter", next(iter(fields)))


@pytest.mark.parametrize("name", ["guided_json", "chat_template", "prompt", "x" * 5000])
def test_chat_field_that_nobody_knows_is_named(name: str) -> None:
    assert refusal(chat(**{name: 1})) == ("EMC-2025", "unknown_parameter", name[:80])


def test_message_of_a_tool_is_not_served() -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}]
    assert isinstance(chat(messages=messages), Refused)


def test_chat_that_says_nothing_more_has_openais_defaults() -> None:
    assert chat() == TextWish(
        messages=MESSAGES,
        prompt="",
        max_tokens=None,
        sampling=Sampling(1.0, 1.0, 0, 0, 0),
        has_seed=False,
        stop_texts=(),
        stream=False,
        wants_usage=False,
        logprobs=False,
        token_ids=False,
    )


def test_chat_values_that_change_nothing_are_taken() -> None:
    neutral = {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "guided_json": None,
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "top_k": -1,
    }
    assert isinstance(chat(**neutral), TextWish)


def test_chat_reads_everything_that_is_served() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = chat(
        messages=[
            {"role": "developer", "content": "short", "name": "boss"},
            {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None},
            {"role": "user", "content": parts},
        ],
        max_completion_tokens=7,
        temperature=0,
        top_p=1,
        top_k=40,
        seed=-(2**63),
        stop=["END", "\n"],
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        logprobs=True,
        top_logprobs=5,
        return_token_ids=True,
    )
    assert isinstance(found, TextWish)
    assert found.messages[0] == {"role": "developer", "content": "short", "name": "boss"}
    assert found.messages[2] == {"role": "user", "content": [{"text": "a"}, {"text": "b"}]}
    assert found.sampling == Sampling(0, 1, 40, -(2**63), 5)
    assert (found.max_tokens, found.stop_texts, found.has_seed) == (7, ("END", "\n"), True)
    assert (found.stream, found.wants_usage, found.logprobs, found.token_ids) == (True, True, True, True)


@pytest.mark.parametrize("prompt", ["hi", ["hi"]])
def test_completion_reads_a_text(prompt: Any) -> None:
    found = completion(prompt=prompt, logprobs=0)
    assert isinstance(found, TextWish)
    assert (found.prompt, found.max_tokens, found.logprobs) == ("hi", COMPLETION_TOKENS, True)
    assert found.sampling.top_logprobs == 0


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]]])
def test_completion_reads_token_numbers(prompt: Any) -> None:
    found = completion(prompt=prompt)
    assert isinstance(found, TextWish)
    assert found.prompt == [1, 2]
    assert not found.logprobs


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [1.5], [1, "a"], [[1, "a"]], [True], {}, None, 5])
def test_completion_prompt_at_fault_is_named(prompt: Any) -> None:
    assert refusal(completion(prompt=prompt)) == ("EMC-2005", None, "prompt")


@pytest.mark.parametrize(
    "fields",
    [{"prompt": ["a", "b"]}, {"prompt": [[1], [2]]}, {"echo": True}, {"best_of": 2}, {"suffix": "x"}],
)
def test_completion_that_is_not_served_is_named(fields: dict[str, Any]) -> None:
    assert refusal(completion(**fields)) == ("EMC-2025", "unsupported_parameter", next(iter(fields)))


def test_completion_takes_no_fields_of_chat() -> None:
    assert refusal(completion(top_logprobs=3)) == ("EMC-2025", "unknown_parameter", "top_logprobs")
