"""Evidence between a real hub and a real node: what is taken out is all that asking for it had added."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.accounting.event_stream import EventSplitter, event_data
from emcd.net.http_client import request
from emcd.proto.hashing import keccak
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.proto.records import parse_call_id, request_hash
from tests.integration.test_hub_stream import last_delivery, read_stream
from tests.support.decoder_model import ToyDecoder, toy_decoder
from tests.support.hub_world import fetch_receipt, node_key, post
from tests.support.text_world import TEXT_MODEL, TextWorld, text_world

__all__ = ["toy_decoder"]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SHORT: dict[str, Any] = {"model": TEXT_MODEL, "max_tokens": 12, "seed": 7, "temperature": 0.9}
ASKED = {
    CHAT: {**SHORT, "messages": [{"role": "user", "content": "a fox"}]},
    COMPLETIONS: {**SHORT, "prompt": "the quick"},
}
ALL: dict[str, dict[str, Any]] = {
    CHAT: {"logprobs": True, "top_logprobs": 5, "return_token_ids": True},
    COMPLETIONS: {"logprobs": 5, "return_token_ids": True},
}
NEVER_ALIKE = ("id", "created")


@pytest.fixture
async def world(tmp_path: Path, toy_decoder: ToyDecoder) -> AsyncIterator[TextWorld]:
    async with text_world(tmp_path, toy_decoder, reconcile_share=1.0) as made:
        yield made


def without_evidence(answer: dict[str, Any]) -> dict[str, Any]:
    """By hand, what an answer is without what `ALL` asks for."""
    plain = {name: value for name, value in answer.items() if name not in (*NEVER_ALIKE, "prompt_token_ids")}
    plain["choices"] = [
        {
            name: value
            for name, value in choice.items()
            if name not in ("token_ids", "prompt_token_ids", "logprobs")
        }
        | {"logprobs": None}
        for choice in answer["choices"]
    ]
    return plain


def without_names(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in NEVER_ALIKE}


def read_events(body: bytes) -> list[Any]:
    return [msgspec.json.decode(event_data(e)) for e in EventSplitter().feed(body) if b"[DONE]" not in e]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_plain_client_gets_the_very_answer_without_what_it_did_not_ask_for(
    world: TextWorld, path: str
) -> None:
    full = (await post(world.hub, ASKED[path] | ALL[path], path)).json()
    plain = (await post(world.hub, ASKED[path], path)).json()
    assert without_names(plain) == without_evidence(full)
    assert full["choices"][0]["logprobs"]
    assert full["usage"] == plain["usage"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_plain_client_gets_the_very_stream_without_what_it_did_not_ask_for(
    world: TextWorld, path: str
) -> None:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    *_, full = await read_stream(world.hub, ASKED[path] | ALL[path] | streamed, path)
    *_, plain = await read_stream(world.hub, ASKED[path] | streamed, path)
    assert (await last_delivery(world.hub)).body_hash == keccak(plain)

    def join(body: bytes) -> str:
        choices = [c for event in read_events(body) for c in event["choices"]]
        return "".join(c["text"] if path == COMPLETIONS else c["delta"].get("content", "") for c in choices)

    assert join(plain) == join(full)
    for event in read_events(plain):
        assert without_names(event) == without_evidence(event)
    assert read_events(plain)[-1]["usage"] == read_events(full)[-1]["usage"]
    assert len(full) > 1.5 * len(plain)


@pytest.mark.parametrize("most", [0, 2])
async def test_client_of_few_alternatives_gets_the_likeliest_of_those_the_hub_asked_for(
    world: TextWorld, most: int
) -> None:
    full = (await post(world.hub, ASKED[CHAT] | ALL[CHAT], CHAT)).json()["choices"][0]["logprobs"]["content"]
    some = await post(world.hub, ASKED[CHAT] | {"logprobs": True, "top_logprobs": most}, CHAT)
    for entry, whole in zip(some.json()["choices"][0]["logprobs"]["content"], full, strict=True):
        assert entry == {**whole, "top_logprobs": whole["top_logprobs"][:most]}
    everything = await post(world.hub, ASKED[COMPLETIONS] | ALL[COMPLETIONS], COMPLETIONS)
    few = await post(world.hub, ASKED[COMPLETIONS] | {"logprobs": most}, COMPLETIONS)
    whole, kept = (answer.json()["choices"][0]["logprobs"] for answer in (everything, few))
    for row, rest, token in zip(kept["top_logprobs"], whole["top_logprobs"], whole["tokens"], strict=True):
        best = sorted(rest, key=rest.get, reverse=True)[:most]
        assert row == {name: value for name, value in rest.items() if name in {*best, token}}


async def test_what_a_client_sends_and_the_receipts_notes_give_the_forwarded_request(
    world: TextWorld,
) -> None:
    asked = {name: value for name, value in ASKED[CHAT].items() if name != "seed"}
    answer = await post(world.hub, asked, CHAT)
    call_id = answer.headers["x-emc-call-id"]
    receipt = await fetch_receipt(world.hub, call_id)
    headers = {"authorization": f"Bearer {world.hub.api_key}"}
    page = await request("GET", f"{world.hub.url}/v1/calls/{call_id}/receipt", headers=headers)
    seed = int(page.json()["notes"]["drawn_seed"])
    made = read_request(ENDPOINTS[CHAT], msgspec.json.encode(asked), evidence=True, seed=seed).body
    assert receipt.forward.request_hash == request_hash(CHAT, made)
    again = await post(world.hub, asked | {"seed": seed}, CHAT)
    assert again.json()["choices"] == answer.json()["choices"]


async def test_an_honest_nodes_tokens_are_what_the_hub_counts(world: TextWorld) -> None:
    """At the temperature 1 of a model that knows nothing: its tokens still spell its text, each prompt fits."""
    calls = set()
    for number in range(6):
        for path in (CHAT, COMPLETIONS):
            fields = {"seed": number, "temperature": number % 2, "stream": number > 3}
            _, headers, _ = await read_stream(world.hub, ASKED[path] | fields, path)
            calls.add(headers["x-emc-call-id"])
    rows: list[dict[str, Any]] = []
    while len(rows) < len(calls):
        page = await request("GET", f"{world.hub.url}/api/nodes/{node_key(0).address}/counts")
        rows = page.json()["counts"]
    assert {row["call_id"] for row in rows} == calls
    assert all(len(parse_call_id(row["call_id"])) == 16 for row in rows)
    for row in rows:
        assert row["why"] == "share"
        assert row["claimed"] == row["named"]
        assert row["claimed"][0] == row["counted"][0]
        assert row["ids_spell_the_text"] is True
        assert not row["input_over"]
