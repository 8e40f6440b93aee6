"""The unmodified `openai` client against the hub, over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
import trio

from tests.support.hub_world import (
    MODEL,
    HubWorld,
    StubNode,
    answer_embedding,
    answer_stream,
    answer_with,
    chat_events,
    node_key,
    running_world,
)

MESSAGES: Any = [{"role": "user", "content": "count"}]
EVENTS = chat_events(["one", " two"])
COMPLETION = msgspec.json.encode(
    {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "one two"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
)
TEXT = msgspec.json.encode(
    {
        "id": "t1",
        "object": "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "text": "two", "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
)


async def engine(node: StubNode, call: Any, meta: Any) -> None:
    """Answers as its path wants."""
    if meta.path == "/v1/embeddings":
        await answer_embedding(node, call, meta)
    elif meta.stream:
        await answer_stream(EVENTS, (7, 2))(node, call, meta)
    elif meta.path == "/v1/chat/completions":
        await answer_with(200, COMPLETION, (7, 2))(node, call, meta)
    else:
        await answer_with(200, TEXT, (1, 1))(node, call, meta)


async def use(world: HubWorld, work: Callable[[openai.OpenAI], Any], api_key: str | None = None) -> Any:
    """Run work with a client in a thread, as a user's program would."""

    def run() -> Any:
        key = world.api_key if api_key is None else api_key
        with openai.OpenAI(base_url=world.url + "/v1", api_key=key, max_retries=0, timeout=10) as client:
            return work(client)

    return await trio.to_thread.run_sync(run)


async def test_client_does_everything_it_can_do(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=engine))
        models = await use(world, lambda c: [m.id for m in c.models.list()])
        assert models == [MODEL]
        assert (await use(world, lambda c: c.models.retrieve(MODEL))).id == MODEL
        vector = await use(
            world, lambda c: c.embeddings.create(model=MODEL, input="x", encoding_format="float")
        )
        assert vector.data[0].embedding == [0.25, -0.5, 1.0]
        chat = await use(world, lambda c: c.chat.completions.create(model=MODEL, messages=MESSAGES))
        assert chat.choices[0].message.content == "one two"
        text = await use(world, lambda c: c.completions.create(model=MODEL, prompt="one"))
        assert text.choices[0].text == "two"


async def test_client_streams(tmp_path: Path) -> None:
    def stream(client: openai.OpenAI) -> list[Any]:
        return list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))

    def stream_with_usage(client: openai.OpenAI) -> list[Any]:
        options: Any = {"include_usage": True}
        made = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options=options
        )
        return list(made)

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=engine))
        chunks = await use(world, stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "one two"
        assert all(chunk.usage is None for chunk in chunks)
        assert (await use(world, stream_with_usage))[-1].usage.completion_tokens == 2


async def test_client_passes_the_provider_choice(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=engine))
        chosen = await world.add_node(StubNode(node_key(1), answer=engine))

        def work(client: openai.OpenAI) -> str:
            raw = client.embeddings.with_raw_response.create(
                model=MODEL, input="x", extra_body={"provider": {"only": [chosen.key.address]}}
            )
            return raw.headers["x-emc-node"]

        for _ in range(3):
            assert await use(world, work) == chosen.key.address


async def test_client_raises_its_own_errors(tmp_path: Path) -> None:
    def embed(client: openai.OpenAI, **fields: Any) -> Any:
        return client.embeddings.create(**{"model": MODEL, "input": "x", **fields})

    async with running_world(tmp_path, granted_micro=1) as world:
        with pytest.raises(openai.InternalServerError) as no_node:
            await use(world, embed)
        assert no_node.value.status_code == 503
        await world.add_node(StubNode(node_key(0), answer=engine))
        with pytest.raises(openai.NotFoundError) as no_model:
            await use(world, lambda c: embed(c, model="nothing"))
        assert no_model.value.code == "model_not_found"
        with pytest.raises(openai.RateLimitError) as no_credit:
            await use(world, embed)
        assert no_credit.value.code == "insufficient_quota"
        with pytest.raises(openai.AuthenticationError):
            await use(world, embed, api_key="emc_sk_wrong")
        with pytest.raises(openai.BadRequestError) as bad:
            await use(world, lambda c: embed(c, input=[]))
        assert bad.value.param == "input"


async def test_client_sees_a_cut_stream_as_an_error(tmp_path: Path) -> None:
    async def cut(node: StubNode, call: Any, meta: Any) -> None:
        from emcd.proto.control import ResponseHead, encode

        await call.start(encode(ResponseHead(200, "text/event-stream")))
        await call.send(EVENTS[0])
        await call.fail("EMC-2010", "the engine died")

    def stream(client: openai.OpenAI) -> list[Any]:
        return list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=cut))
        with pytest.raises(openai.APIError, match="EMC-1714"):
            await use(world, stream)
