"""Answers of engines in the one form: each engine's own, and what no honest one would send."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emcd.errors import RecoverableError
from emcd.inference.chat_template import ChatTemplate
from emcd.inference.manifest import TextManifest
from emcd.inference.text_tokenizer import SLICE_CHARS, TextTokenizer
from emcd.inference.training.bpe import CHAT_TEMPLATE
from emcd.proto.openai_shape import Endpoint
from emcd_node import engine_answer
from emcd_node.engine_answer import (
    MAX_EVENT_BYTES,
    EvidenceForm,
    FormedStream,
    has_one_prompt,
    put_whole_in_form,
)
from tests.support.decoder_model import ToyDecoder, toy_decoder

__all__ = ["toy_decoder"]
CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
PROMPT = [70, 71, 72]


@pytest.fixture(scope="module")
def words(toy_decoder: ToyDecoder) -> TextTokenizer:
    return TextTokenizer(toy_decoder.tokenizer)


@pytest.fixture(scope="module")
def form(words: TextTokenizer) -> EvidenceForm:
    manifest = TextManifest(
        name="m", files={"chat_template.jinja": ""}, context_tokens=128, vocab_tokens=320, bos_token=None,
        stop_tokens=(0, 2),
    )  # fmt: skip
    return EvidenceForm(manifest, words, ChatTemplate(CHAT_TEMPLATE))


def entry(words: TextTokenizer, token: int, logprob: float = -0.5, **more: Any) -> dict[str, Any]:
    data = words.token_bytes(token)
    return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": logprob, **more}


def formed(form: EvidenceForm, endpoint: Endpoint, answer: Any, prompt: list[int] | None = None) -> Any:
    return json.loads(put_whole_in_form(form, endpoint, prompt, json.dumps(answer).encode()))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"choices":3}', b'{"error":{}}', b"\xff", b"[" * 5000])
def test_put_whole_in_form_of_what_is_no_answer_passes_it_unchanged(form: EvidenceForm, body: bytes) -> None:
    assert put_whole_in_form(form, CHAT, PROMPT, body) == body


@pytest.mark.parametrize(
    "choice",
    [
        {"logprobs": None},
        {"logprobs": {}},
        {"logprobs": {"content": None}},
        {"logprobs": {"content": [3]}},
        {"logprobs": {"tokens": ["a"], "token_logprobs": []}},
        {"logprobs": 7, "token_ids": "x"},
        {},
    ],
)
def test_put_whole_in_form_without_logprobs_claims_no_token_ids(form: EvidenceForm, choice: Any) -> None:
    answer = {"choices": [{"index": 0, "text": "x", **choice}, 5, None], "usage": USAGE}
    assert formed(form, COMPLETIONS, answer) == answer


def test_llama_cpp_completion_gets_the_form_of_completions(form: EvidenceForm, words: TextTokenizer) -> None:
    """Log-probabilities as chats have them, with token numbers in them; the end token has no text."""
    first = entry(words, 80, id=80, top_logprobs=[entry(words, 80, id=80), entry(words, 130, -2.5, id=130)])
    end = {"id": 2, "token": "", "bytes": [], "logprob": -0.1, "top_logprobs": []}
    answer = {"choices": [{"text": "x", "logprobs": {"content": [first, end]}}], "usage": USAGE}
    choice = formed(form, COMPLETIONS, answer, PROMPT)["choices"][0]
    assert choice["token_ids"] == [80, 2]
    name = words.token_name(80)
    assert choice["logprobs"] == {
        "tokens": [name, "<|im_end|>"],
        "token_logprobs": [-0.5, -0.1],
        "top_logprobs": [{name: -0.5, words.token_name(130): -2.5}, {}],
        "text_offset": [0, 1],
    }


def test_chat_keeps_its_form_and_loses_numbers_within_it(form: EvidenceForm, words: TextTokenizer) -> None:
    told = entry(words, 80, id=80, top_logprobs=[entry(words, 130, -2.5, id=130)])
    answer = {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [told]}}], "usage": USAGE}
    got = formed(form, CHAT, answer, PROMPT)
    assert got["choices"][0]["token_ids"] == [80]
    assert got["choices"][0]["logprobs"] == {
        "content": [entry(words, 80, top_logprobs=[entry(words, 130, -2.5)])],
        "refusal": None,
    }
    assert got["prompt_token_ids"] == PROMPT


def test_tokens_told_by_their_text_alone_are_found(form: EvidenceForm, words: TextTokenizer) -> None:
    name = words.token_name(90)
    logprobs = {
        "tokens": [name],
        "token_logprobs": [-1.0],
        "top_logprobs": [{name: -1.0}],
        "text_offset": [0],
    }
    choice = formed(form, COMPLETIONS, {"choices": [{"text": name, "logprobs": logprobs}]})["choices"][0]
    assert choice["token_ids"] == [90]
    assert choice["logprobs"] == logprobs


def test_token_that_is_not_known_leaves_token_ids_out(form: EvidenceForm, words: TextTokenizer) -> None:
    content = [{"token": "no such token", "logprob": -1.0, "top_logprobs": []}, entry(words, 80)]
    answer = {"choices": [{"message": {}, "logprobs": {"content": content}}]}
    choice = formed(form, CHAT, answer)["choices"][0]
    assert "token_ids" not in choice
    assert choice["logprobs"]["content"][0]["token"] == "no such token"


@pytest.mark.parametrize("data", [["x"], [300], [-1], [None]])
def test_token_whose_bytes_are_none_is_told_by_its_text(form: EvidenceForm, data: list[Any]) -> None:
    content = [{"token": "no such token", "bytes": data, "logprob": -1.0}]
    answer = {"choices": [{"text": "x", "logprobs": {"content": content}}]}
    assert formed(form, COMPLETIONS, answer)["choices"][0]["logprobs"]["tokens"] == ["no such token"]


def test_vllm_completion_has_its_prompt_at_the_top(form: EvidenceForm, words: TextTokenizer) -> None:
    name = words.token_name(90)
    logprobs = {
        "tokens": [name],
        "token_logprobs": [-1.0],
        "top_logprobs": [{name: -1.0}],
        "text_offset": [0],
    }
    choice = {"text": name, "logprobs": logprobs, "token_ids": [91], "prompt_token_ids": [5, 6, 7]}
    got = formed(form, COMPLETIONS, {"choices": [choice], "usage": USAGE}, PROMPT)
    assert got["prompt_token_ids"] == [5, 6, 7]
    assert got["choices"][0]["token_ids"] == [91], "the engine's word counts, not what the text suggests"


def test_prompt_that_the_engine_counted_otherwise_is_not_claimed(form: EvidenceForm) -> None:
    answer = {"choices": [{"text": "x"}], "usage": USAGE | {"prompt_tokens": 4}}
    assert "prompt_token_ids" not in formed(form, COMPLETIONS, answer, PROMPT)
    assert formed(form, COMPLETIONS, answer, [1, 2, 3, 4])["prompt_token_ids"] == [1, 2, 3, 4]


def test_make_prompt_is_what_the_manifest_makes_of_it(form: EvidenceForm, words: TextTokenizer) -> None:
    chat = json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}).encode()
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert form.make_prompt(CHAT, chat) == words.encode(text, specials=False)
    assert form.make_prompt(COMPLETIONS, b'{"prompt":"hi"}') == words.encode("hi", specials=True)
    assert form.make_prompt(COMPLETIONS, b'{"prompt":[5,6]}') == [5, 6]


@pytest.mark.parametrize(
    "messages", [["x"], [None], [[1]], [5], 5, None, "ab", [{"role": "user", "content": [5]}], [{}]]
)
def test_make_prompt_of_messages_that_are_none_is_none(form: EvidenceForm, messages: Any) -> None:
    assert form.make_prompt(CHAT, json.dumps({"messages": messages}).encode()) is None


def test_make_prompt_beyond_its_bounds_is_none_and_not_read(
    form: EvidenceForm, words: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    encode = words._encode

    def note(text: str, *, specials: bool) -> list[int]:
        read.append(len(text))
        return encode(text, specials=specials)

    monkeypatch.setattr(words, "_encode", note)
    text = "the fox " * (SLICE_CHARS // 2)
    body = json.dumps({"prompt": text, "messages": [{"role": "user", "content": text}]}).encode()
    assert form.make_prompt(COMPLETIONS, body) is None
    assert form.make_prompt(CHAT, body) is None
    assert read == [SLICE_CHARS] * 2, "one slice of each is enough"
    monkeypatch.setattr(engine_answer, "MAX_PROMPT_BYTES", 20)
    assert form.make_prompt(COMPLETIONS, b'{"prompt":[5,6,7,8]}') == [5, 6, 7, 8]
    assert form.make_prompt(COMPLETIONS, b'{"prompt":[5,6,7,8,9]}') is None


@pytest.mark.parametrize(
    ("prompt", "is_one"),
    [("a", True), (["a"], True), ([1, 2], True), ([[1, 2]], True), (["a", "b"], False), ([[1], [2]], False)],
)
def test_request_has_one_prompt_or_several(prompt: Any, is_one: bool) -> None:
    body = json.dumps({"prompt": prompt, "messages": []}).encode()
    assert has_one_prompt(COMPLETIONS, body) is is_one
    assert has_one_prompt(CHAT, body)
    assert not has_one_prompt(COMPLETIONS, b"[]")


def test_several_prompts_stay_with_their_choices(form: EvidenceForm) -> None:
    choices = [{"index": n, "text": "x", "prompt_token_ids": list(range(n + 1))} for n in range(2)]
    answer = {"choices": choices, "usage": USAGE}
    body = json.dumps(answer).encode()
    assert json.loads(put_whole_in_form(form, COMPLETIONS, None, body, one_prompt=False)) == answer
    stream = FormedStream(form, COMPLETIONS, None, one_prompt=False)
    for choice in choices:
        event = stream.feed(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        assert json.loads(event.removeprefix(b"data: ")) == {"choices": [choice]}


def test_text_offset_is_of_its_own_choice(form: EvidenceForm, words: TextTokenizer) -> None:
    def choice(index: int, token: int) -> dict[str, Any]:
        return {"index": index, "text": "x", "logprobs": {"content": [entry(words, token, id=token)]}}

    def offsets(answer: Any) -> list[Any]:
        return [got["logprobs"]["text_offset"] for got in answer["choices"]]

    whole = {"choices": [choice(0, 80), choice(1, 81)]}
    assert offsets(formed(form, COMPLETIONS, whole)) == [[0], [0]]
    stream, told = FormedStream(form, COMPLETIONS, None), []
    for index in (1, 0, 0, 1, 0):
        event = stream.feed(b"data: " + json.dumps({"choices": [choice(index, 80)]}).encode() + b"\n\n")
        told.append((index, *offsets(json.loads(event.removeprefix(b"data: ")))))
    assert told == [(1, [0]), (0, [0]), (0, [1]), (1, [1]), (0, [2])]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"prompt":[[1],[2]]}', b'{"prompt":["a","b"]}', b'{"prompt":7}', b"\xff"]
)
def test_make_prompt_of_what_is_no_single_prompt_is_none(form: EvidenceForm, body: bytes) -> None:
    assert form.make_prompt(COMPLETIONS, body) is None
    assert form.make_prompt(CHAT, body) is None


def stream_of(words: TextTokenizer) -> bytes:
    chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": None}}]},
        *(
            {"choices": [{"text": "ab", "logprobs": {"content": [entry(words, token, id=token)]}}]}
            for token in (80, 81)
        ),
        {"choices": [], "usage": USAGE},
    ]
    events = [b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks]
    return b": comment\n\n" + b"".join(events) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100000])
def test_stream_cut_anywhere_gives_the_same_events(
    form: EvidenceForm, words: TextTokenizer, size: int
) -> None:
    data, formed = stream_of(words), FormedStream(form, COMPLETIONS, PROMPT)
    got = b"".join(formed.feed(data[start : start + size]) for start in range(0, len(data), size))
    got += formed.finish()
    events = got.split(b"\n\n")
    assert events[0] == b": comment"
    assert events[-2:] == [b"data: [DONE]", b""]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[1:-2]]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [PROMPT, None, None, None]
    assert [chunk["choices"][0].get("token_ids") for chunk in chunks[:3]] == [None, [80], [81]]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks[1:3]] == [[0], [1]]
    assert chunks[-1] == {"choices": [], "usage": USAGE}


def test_stream_passes_what_is_no_event_of_tokens(form: EvidenceForm) -> None:
    data = b"event: x\ndata: {}\n\ndata: {\n\ndata: 7\n\ndata: {\"error\":{}}\n\nrest"  # fmt: skip
    stream = FormedStream(form, CHAT, None)
    assert stream.feed(data) + stream.finish() == data


def test_stream_of_an_endless_event_is_given_up(form: EvidenceForm) -> None:
    stream = FormedStream(form, CHAT, None)
    with pytest.raises(RecoverableError) as caught:
        stream.feed(b"data: " + b"x" * MAX_EVENT_BYTES)
    assert caught.value.code == "EMC-2035"
