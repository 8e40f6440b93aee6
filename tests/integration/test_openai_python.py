"""The unmodified `openai` client for Python against hub, node and engine: every endpoint, every error."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from emcd.proto.records import CallStatus
from tests.support.openai_world import OpenAIWorld, openai_world
from tests.support.toy_engine import MODEL, PIXEL, SOUND

MESSAGES: Any = [{"role": "user", "content": "count"}]


def sound() -> tuple[str, bytes]:
    return "a b.mp3", SOUND


def image() -> io.BytesIO:
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(2000))
    file.name = "a.png"
    return file


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[OpenAIWorld]:
    async with openai_world(tmp_path) as made:
        yield made


async def test_client_lists_models(world: OpenAIWorld) -> None:
    assert await world.use(lambda c: [model.id for model in c.models.list()]) == [MODEL]


async def test_client_uses_text_endpoints(world: OpenAIWorld) -> None:
    chat = await world.use(lambda c: c.chat.completions.create(model=MODEL, messages=MESSAGES))
    assert (chat.choices[0].message.content, chat.usage.completion_tokens) == ("a b", 4)
    text = await world.use(lambda c: c.completions.create(model=MODEL, prompt="one"))
    assert text.choices[0].text == "a b"
    vector = await world.use(lambda c: c.embeddings.create(model=MODEL, input="x", encoding_format="float"))
    assert vector.data[0].embedding == [0.25, -0.5]
    made = await world.use(lambda c: c.responses.create(model=MODEL, input="count"))
    assert (made.output_text, made.usage.output_tokens) == ("a b", 4)
    for row in await world.rows():
        assert row.status is CallStatus.OK
        assert row.receipt is not None
        assert row.receipt.input_tokens == 11


async def test_client_streams_tool_calls_logprobs_and_what_it_does_not_know(world: OpenAIWorld) -> None:
    def read(client: openai.OpenAI) -> list[Any]:
        return list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))

    chunks = await world.use(read)
    assert chunks[1].choices[0].logprobs.content[0].logprob == -0.25
    assert chunks[1].choices[0].x_unknown == {"k": [1.0]}
    assert chunks[2].choices[0].delta.reasoning_content == "because"
    calls = [c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls]
    assert "".join(call[0].function.arguments for call in calls) == '{"usage": "[DONE]"}'
    assert (chunks[-1].choices[0].finish_reason, chunks[-1].usage) == ("tool_calls", None)
    (row,) = await world.rows()
    assert row.receipt is not None
    assert (row.receipt.input_tokens, row.receipt.output_tokens) == (11, 4)


async def test_client_streams_responses_to_their_end(world: OpenAIWorld) -> None:
    def read(client: openai.OpenAI) -> Any:
        with client.responses.stream(model=MODEL, input="count") as stream:
            text = [e.delta for e in stream if e.type == "response.output_text.delta"]
            return text, stream.get_final_response()

    text, final = await world.use(read)
    assert (text, final.status, final.usage.total_tokens) == (["a", " b"], "completed", 15)
    (row,) = await world.rows()
    assert row.receipt is not None
    assert (row.status, row.receipt.output_tokens) == (CallStatus.OK, 4)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_client_transcribes_and_translates(world: OpenAIWorld) -> None:
    heard = await world.use(lambda c: c.audio.transcriptions.create(model=MODEL, file=sound()))
    assert heard.text == "a b"
    text = await world.use(
        lambda c: c.audio.transcriptions.create(model=MODEL, file=sound(), response_format="text")
    )
    assert text == "a b\n"
    said = await world.use(lambda c: c.audio.translations.create(model=MODEL, file=sound(), prompt="x"))
    assert said.text == "a b"
    assert [seen.path for seen in world.engine.seen] == ["/audio/transcriptions"] * 2 + [
        "/audio/translations"
    ]
    for seen in world.engine.seen:
        assert SOUND in seen.body
        assert seen.content_type.startswith("multipart/form-data; boundary=")
    for row in await world.rows():
        assert row.receipt is not None
        assert (row.receipt.input_tokens, row.receipt.output_tokens) == (0, 0)
        assert row.delivery.credits_micro > 0  # by the call


async def test_client_streams_a_transcription(world: OpenAIWorld) -> None:
    def read(client: openai.OpenAI) -> list[Any]:
        return list(client.audio.transcriptions.create(model=MODEL, file=sound(), stream=True))

    delta, done = await world.use(read)
    assert (delta.delta, done.text) == ("a b", "a b")
    (row,) = await world.rows()
    assert row.receipt is not None
    assert (row.receipt.input_tokens, row.receipt.output_tokens) == (11, 4)


async def test_client_hears_speech_whole_and_in_pieces(world: OpenAIWorld) -> None:
    def make(client: openai.OpenAI) -> bytes:
        return client.audio.speech.create(model=MODEL, voice="alloy", input="count").content

    def stream(client: openai.OpenAI) -> tuple[str, bytes]:
        made = client.audio.speech.with_streaming_response
        with made.create(model=MODEL, voice="alloy", input="count") as answer:
            return answer.headers["content-type"], b"".join(answer.iter_bytes())

    assert await world.use(make) == SOUND
    assert await world.use(stream) == ("audio/mpeg", SOUND)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_client_makes_images(world: OpenAIWorld) -> None:
    made = await world.use(lambda c: c.images.generate(model=MODEL, prompt="a dot"))
    assert (made.data[0].b64_json, made.usage.output_tokens) == (PIXEL, 4)
    edited = await world.use(lambda c: c.images.edit(model=MODEL, prompt="a dot", image=[image(), image()]))
    assert edited.data[0].b64_json == PIXEL
    varied = await world.use(lambda c: c.images.create_variation(model=MODEL, image=image(), n=2))
    assert varied.data[0].b64_json == PIXEL
    events = await world.use(
        lambda c: list(c.images.generate(model=MODEL, prompt="a dot", stream=True, partial_images=1))
    )
    assert [e.type for e in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert [row.receipt.output_tokens for row in await world.rows() if row.receipt] == [4] * 4


async def test_client_asks_again_after_busy_and_not_after_what_stays(world: OpenAIWorld) -> None:
    """503 and 429 with Retry-After are tried again, an empty account is not."""
    world.engine.broken["/embeddings"] = (503, "application/json", [b"{}"])
    seen: list[int] = []

    def count(client: openai.OpenAI) -> Any:
        client._client.event_hooks["response"].append(lambda r: seen.append(r.status_code))
        return client.embeddings.create(model=MODEL, input="x")

    with pytest.raises(openai.InternalServerError):
        await world.use(count, max_retries=1)
    assert seen == [502, 502]
    seen.clear()
    poor = await world.hub.plane.office.create_account("poor")
    key = await world.hub.plane.office.keys.create_key(poor.account_id, "")
    with pytest.raises(openai.RateLimitError) as quota:
        await world.use(count, max_retries=2, api_key=key.secret)
    assert quota.value.code == "insufficient_quota"
    assert seen == [429]


async def test_client_raises_its_own_errors(world: OpenAIWorld) -> None:
    def embed(client: openai.OpenAI, **fields: Any) -> Any:
        return client.embeddings.create(**{"model": MODEL, "input": "x", **fields})

    with pytest.raises(openai.AuthenticationError):
        await world.use(embed, api_key="emc_sk_wrong")
    with pytest.raises(openai.NotFoundError) as no_model:
        await world.use(lambda c: embed(c, model="nothing"))
    assert (no_model.value.code, no_model.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        await world.use(lambda c: c.responses.create(model=MODEL, input="x", previous_response_id="resp_0"))
    assert bad.value.param == "previous_response_id"
    with pytest.raises(openai.APIStatusError) as large:
        await world.use(lambda c: embed(c, input="x" * (5 << 20)))
    assert large.value.status_code == 413


async def test_client_sees_an_engine_that_fails_in_a_stream(world: OpenAIWorld) -> None:
    failing = b'data: {"error":{"message":"out of memory","type":"server_error","code":500}}\n\n'
    world.engine.broken["/chat/completions"] = (200, "text/event-stream", [failing, b"data: [DONE]\n\n"])

    def read(client: openai.OpenAI) -> list[Any]:
        return list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))

    with pytest.raises(openai.APIError, match="out of memory"):
        await world.use(read)
    await world.hub.until(lambda: world.hub.plane.gateway.active == 0)
    (row,) = await world.rows()
    assert row.status in (CallStatus.NODE_ERROR, CallStatus.CANCELLED)  # the client leaves at the error
    assert row.delivery.credits_micro == 0
