"""Calls of a model that can be verified: what nodes are asked, what clients get, what their receipts say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.accounting.receipt import check_receipt
from emcd.inference.manifest import EmbeddingManifest, EngineManifest
from emcd.net.http_client import request
from emcd.proto.control import ResponseHead, encode
from emcd.proto.hashing import keccak
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.proto.records import CallStatus, request_hash
from emcd_hub.billing.queries import find_imbalance
from tests.integration.test_hub_stream import last_delivery, read_stream
from tests.support.evidence_node import (
    NAMES,
    PROMPT_IDS,
    TEXT_MANIFEST,
    USED,
    answer_with_evidence,
    stream_events,
    whole_body,
)
from tests.support.hub_world import (
    DOMAIN,
    HUB_KEY,
    MODEL,
    HubWorld,
    StubNode,
    answer_stream,
    answer_with,
    fetch_receipt,
    node_key,
    post,
    running_world,
)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
PROMPT: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": 9}
ALL: dict[str, Any] = {"logprobs": True, "top_logprobs": 5, "seed": 7, "return_token_ids": True}


def text_node(number: int = 0, **fields: Any) -> StubNode:
    return StubNode(
        node_key(number), **{"manifests": (TEXT_MANIFEST,), "answer": answer_with_evidence, **fields}
    )


async def fetch_notes(world: HubWorld, call_id: str) -> dict[str, Any]:
    await fetch_receipt(world, call_id)
    headers = {"authorization": f"Bearer {world.api_key}"}
    page = await request("GET", f"{world.url}/v1/calls/{call_id}/receipt", headers=headers)
    notes: dict[str, Any] = page.json()["notes"]
    return notes


@pytest.mark.parametrize("fields", [{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}])
async def test_client_of_a_chat_gets_what_a_node_says_to_who_asks_for_no_more(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(text_node())
        answer = await post(world, ASKED | fields, CHAT)
        sent = msgspec.json.decode(node.bodies[0])
        assert (sent["logprobs"], sent["top_logprobs"], sent["return_token_ids"]) == (True, 5, True)
        assert 0 <= sent["seed"] < 2**63
        assert answer.json() == msgspec.json.decode(whole_body(ASKED | fields))
        delivery = await last_delivery(world)
        assert delivery.body_hash == keccak(answer.body)
        receipt = await fetch_receipt(world, answer.headers["x-emc-call-id"])
        assert receipt.receipt is not None
        assert receipt.receipt.response_hash == keccak(whole_body(sent)) != delivery.body_hash


@pytest.mark.parametrize("asked", [None, 0, 1, 3])
async def test_client_of_a_completion_gets_as_many_alternatives_as_it_asked_for(
    tmp_path: Path, asked: int | None
) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(text_node())
        answer = (await post(world, PROMPT | {"logprobs": asked}, COMPLETIONS)).json()
        logprobs = answer["choices"][0]["logprobs"]
        if asked is None:
            assert logprobs is None
        else:
            rows = [
                set(row) - {word}
                for row, word in zip(logprobs["top_logprobs"], logprobs["tokens"], strict=True)
            ]
            assert rows == [set(NAMES[: max(0, asked - 1)])] * 3  # the chosen token is the likeliest here
            assert all(
                word in row for row, word in zip(logprobs["top_logprobs"], logprobs["tokens"], strict=True)
            )
        assert "token_ids" not in answer["choices"][0]


async def test_who_asks_for_all_of_it_gets_the_answer_byte_for_byte(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(text_node())
        answer = await post(world, ASKED | ALL, CHAT)
        assert answer.body == whole_body(ASKED | ALL)
        receipt = await fetch_receipt(world, answer.headers["x-emc-call-id"])
        assert receipt.receipt is not None
        assert receipt.receipt.response_hash == receipt.delivery.body_hash
        notes = await fetch_notes(world, answer.headers["x-emc-call-id"])
        assert notes == {
            "bodies_differ": False, "why": "", "withheld": [], "canonical_request": True,
            "drawn_seed": None, "remark": "", "uncounted_tokens": 0,
        }  # fmt: skip
        body = msgspec.json.encode(ASKED | ALL)
        assert node.bodies[0] == read_request(ENDPOINTS[CHAT], body, evidence=True).body


async def test_client_can_make_the_forwarded_request_again_and_reads_why_bodies_differ(
    tmp_path: Path,
) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(text_node())
        answer = await post(world, ASKED | {"user": "me"}, CHAT)
        call_id = answer.headers["x-emc-call-id"]
        notes = await fetch_notes(world, call_id)
        assert notes["bodies_differ"]
        assert notes["why"] == "the client did not ask for logprobs, token_ids"
        body = msgspec.json.encode(ASKED | {"user": "me"})
        upstream = read_request(ENDPOINTS[CHAT], body, evidence=True, seed=int(notes["drawn_seed"])).body
        receipt = await fetch_receipt(world, call_id)
        assert receipt.forward.request_hash == request_hash(CHAT, upstream)


@pytest.mark.parametrize("pieces", [0, 1, 13, 4096])
@pytest.mark.parametrize(
    "fields", [{}, {"logprobs": True, "top_logprobs": 1}, {"stream_options": {"include_usage": True}}]
)
async def test_client_of_a_stream_gets_what_a_node_says_to_who_asks_for_no_more(
    tmp_path: Path, pieces: int, fields: dict[str, Any]
) -> None:
    async def answer(node: StubNode, call: Any, meta: Any) -> None:
        events = stream_events(msgspec.json.decode(call.body))
        await answer_stream(events, USED, pieces=pieces)(node, call, meta)

    asked = ASKED | {"stream": True} | fields
    async with running_world(tmp_path) as world:
        await world.add_node(text_node(answer=answer))
        status, _, body = await read_stream(world, asked)
        assert (status, body) == (200, b"".join(stream_events(asked)))
        delivery = await last_delivery(world)
        assert (delivery.status, delivery.body_hash) == (CallStatus.OK, keccak(body))
        assert delivery.credits_micro == 10_000 * sum(USED)


async def test_stream_of_who_asks_for_all_of_it_passes_byte_for_byte(tmp_path: Path) -> None:
    asked = ASKED | ALL | {"stream": True, "stream_options": {"include_usage": True}}
    async with running_world(tmp_path) as world:
        await world.add_node(text_node())
        _, headers, body = await read_stream(world, asked)
        assert body == b"".join(stream_events(asked))
        receipt = await fetch_receipt(world, headers["x-emc-call-id"])
        assert receipt.receipt is not None
        assert receipt.receipt.response_hash == receipt.delivery.body_hash == keccak(body)


async def test_all_nodes_that_are_tried_get_one_body_and_a_retried_request_is_done_once(
    tmp_path: Path,
) -> None:
    async with running_world(tmp_path) as world:
        bad = [
            await world.add_node(text_node(n, capacity=900, answer=answer_with(500, b"{}"))) for n in range(2)
        ]
        good = await world.add_node(text_node(2, capacity=1))
        first = await post(world, ASKED, CHAT, idempotency_key="k")
        bodies = {body for node in [*bad, good] for body in node.bodies}
        assert (first.status, len(bodies)) == (200, 1)
        again = await post(world, ASKED, CHAT, idempotency_key="k")
        assert (again.body, again.headers["x-emc-idempotent-replay"]) == (first.body, "true")
        other = await post(world, ASKED | {"seed": 5}, CHAT, idempotency_key="k")
        assert other.status == 422
        assert good.calls == 1


async def test_an_engine_that_sells_the_same_name_is_asked_the_same(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        engine = await world.add_node(text_node(0, manifests=(EngineManifest(name=MODEL),), capacity=900))
        await post(world, ASKED, CHAT)
        await world.add_node(text_node(1, capacity=1))
        await post(world, ASKED, CHAT)
        plain, asked = (msgspec.json.decode(body) for body in engine.bodies)
        assert plain == ASKED
        assert asked["return_token_ids"] is True


async def test_embeddings_that_can_be_verified_go_on_in_one_form(tmp_path: Path) -> None:
    manifest = EmbeddingManifest(
        name=MODEL,
        files={"model.onnx": "ab" * 32, "tokenizer.json": "cd" * 32},
        graph="onnx",
        dimension=3,
        max_tokens=9,
    )
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0), manifests=(manifest,)))
        answer = await post(world, {"user": "me", "model": MODEL, "input": "x", "dimensions": None})
        assert (answer.status, node.bodies) == (200, [b'{"input":"x","model":"stub-model"}'])


def hostile(edit: Any) -> Any:
    """A node that changes its honest answer before it signs for it."""

    async def answer(node: StubNode, call: Any, meta: Any) -> None:
        table = msgspec.json.decode(whole_body(msgspec.json.decode(call.body)))
        edited = edit(table)
        body = edited if isinstance(edited, bytes) else msgspec.json.encode(table)
        await answer_with(200, body, USED)(node, call, meta)

    return answer


def set_choice(**fields: Any) -> Any:
    return lambda table: table["choices"][0].update(fields)


MALFORMED = {
    "no JSON": lambda table: b'{"choices":[{"logprobs":',
    "a list": lambda table: b"[]",
    "too deep": lambda table: b'{"choices":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "choices are none": lambda table: table.update(choices={"logprobs": 1}),
    "ids are no numbers": set_choice(token_ids=["SECRET"]),
    "ids are no list": set_choice(token_ids={"SECRET": 1}),
    "more choices than were asked for": lambda table: table.update(choices=[{}] * 2),
    "the ids are withheld": set_choice(token_ids=None),
    "the logprobs are withheld": set_choice(logprobs=None),
    "prompt ids are a text": lambda table: table.update(prompt_token_ids="SECRET"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_evidence_is_the_nodes_fault_and_another_does_it(tmp_path: Path, name: str) -> None:
    async with running_world(tmp_path) as world:
        bad = await world.add_node(text_node(0, capacity=900, answer=hostile(MALFORMED[name])))
        good = await world.add_node(text_node(1, capacity=1))
        answer = await post(world, ASKED, CHAT)
        assert (answer.status, answer.headers["x-emc-node"]) == (200, good.key.address)
        assert bad.calls == 1
        assert b"SECRET" not in answer.body
        rows = await world.rows("SELECT status, fault FROM hub_calls ORDER BY call_seq")
        assert rows[0][0] == CallStatus.NODE_ERROR
        assert rows[0][1].startswith("EMC-1793")


@pytest.mark.parametrize(
    "logprobs", [{"content": "SECRET"}, "SECRET", [1], {"content": [{"token": 5}]}, {"content": [["SECRET"]]}]
)
async def test_malformed_logprobs_are_not_read_where_nobody_asked_and_refused_where_somebody_did(
    tmp_path: Path, logprobs: Any
) -> None:
    async with running_world(tmp_path, max_attempts=1) as world:
        await world.add_node(text_node(0, answer=hostile(set_choice(logprobs=logprobs))))
        plain = await post(world, ASKED, CHAT)
        assert plain.json() == msgspec.json.decode(whole_body(ASKED))
        asked = await post(world, ASKED | {"logprobs": True, "top_logprobs": 1}, CHAT)
        assert (asked.status, asked.json()["error"]["emc_code"]) == (502, "EMC-1710")
        assert b"SECRET" not in plain.body + asked.body


async def test_nothing_that_a_node_makes_up_passes_to_who_did_not_ask(tmp_path: Path) -> None:
    def edit(table: dict[str, Any]) -> None:
        table |= {"x_secret": "SECRET", "prompt_logprobs": ["SECRET"]}
        table["choices"][0] |= {"x_secret": "SECRET", "prompt_token_ids": [5]}

    async with running_world(tmp_path) as world:
        await world.add_node(text_node(0, answer=hostile(edit)))
        answer = await post(world, ASKED, CHAT)
        assert answer.json() == msgspec.json.decode(whole_body(ASKED))


EVIL_ENDS = {
    "unread event": (b'data: {"choices":[{"token_ids":"SECRET"}]}\n\n', False),
    "no JSON": (b"data: SECRET\n\n", False),
    "after the end": (b"data: [DONE]\n\ndata: SECRET\n\n: SECRET", True),
    "a comment": (b": SECRET\n\ndata: [DONE]\n\n", True),
    "other fields": (b'event: SECRET\nid: SECRET\ndata: {"choices":[],"SECRET":1}\n\ndata: [DONE]\n\n', True),
}


@pytest.mark.parametrize("name", EVIL_ENDS)
async def test_a_hostile_stream_leaks_nothing(tmp_path: Path, name: str) -> None:
    end, is_whole = EVIL_ENDS[name]

    async def answer(node: StubNode, call: Any, meta: Any) -> None:
        events = stream_events(msgspec.json.decode(call.body))
        await answer_stream([*events[:-1], end], USED)(node, call, meta)

    async with running_world(tmp_path, granted_micro=10**9) as world:
        await world.add_node(text_node(answer=answer))
        _, _, body = await read_stream(world, ASKED | {"stream": True})
        assert b"SECRET" not in body
        assert body.endswith(b"data: [DONE]\n\n") is is_whole
        assert (b'{"error":' in body) is not is_whole
        delivery = await last_delivery(world)
        assert delivery.body_hash == keccak(body) or not is_whole
        assert (delivery.credits_micro > 0) is is_whole
        assert await world.ledger.read(find_imbalance) is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("claimed", [(len(PROMPT_IDS) + 1, 3), (len(PROMPT_IDS), 4)])
async def test_who_claims_more_tokens_than_its_answer_names_is_paid_for_those_it_names(
    tmp_path: Path, stream: bool, claimed: tuple[int, int]
) -> None:
    """It says so in the answer and in the receipt alike: only the ids tell."""
    usage = {"prompt_tokens": claimed[0], "completion_tokens": claimed[1], "total_tokens": sum(claimed)}

    async def inflate(node: StubNode, call: Any, meta: Any) -> None:
        asked = msgspec.json.decode(call.body)
        true = {"prompt_tokens": USED[0], "completion_tokens": USED[1], "total_tokens": sum(USED)}
        old, new = (msgspec.json.encode(table) for table in (true, usage))
        if stream:
            events = [event.replace(old, new) for event in stream_events(asked)]
            await answer_stream(events, claimed)(node, call, meta)
        else:
            await answer_with(200, whole_body(asked).replace(old, new), claimed)(node, call, meta)

    async with running_world(tmp_path, granted_micro=10**9) as world:
        await world.add_node(text_node(answer=inflate))
        _, headers, _ = await read_stream(world, ASKED | {"stream": stream})
        delivery = await last_delivery(world)
        assert (delivery.status, delivery.credits_micro) == (CallStatus.CAPPED, 10_000 * sum(USED))
        receipt = await fetch_receipt(world, headers["x-emc-call-id"])
        assert receipt.receipt is not None
        assert (receipt.receipt.input_tokens, receipt.receipt.output_tokens) == claimed
        prices = world.plane.in_force.prices(delivery.finished_at_ms)
        checked = check_receipt(DOMAIN, HUB_KEY.address, receipt, prices=prices)
        assert (checked.ok, checked.counts) == (True, True)
        notes = await fetch_notes(world, headers["x-emc-call-id"])
        assert notes["remark"] == f"tokens: {claimed} claimed, {USED} named"
        assert notes["why"] == "the client did not ask for " + ", ".join(notes["withheld"])


async def test_limit_of_an_answer_holds_for_what_the_client_gets(tmp_path: Path) -> None:
    """Evidence is many times larger than the text it is about."""

    async def long(node: StubNode, call: Any, meta: Any) -> None:
        table = msgspec.json.decode(whole_body(msgspec.json.decode(call.body)))
        choice = table["choices"][0]
        choice["logprobs"]["content"] *= 200
        choice["token_ids"] *= 200
        await answer_with(200, msgspec.json.encode(table), USED)(node, call, meta)

    async with running_world(tmp_path, answer_bytes=16_384, max_attempts=1) as world:
        await world.add_node(text_node(answer=long))
        asked = ASKED | {"max_tokens": 700}
        assert (await post(world, asked, CHAT)).status == 200
        assert (await post(world, ASKED, CHAT)).status == 502  # of nine tokens there is not so much to say
        assert (await post(world, asked | {"logprobs": True}, CHAT)).status == 502  # its client gets too much


async def test_hub_says_which_tokens_nobody_can_count(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 30, "total_tokens": 34}
    usage_told: dict[str, Any] = {**usage, "completion_tokens_details": {"reasoning_tokens": 27}}
    table = msgspec.json.decode(whole_body(ASKED)) | {"usage": usage_told}
    shown = msgspec.json.decode(msgspec.json.encode(table))
    shown["choices"][0]["message"]["reasoning_content"] = "I think"
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0)))
        node.answer = answer_with(200, msgspec.json.encode(table), (4, 30))
        asked = ASKED | {"max_tokens": 50}
        hidden = await post(world, asked, CHAT)
        node.answer = answer_with(200, msgspec.json.encode(shown), (4, 30))
        await post(world, asked, CHAT)
        notes = await fetch_notes(world, hidden.headers["x-emc-call-id"])
        assert notes["uncounted_tokens"] == 27
        assert await world.rows("SELECT uncounted_tokens FROM hub_calls ORDER BY call_seq") == [(27,), (0,)]
        headers = {"authorization": f"Bearer {world.api_key}"}
        page = await request("GET", f"{world.url}/api/account/statement", headers=headers)
        assert sum(line["uncounted_tokens"] for line in page.json()["usage"]) == 27


async def test_what_engines_state_of_images_overflows_no_sum(tmp_path: Path) -> None:
    most = 2**53 - 1
    usage = {"input_tokens": 0, "output_tokens": most, "output_tokens_details": {"reasoning_tokens": most}}
    body = msgspec.json.encode({"created": 1, "data": [], "usage": usage})
    async with running_world(tmp_path, granted_micro=10**12) as world:
        manifest = EngineManifest(name=MODEL, endpoints=("images",))
        await world.add_node(
            StubNode(node_key(0), manifests=(manifest,), answer=answer_with(200, body, (0, most)))
        )
        answer = await post(world, {"model": MODEL, "prompt": "x"}, "/v1/images/generations")
        assert answer.status == 200
        assert await world.rows("SELECT uncounted_tokens FROM hub_calls") == [(2**31 - 1,)]


async def test_client_that_leaves_a_stream_with_evidence_pays_for_what_was_produced(tmp_path: Path) -> None:
    async def slow(node: StubNode, call: Any, meta: Any) -> None:
        events = stream_events(msgspec.json.decode(call.body))
        await call.start(encode(ResponseHead(200, "text/event-stream")))
        await call.send(events[0])
        await trio.sleep_forever()

    async with running_world(tmp_path, granted_micro=10**9) as world:
        await world.add_node(text_node(answer=slow))
        with trio.move_on_after(0.5):
            await read_stream(world, ASKED | {"stream": True})
        await world.until(lambda: not world.plane.gateway.active)
        delivery = await last_delivery(world)
        assert delivery.status == CallStatus.CANCELLED
        assert 0 < delivery.credits_micro < 10_000 * 40


async def test_limit_of_a_stream_holds_for_what_the_client_gets(tmp_path: Path) -> None:
    async def long(node: StubNode, call: Any, meta: Any) -> None:
        first, *rest = stream_events(msgspec.json.decode(call.body))
        await answer_stream([first] * number + rest, USED)(node, call, meta)

    async with running_world(tmp_path, answer_bytes=16_384) as world:
        await world.add_node(text_node(answer=long))
        asked = ASKED | {"max_tokens": 700, "stream": True}
        number = 60
        *_, body = await read_stream(world, asked)
        assert body.endswith(b"data: [DONE]\n\n")
        assert len(body) < 16_384 < number * len(stream_events(ASKED | ALL)[0])
        number = 120
        *_, body = await read_stream(world, asked)
        assert b'{"error":' in body
