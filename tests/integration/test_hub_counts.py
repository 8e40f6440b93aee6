"""Tokens that the hub counts again: what nodes claim, what their answers name, what a tokenizer makes of them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from emcd.inference.chat_template import ChatTemplate, make_chat_prompt
from emcd.inference.manifest import TextManifest
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.net.http_client import request
from emcd.proto.control import ResponseHead, encode
from emcd.proto.hashing import keccak
from emcd.proto.openai import read_request
from emcd.proto.openai_shape import Endpoint
from emcd.proto.records import CallStatus
from emcd_hub.calls.evidence import Piece
from emcd_hub.calls.held import Held
from emcd_hub.counts.count_row import DriftRow
from emcd_hub.counts.drift import ENOUGH_CALLS
from emcd_hub.counts.token_counter import NOTHING, CountJob, TokenCounter
from emcd_hub.nodes.status import ModelInfo
from emcd_hub.records.withheld import OVERCLAIM
from tests.support.evidence_node import chat_logprobs
from tests.support.hub_world import MODEL, HubWorld, StubNode, node_key, post, running_world, sse
from tests.support.text_folder import make_text_folder

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "the lazy fox"}],
    "max_tokens": 99,
}
TEXT = "jumps over the lazy dog"


class Writer:
    """What an honest node says, and how it lies."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer(folder / "tokenizer.json")
        source = (folder / "chat_template.jinja").read_text()
        self.template = ChatTemplate(source, eos=self.tokenizer.name_of(0))
        self.text = TEXT
        self.more_prompt = 0
        self.ids: list[int] | None = None
        self.hides_ids = False
        self.claims_more = 0

    async def answer(self, node: StubNode, call: Any, meta: Any) -> None:
        asked = msgspec.json.decode(call.body)
        prompt = make_chat_prompt(self.template, self.tokenizer, asked["messages"], None)
        prompt += [5] * self.more_prompt
        ids = [*self.tokenizer.encode(self.text, specials=False), 0] if self.ids is None else self.ids
        used = (len(prompt), len(ids) + self.claims_more)
        usage = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)}
        named: dict[str, Any] = {} if self.hides_ids else {"token_ids": ids}
        top = {} if self.hides_ids else {"prompt_token_ids": prompt}
        logprobs = chat_logprobs([self.text], 5)
        if asked.get("stream"):
            chunk = {
                "index": 0,
                "delta": {"content": self.text},
                "logprobs": logprobs,
                "finish_reason": "stop",
            }
            events = [sse({**top, "choices": [{**chunk, **named}]}), sse({"choices": [], "usage": usage})]
            body, kind = b"".join([*events, b"data: [DONE]\n\n"]), "text/event-stream"
        else:
            message = {"role": "assistant", "content": self.text}
            choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop", **named}
            body, kind = msgspec.json.encode({"choices": [choice], "usage": usage, **top}), "application/json"
        await call.start(encode(ResponseHead(200, kind)))
        await call.send(body)
        await node.finish(call, meta, keccak(body), 200, used)


@asynccontextmanager
async def counting_world(
    folder: Path, **settings: Any
) -> AsyncIterator[tuple[HubWorld, Writer, TextManifest]]:
    models = folder / "models"
    manifest = make_text_folder(models, MODEL, "vllm")
    writer = Writer(models / MODEL)
    async with running_world(folder, **{"reconcile_share": 1.0, **settings}) as world:
        await world.add_node(StubNode(node_key(0), manifests=(manifest,), answer=writer.answer))
        yield world, writer, manifest


async def fetch_counts(world: HubWorld, number: int) -> list[dict[str, Any]]:
    """The newest rows, once there are so many."""
    url = f"{world.url}/api/nodes/{node_key(0).address}/counts"
    found: list[dict[str, Any]] = []
    while len(found) < number:
        found = (await request("GET", url)).json()["counts"]
    return found


async def test_calls_of_several_prompts_and_those_that_the_credits_cut_are_not_counted(
    tmp_path: Path,
) -> None:
    async with counting_world(tmp_path) as (world, _, manifest):
        await post(world, ASKED, CHAT)
        info = ModelInfo(b"m" * 32, MODEL, frozenset(), None, checked=manifest)
        one = read_request(Endpoint.COMPLETIONS, b'{"model":"m","prompt":"a"}', evidence=True, seed=1)
        two = read_request(Endpoint.COMPLETIONS, b'{"model":"m","prompt":["a","b"]}', evidence=True, seed=1)
        offered: list[Any] = []
        desk: Any = world.plane.counts
        desk._send = SimpleNamespace(send_nowait=offered.append)

        def offer(asked: Any, status: CallStatus, fault: str) -> int:
            receipt = SimpleNamespace(input_tokens=5, output_tokens=9)
            held = Held()
            held.add(Piece(b"", 3, [1] * 1000, [b'"x"']))
            call = SimpleNamespace(
                held=held, info=info, forward=SimpleNamespace(call_id=b"c" * 16, node="0x")
            )
            ended = SimpleNamespace(
                call=call, receipt=receipt, status=status, row=SimpleNamespace(fault=fault),
                delivery=SimpleNamespace(finished_at_ms=1),
            )  # fmt: skip
            desk.offer(asked, ended)
            return len(offered)

        assert offer(one, CallStatus.CAPPED, "budget") == 0
        assert offer(two, CallStatus.OK, "") == 0
        assert offer(one, CallStatus.CAPPED, f"{OVERCLAIM}: (5, 9) claimed") == 1
        assert offer(one, CallStatus.OK, "") == 2
        assert offered[0].size > 40_000


@pytest.mark.parametrize("stream", [False, True])
async def test_honest_call_is_counted_as_it_was_claimed(tmp_path: Path, stream: bool) -> None:
    async with counting_world(tmp_path) as (world, writer, manifest):
        answer = await post(world, ASKED | {"stream": stream}, CHAT)
        (row,) = await fetch_counts(world, 1)
        assert row["call_id"] == answer.headers["x-emc-call-id"]
        assert row["claimed"] == row["named"] == row["counted"]
        assert row["claimed"][1] == len(writer.tokenizer.encode(TEXT, specials=False)) + 1
        assert (row["why"], row["pieces"], row["ids_spell_the_text"]) == ("share", 1, True)
        assert not row["input_over"]
        assert not row["output_over"]
        nodes = (await request("GET", f"{world.url}/api/nodes")).json()["nodes"]
        drift = nodes[0]["models"][0]["token_drift"]
        assert (drift["calls"], drift["compared"], drift["input_drift_bps"], drift["output_drift_bps"]) == (
            1,
            1,
            0,
            0,
        )


async def test_share_leaves_most_calls_alone_and_odd_ones_never(tmp_path: Path) -> None:
    async with counting_world(tmp_path, reconcile_share=0.0) as (world, writer, _):
        await post(world, ASKED, CHAT)
        writer.claims_more = 3
        odd = await post(world, ASKED, CHAT)
        (row,) = await fetch_counts(world, 1)
        assert (row["call_id"], row["why"]) == (odd.headers["x-emc-call-id"], "odd")
        assert row["claimed"][1] == row["named"][1] + 3
        assert row["output_over"]
        writer.claims_more, writer.hides_ids = 0, True
        await post(world, ASKED, CHAT)
        row = (await fetch_counts(world, 2))[0]
        assert (row["named"], row["why"], row["ids_spell_the_text"]) == ([None, None], "odd", None)
        assert row["counted"][0] == row["claimed"][0]


async def test_a_prompt_that_is_longer_than_the_request_is_seen(tmp_path: Path) -> None:
    """An injected prompt, or tokens that were never read: the manifest says what a request is made into."""
    async with counting_world(tmp_path) as (world, writer, _):
        writer.more_prompt = 7
        await post(world, ASKED, CHAT)
        (row,) = await fetch_counts(world, 1)
        assert row["claimed"][0] == row["named"][0] == row["counted"][0] + 7
        assert (row["input_over"], row["output_over"]) == (True, False)


async def test_ids_that_are_made_up_or_drawn_out_are_seen(tmp_path: Path) -> None:
    async with counting_world(tmp_path) as (world, writer, _):
        honest = writer.tokenizer.encode(TEXT, specials=False)
        writer.ids = [*honest, 7, 8]
        await post(world, ASKED, CHAT)
        writer.ids = [token for letter in TEXT for token in writer.tokenizer.encode(letter, specials=False)]
        await post(world, ASKED, CHAT)
        letters, made_up = await fetch_counts(world, 2)
        assert made_up["ids_spell_the_text"] is False
        assert letters["ids_spell_the_text"] is True
        assert letters["output_over"]
        assert letters["claimed"][1] == len(TEXT) > letters["counted"][1] == len(honest)


async def test_a_node_that_claims_too_much_as_a_habit_is_named_and_still_known_after_a_restart(
    tmp_path: Path,
) -> None:
    async with counting_world(tmp_path) as (world, writer, manifest):
        writer.more_prompt = 2
        for _ in range(ENOUGH_CALLS):
            await post(world, ASKED, CHAT)
        await fetch_counts(world, ENOUGH_CALLS)
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), manifests=(manifest,)))
        nodes = (await request("GET", f"{world.url}/api/nodes")).json()["nodes"]
        drift = nodes[0]["models"][0]["token_drift"]
        assert (drift["calls"], drift["inputs_over"], drift["systematic"]) == (
            ENOUGH_CALLS,
            ENOUGH_CALLS,
            True,
        )
        assert drift["claimed_input_tokens"] == drift["counted_input_tokens"] + 2 * ENOUGH_CALLS
        assert drift["input_drift_bps"] > 0 == drift["output_drift_bps"]


async def test_without_the_models_folder_only_odd_calls_are_kept(tmp_path: Path) -> None:
    async with counting_world(tmp_path, models_dir=tmp_path / "none") as (world, writer, _):
        await post(world, ASKED, CHAT)
        writer.claims_more = 1
        await post(world, ASKED, CHAT)
        (row,) = await fetch_counts(world, 1)
        assert row["counted"] == [None, None]
        found = world.plane.counts.find(node_key(0).address, bytes.fromhex(row["model_hash"][2:]))
        assert isinstance(found, DriftRow)
        assert (found.calls, found.compared, found.answers_over) == (1, 0, 1)


def make_job(folder_hash: bytes, body: bytes, texts: list[bytes] | None, ids: list[int] | None) -> CountJob:
    return CountJob(Endpoint.CHAT, folder_hash, body, ids, texts)


@pytest.mark.parametrize("changed", ["tokenizer.json", "chat_template.jinja"])
def test_counter_opens_no_file_that_the_manifest_does_not_name(tmp_path: Path, changed: str) -> None:
    manifest = make_text_folder(tmp_path, "m")
    (tmp_path / "m" / changed).write_bytes(b"{}")
    counter = TokenCounter(tmp_path)
    wanted = keccak((tmp_path / "m" / "manifest.json").read_bytes())
    assert manifest.name == "m"
    body = msgspec.json.encode(ASKED)
    assert counter.count(make_job(wanted, body, [b'"x"'], [1]), 0) == NOTHING
    assert "EMC-1602" in counter.problem


def test_counter_survives_whatever_node_and_client_write(tmp_path: Path) -> None:
    make_text_folder(tmp_path, "m")
    counter = TokenCounter(tmp_path)
    wanted = keccak((tmp_path / "m" / "manifest.json").read_bytes())
    draw = random.Random(3)
    bodies = [
        b"", b"[]", b"{}", b'{"messages":5}', b'{"messages":[5]}', b'{"messages":[{}]}', b'{"prompt":[]}',
        b'{"prompt":{"a":1}}', b'{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}',
        b'{"messages":[{"role":"user","content":{"a":1}}]}', msgspec.json.encode(ASKED | {"n": 3}),
        msgspec.json.encode(ASKED | {"stop": 7}), b'{"prompt":[1,2,3]}', b'{"prompt":"\\u0000\xff"}',
        b'{"messages":[{"role":5,"content":"x"}]}', b"[" * 5000,
    ]  # fmt: skip
    texts: list[list[bytes] | None] = [
        None,
        [],
        [b"{}"],
        [b"["],
        [b'{"content":5}'],
        [b'"\\ud800"'],
        [b"\xff"],
    ]
    ids: list[list[int] | None] = [None, [], [-1], [10**18], [5, 999_999]]
    for body in bodies:
        for pieces in texts:
            counted = counter.count(make_job(wanted, body, pieces, draw.choice(ids)), 0)
            assert counted.prompt_tokens is None or counted.prompt_tokens > 0
    counted = counter.count(make_job(wanted, msgspec.json.encode(ASKED), [b'"fox"'], [1]), 0)
    assert counted.tokens
    assert counted.spelled is False
