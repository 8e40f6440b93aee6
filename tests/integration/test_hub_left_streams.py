"""What a node is paid for a stream that its client left, whatever the node says: never more than it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.inference.manifest import EngineManifest
from emcd.net.http_client import request
from emcd.net.http_stream import stream
from emcd.proto.control import ResponseHead, encode
from emcd.proto.hashing import keccak
from emcd.proto.records import CallStatus
from emcd_hub.billing.key_limits import KeyLimits
from emcd_hub.billing.queries import find_imbalance
from tests.support.hub_world import (
    CHUNK,
    MODEL,
    HubWorld,
    StubNode,
    answer_stream,
    answer_with,
    chat_events,
    node_key,
    running_world,
    sse,
)

CHAT = "/v1/chat/completions"
IMAGES = "/v1/images/generations"
GRANT = 10**9
TOKEN = 10_000
HUGE = 10**15
MANIFEST = EngineManifest(name=MODEL, endpoints=("chat", "completions", "embeddings", "images"))
WORD = chat_events(["a"])[0]
CHAT_BODY = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "max_tokens": 20,
}
IMAGE_BODY = {"model": MODEL, "prompt": "x", "stream": True}
PARTIAL = sse({"type": "image_generation.partial_image", "b64_json": "AAAA"})


def stated(entered: int, made: int, choices: bool = False) -> bytes:
    usage = {"prompt_tokens": entered, "completion_tokens": made}
    content = [{"index": 0, "delta": {"content": "b"}}] if choices else []
    return sse({**CHUNK, "choices": content, "usage": usage})


def answer_until_left(
    first: bytes, late: bytes = b"", tokens: tuple[int, int] = (0, 0), *, receipt: bool = True
) -> Any:
    """A node that sends this until it is told to stop, that afterwards, and a receipt of its liking."""

    async def answer(node: StubNode, call: Any, meta: Any) -> None:
        await call.start(encode(ResponseHead(200, "text/event-stream")))
        await call.send(first)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                if late:
                    await call.send(late)
                if receipt:
                    await node.finish(call, meta, keccak(first + late), 200, tokens)
                else:
                    await call.fail("EMC-2007", "gone")

    return answer


async def leave(world: HubWorld, path: str, body: dict[str, Any], seen: int) -> tuple[int, int, bool]:
    """Ask, leave when so many bytes came. Returns: status, charge, whether the receipt was taken."""
    headers = {"authorization": f"Bearer {world.api_key}", "content-type": "application/json"}
    async with stream("POST", world.url + path, headers=headers, body=msgspec.json.encode(body)) as answer:
        got = 0
        async for piece in answer:
            got += len(piece)
            if got >= seen:
                break
    await world.until(lambda: world.plane.gateway.active == 0)
    rows = await world.rows("SELECT status, granted_micro, receipt IS NOT NULL FROM hub_calls")
    ((status, charge, taken),) = rows
    assert await world.balances() == (GRANT - charge, 0)
    assert world.plane.book.find(world.account_id).reserved_micro == 0
    assert await world.ledger.read(find_imbalance) is None
    return status, charge, bool(taken)


async def add(world: HubWorld, answer: Any) -> StubNode:
    return await world.add_node(StubNode(node_key(0), manifests=(MANIFEST,), answer=answer))


async def test_media_stream_that_was_left_never_costs_more_than_it_holds(tmp_path: Path) -> None:
    end = {"type": "image_generation.completed", "usage": {"input_tokens": HUGE, "output_tokens": HUGE}}
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        await add(world, answer_until_left(PARTIAL, sse(end), (HUGE, HUGE)))
        assert await leave(world, IMAGES, IMAGE_BODY, len(PARTIAL)) == (CallStatus.CANCELLED, TOKEN, False)


async def test_media_receipt_within_the_requests_bounds_is_taken(tmp_path: Path) -> None:
    end = {"type": "image_generation.completed", "usage": {"input_tokens": 9, "output_tokens": 90}}
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        await add(world, answer_until_left(PARTIAL, sse(end), (9, 90)))
        assert await leave(world, IMAGES, IMAGE_BODY, len(PARTIAL)) == (
            CallStatus.CANCELLED, 99 * TOKEN, True,
        )  # fmt: skip


async def test_images_that_were_passed_on_are_paid(tmp_path: Path) -> None:
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        await add(world, answer_until_left(PARTIAL * 3, tokens=(0, 3)))
        row = await leave(world, IMAGES, IMAGE_BODY, 3 * len(PARTIAL))
        assert row == (CallStatus.CANCELLED, 3 * TOKEN, True)


@pytest.mark.parametrize("receipt", [False, True])
async def test_without_a_fitting_receipt_the_hubs_own_count_is_charged(tmp_path: Path, receipt: bool) -> None:
    """Whatever the stream itself states: neither a prompt nor an output that nobody saw."""
    first = WORD + stated(HUGE, HUGE, choices=True)
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        node = await add(world, answer_until_left(first, tokens=(HUGE, HUGE), receipt=receipt))
        status, charge, taken = await leave(world, CHAT, CHAT_BODY, len(first))
        assert (status, charge) == (CallStatus.CANCELLED, (len(node.bodies[0]) // 6 + 2) * TOKEN)
        assert not taken


async def test_usage_first_stated_after_the_stop_is_bounded_by_what_came(tmp_path: Path) -> None:
    body = {**CHAT_BODY, "max_tokens": 90_000}
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        node = await add(world, answer_until_left(WORD, stated(9, 90_000), (9, 90_000)))
        status, charge, taken = await leave(world, CHAT, body, len(WORD))
        assert (status, charge) == (CallStatus.CANCELLED, (len(node.bodies[0]) // 6 + 1) * TOKEN)
        assert not taken


async def test_usage_stated_after_the_stop_is_taken_if_it_fits_what_came(tmp_path: Path) -> None:
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        await add(world, answer_until_left(WORD * 3, stated(9, 5), (9, 5)))
        row = await leave(world, CHAT, CHAT_BODY, 3 * len(WORD))
        assert row == (CallStatus.CANCELLED, 14 * TOKEN, True)


async def test_client_that_leaves_pays_for_its_prompt(tmp_path: Path) -> None:
    body = {**CHAT_BODY, "messages": [{"role": "user", "content": "word " * 1000}]}
    sent = len(msgspec.json.encode({**body, "stream_options": {"include_usage": True}}))
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        node = await add(world, answer_until_left(WORD, tokens=(sent // 6, 1)))
        row = await leave(world, CHAT, body, len(WORD))
        assert len(node.bodies[0]) == sent
        assert row == (CallStatus.CANCELLED, (sent // 6 + 1) * TOKEN, True)


async def test_stated_usage_of_a_left_stream_costs_what_is_held_at_most(tmp_path: Path) -> None:
    """The template may add to the prompt: within the receipt's bounds, and above the reservation."""
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        held: list[int] = []

        async def answer(node: StubNode, call: Any, meta: Any) -> None:
            account = world.plane.book.find(world.account_id)
            held.append(account.reserved_micro)
            first = stated(len(call.body) + 1000, 20, choices=True)
            await answer_until_left(first, tokens=(len(call.body) + 1000, 20))(node, call, meta)

        await add(world, answer)
        status, charge, taken = await leave(world, CHAT, CHAT_BODY, 1)
        assert (status, [charge], taken) == (CallStatus.CANCELLED, held, True)


ERROR = b'data: {"error":{"message":"engine died"}}\n\n'


@pytest.mark.parametrize("events", [[WORD], [WORD, ERROR], [WORD, ERROR, stated(7, 20)]])
async def test_stream_without_its_end_is_the_nodes_fault_whatever_its_receipt(
    tmp_path: Path, events: list[bytes]
) -> None:
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        await add(world, answer_stream(events, (7, 20)))
        headers = {"authorization": f"Bearer {world.api_key}"}
        got = await request("POST", world.url + CHAT, json=CHAT_BODY, headers=headers)
        assert got.body.split(b"\n\n")[-2].startswith(b'data: {"error"')
        assert b"EMC-1714" in got.body
        ((status, fault, charge),) = await world.rows("SELECT status, fault, granted_micro FROM hub_calls")
        assert (status, fault.split(":")[0], charge) == (CallStatus.NODE_ERROR, "stream", 0)


async def test_end_without_its_blank_line_is_an_end(tmp_path: Path) -> None:
    events = [*chat_events(["a"])[:-1], b"data: [DONE]"]
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        await add(world, answer_stream(events, (7, 1)))
        headers = {"authorization": f"Bearer {world.api_key}"}
        got = await request("POST", world.url + CHAT, json=CHAT_BODY, headers=headers)
        assert got.body.endswith(b"data: [DONE]")
        assert await world.rows("SELECT status FROM hub_calls") == [(CallStatus.OK,)]


async def test_client_that_leaves_at_the_engines_error_pays_nothing(tmp_path: Path) -> None:
    first = WORD + ERROR
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        await add(world, answer_until_left(first, receipt=False))
        row = await leave(world, CHAT, CHAT_BODY, len(first))
        assert row == (CallStatus.CANCELLED, 0, False)


async def test_media_usage_takes_no_more_of_a_keys_tokens_than_was_held(tmp_path: Path) -> None:
    most = 2**53 - 1
    body = msgspec.json.encode({"usage": {"input_tokens": most, "output_tokens": most}})
    async with running_world(tmp_path, granted_micro=GRANT) as world:
        node = await add(world, answer_with(200, body, (most, most)))
        limits = KeyLimits(tokens_per_minute=1_000_000)
        made = await world.plane.office.keys.create_key(world.account_id, "x", limits)
        headers = {"authorization": f"Bearer {made.secret}"}
        for _ in range(3):
            got = await request(
                "POST", world.url + IMAGES, json={"model": MODEL, "prompt": "x"}, headers=headers
            )
            assert got.status == 200
        entry = world.plane.board.find(node.key.address)
        assert entry.record.speed(MODEL).tokens_per_s is None
