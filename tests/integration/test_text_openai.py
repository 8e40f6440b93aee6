"""The unmodified `openai` client, a hub, a node, and a text model that is run in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from emcd.inference.chat_template import ChatTemplate, make_chat_prompt, make_text_prompt
from emcd.inference.decoder_session import open_decoder
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.token_choice import Sampling, choose_tokens
from emcd.inference.training.bpe import CHAT_TEMPLATE
from tests.support.decoder_model import ToyDecoder, toy_decoder
from tests.support.text_world import TEXT_MODEL, TextWorld, text_world

__all__ = ["toy_decoder"]

MESSAGES: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a fox"}]
SHORT: Any = {"model": TEXT_MODEL, "max_tokens": 16, "seed": 7, "temperature": 0.9}
EVIDENCE: Any = {"logprobs": True, "top_logprobs": 5, "extra_body": {"return_token_ids": True}}


@pytest.fixture
async def world(tmp_path: Path, toy_decoder: ToyDecoder) -> AsyncIterator[TextWorld]:
    async with text_world(tmp_path, toy_decoder) as made:
        yield made


def expected(
    toy: ToyDecoder, prompt: list[int], sampling: Sampling, most: int
) -> tuple[list[int], list[float]]:
    """What a validator would expect, one prefill a token: tokens and their log-probabilities."""
    session, ids, logprobs = open_decoder(toy.onnx), list(prompt), []
    (stop,) = TextTokenizer(toy.tokenizer).encode("<|im_end|>", specials=False)
    for number in range(most):
        (choice,) = choose_tokens(session.prefill(ids, first=len(ids) - 1), [(sampling, number)])
        ids.append(choice.token)
        logprobs.append(choice.logprob)
        if choice.token == stop:
            break
    return ids[len(prompt) :], logprobs


async def test_chat_whole_is_what_the_manifest_gives(world: TextWorld, toy_decoder: ToyDecoder) -> None:
    found = await world.use(lambda c: c.chat.completions.create(messages=MESSAGES, **SHORT, **EVIDENCE))
    tokenizer = TextTokenizer(toy_decoder.tokenizer)
    prompt = make_chat_prompt(ChatTemplate(CHAT_TEMPLATE), tokenizer, MESSAGES, None)
    tokens, logprobs = expected(toy_decoder, prompt, Sampling(0.9, seed=7), 16)
    (choice,) = found.choices
    assert found.prompt_token_ids == prompt
    assert choice.token_ids == tokens
    assert choice.message.content == tokenizer.decode(tokens)
    assert choice.finish_reason == ("length" if len(tokens) == 16 else "stop")
    assert [entry.logprob for entry in choice.logprobs.content] == pytest.approx(logprobs, abs=1e-4)
    assert [bytes(entry.bytes) for entry in choice.logprobs.content] == list(
        map(tokenizer.token_bytes, tokens)
    )
    assert {len(entry.top_logprobs) for entry in choice.logprobs.content} == {5}
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt), len(tokens))
    assert found.model == TEXT_MODEL


async def test_chat_streamed_says_what_the_whole_answer_says(world: TextWorld) -> None:
    def both(client: openai.OpenAI) -> tuple[Any, list[Any]]:
        asked = {"messages": MESSAGES, **SHORT, **EVIDENCE}
        create: Any = client.chat.completions.create
        options = {"include_usage": True}
        return create(**asked), list(create(**asked, stream=True, stream_options=options))

    whole, chunks = await world.use(both)
    *content, last = chunks
    choices = [chunk.choices[0] for chunk in content]
    assert content[0].prompt_token_ids == whole.prompt_token_ids
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content for choice in choices) == whole.choices[0].message.content
    assert [token for choice in choices for token in choice.token_ids] == whole.choices[0].token_ids
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.token for entry in entries] == [e.token for e in whole.choices[0].logprobs.content]
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


async def test_completions_take_text_and_tokens(world: TextWorld, toy_decoder: ToyDecoder) -> None:
    tokenizer = TextTokenizer(toy_decoder.tokenizer)
    prompt = make_text_prompt(tokenizer, "the quick", None)
    asked: Any = {**SHORT, "temperature": 0, "logprobs": 3, "extra_body": {"return_token_ids": True}}

    def three(client: openai.OpenAI) -> list[Any]:
        create = client.completions.create
        streamed = list(create(prompt=prompt, stream=True, **asked))
        return [create(prompt="the quick", **asked), create(prompt=prompt, **asked), streamed]

    by_text, by_tokens, chunks = await world.use(three)
    tokens, logprobs = expected(toy_decoder, prompt, Sampling(0.0), 16)
    for found in (by_text, by_tokens):
        (choice,) = found.choices
        assert found.prompt_token_ids == prompt
        assert choice.token_ids == tokens
        assert choice.text == tokenizer.decode(tokens)
        assert choice.logprobs.token_logprobs == pytest.approx(logprobs, abs=1e-4)
        assert choice.logprobs.tokens == list(map(tokenizer.token_name, tokens))
        assert {len(row) for row in choice.logprobs.top_logprobs} == {3}
        assert choice.logprobs.text_offset[0] == 0
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == by_text.choices[0].text
    assert chunks[0].prompt_token_ids == prompt


async def test_chat_without_a_seed_is_another_each_time(world: TextWorld) -> None:
    asked: Any = {"model": TEXT_MODEL, "messages": MESSAGES, "max_tokens": 24}
    texts = await world.use(
        lambda c: [c.chat.completions.create(**asked).choices[0].message.content for _ in range(2)]
    )
    assert texts[0] != texts[1]


async def test_user_who_did_not_ask_sees_no_evidence(world: TextWorld) -> None:
    found = await world.use(lambda c: c.chat.completions.create(messages=MESSAGES, **SHORT))
    assert found.choices[0].logprobs is None
    assert not {"prompt_token_ids"} & set(found.to_dict())
    assert "token_ids" not in found.choices[0].to_dict()


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"presence_penalty": 0.5}, "unsupported_parameter", "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"max_tokens": 4000}, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "fox " * 200}]}, "context_length_exceeded", "messages"),
        ({"extra_body": {"min_tokens": 3}}, "unknown_parameter", "min_tokens"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
    ],
)
async def test_client_is_told_what_is_not_served(
    world: TextWorld, changed: dict[str, Any], code: str, param: str
) -> None:
    def ask(client: openai.OpenAI) -> Any:
        return client.chat.completions.create(**{"messages": MESSAGES, **SHORT, **changed})

    with pytest.raises(openai.BadRequestError) as told:
        await world.use(ask)
    assert (told.value.code, told.value.param) == (code, param)


async def test_many_clients_at_once_get_what_each_would_get_alone(world: TextWorld) -> None:
    def ask(number: int) -> Any:
        asked: Any = {**SHORT, "seed": number, "max_tokens": 20}
        return lambda c: c.chat.completions.create(messages=MESSAGES, **asked).choices[0].message.content

    alone = [await world.use(ask(number)) for number in range(6)]
    together: dict[int, str] = {}

    async def call(number: int) -> None:
        together[number] = await world.use(ask(number))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(call, number)
    assert [together[number] for number in range(6)] == alone
