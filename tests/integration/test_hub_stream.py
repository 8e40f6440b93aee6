"""Streams through a running hub: what arrives, what it costs, and how each way of failing ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.net.http_stream import stream
from emcd.proto.control import ResponseHead, encode
from emcd.proto.hashing import keccak
from emcd.proto.records import CallStatus, Delivery
from emcd_hub.billing.queries import find_imbalance
from tests.support.hub_world import (
    MODEL,
    HubWorld,
    StubNode,
    answer_stream,
    answer_with,
    chat_events,
    node_key,
    running_world,
)

CHAT = "/v1/chat/completions"
WORDS = ["one", " two", " three"]
EVENTS = chat_events(WORDS)
USED = (7, 3)
COST = 100_000  # 10 tokens


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "count"}], "stream": True, **fields}


async def read_stream(
    world: HubWorld, body: dict[str, Any], path: str = CHAT
) -> tuple[int, dict[str, str], bytes]:
    headers = {"authorization": f"Bearer {world.api_key}", "content-type": "application/json"}
    async with stream("POST", world.url + path, headers=headers, body=msgspec.json.encode(body)) as answer:
        received = b""
        async for piece in answer:
            received += piece
        return answer.status, dict(answer.headers), received


async def last_delivery(world: HubWorld) -> Delivery:
    rows = await world.rows("SELECT delivery FROM hub_calls ORDER BY call_seq DESC LIMIT 1")
    return msgspec.msgpack.decode(rows[0][0], type=Delivery)


@pytest.mark.parametrize("pieces", [0, 1, 7, 4096])
async def test_stream_with_usage_asked_for_arrives_as_it_was_sent(tmp_path: Path, pieces: int) -> None:
    async with running_world(tmp_path, granted_micro=10**9) as world:
        node = await world.add_node(StubNode(node_key(0), answer=answer_stream(EVENTS, USED, pieces=pieces)))
        status, headers, body = await read_stream(
            world, chat(stream_options={"include_usage": True}, max_tokens=9)
        )
        assert (status, body) == (200, b"".join(EVENTS))
        assert headers["content-type"] == "text/event-stream"
        assert headers["x-emc-credits-reserved"] != "0.000000"
        assert msgspec.json.decode(node.bodies[0])["stream_options"] == {"include_usage": True}
        delivery = await last_delivery(world)
        assert delivery.body_hash == keccak(body)
        assert (delivery.status, delivery.credits_micro) == (CallStatus.OK, COST)
        assert await world.balances() == (10**9 - COST, 0)


@pytest.mark.parametrize("pieces", [0, 5])
async def test_usage_nobody_asked_for_is_dropped_and_still_charged(tmp_path: Path, pieces: int) -> None:
    async with running_world(tmp_path, granted_micro=10**9) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_stream(EVENTS, USED, pieces=pieces)))
        _, _, body = await read_stream(world, chat())
        assert body == b"".join([*EVENTS[:-2], EVENTS[-1]])
        delivery = await last_delivery(world)
        assert (delivery.credits_micro, delivery.body_hash) == (COST, keccak(body))


async def test_end_of_stream_waits_for_the_record(tmp_path: Path) -> None:
    """When the client has [DONE], the row is there: nothing acknowledged can be lost."""
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_stream(EVENTS, USED)))
        for number in range(1, 6):
            await read_stream(world, chat())
            assert await world.rows("SELECT count(*) FROM hub_calls") == [(number,)]


async def test_node_lost_before_the_first_chunk_is_retried(tmp_path: Path) -> None:
    async def head_only(node: StubNode, call: Any, meta: Any) -> None:
        await call.start(encode(ResponseHead(200, "text/event-stream")))
        await trio.sleep(0.02)
        node.scope.cancel()
        await trio.sleep_forever()

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), capacity=999, answer=head_only))
        good = await world.add_node(StubNode(node_key(1), capacity=1, answer=answer_stream(EVENTS, USED)))
        status, headers, body = await read_stream(world, chat())
        assert (status, headers["x-emc-node"]) == (200, good.key.address)
        assert body.endswith(b"data: [DONE]\n\n")


async def test_node_lost_in_the_middle_ends_with_an_error_event(tmp_path: Path) -> None:
    async def cut(node: StubNode, call: Any, meta: Any) -> None:
        await call.start(encode(ResponseHead(200, "text/event-stream")))
        await call.send(EVENTS[0])
        await trio.sleep(0.05)
        node.scope.cancel()
        await trio.sleep_forever()

    async with running_world(tmp_path, granted_micro=10**9) as world:
        await world.add_node(StubNode(node_key(0), answer=cut))
        status, _, body = await read_stream(world, chat())
        first, error, rest = body.split(b"\n\n")
        assert (status, first + b"\n\n", rest) == (200, EVENTS[0], b"")
        assert msgspec.json.decode(error.removeprefix(b"data: "))["error"]["emc_code"] == "EMC-1714"
        assert (await last_delivery(world)).status == CallStatus.NODE_ERROR
        assert await world.balances() == (10**9, 0)
        assert await world.ledger.read(find_imbalance) is None


async def test_lying_receipt_at_the_end_of_a_stream_is_not_charged(tmp_path: Path) -> None:
    def more(receipt: Any) -> Any:
        return msgspec.structs.replace(receipt, output_tokens=receipt.output_tokens + 1000)

    async with running_world(tmp_path, granted_micro=10**9) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_stream(EVENTS, USED), edit_receipt=more))
        _, _, body = await read_stream(world, chat())
        assert b"EMC-1714" in body
        assert b"[DONE]" not in body
        assert await world.balances() == (10**9, 0)


async def test_silence_in_the_middle_is_an_error_event(tmp_path: Path) -> None:
    async def stall(node: StubNode, call: Any, meta: Any) -> None:
        await call.start(encode(ResponseHead(200, "text/event-stream")))
        await call.send(EVENTS[0])
        await trio.sleep_forever()

    async with running_world(tmp_path, idle_timeout_s=0.2) as world:
        node = await world.add_node(StubNode(node_key(0), answer=stall))
        _, _, body = await read_stream(world, chat())
        assert b"EMC-1714" in body
        await world.until(lambda: node.cancelled == 1)


async def test_client_that_leaves_stops_the_work_and_pays_for_what_it_got(tmp_path: Path) -> None:
    async def endless(node: StubNode, call: Any, meta: Any) -> None:
        await call.start(encode(ResponseHead(200, "text/event-stream")))
        while True:
            await call.send(EVENTS[0])
            await trio.sleep(0.01)

    async with running_world(tmp_path, granted_micro=10**9) as world:
        node = await world.add_node(StubNode(node_key(0), answer=endless))
        headers = {"authorization": f"Bearer {world.api_key}"}
        body = msgspec.json.encode(chat())
        async with stream("POST", world.url + CHAT, headers=headers, body=body) as answer:
            async for _ in answer:
                break
        await world.until(lambda: node.cancelled == 1)
        await world.until(lambda: world.plane.gateway.active == 0)
        delivery = await last_delivery(world)
        assert delivery.status == CallStatus.CANCELLED
        assert 10_000 <= delivery.credits_micro < 10_000_000
        assert await world.balances() == (10**9 - delivery.credits_micro, 0)
        account = world.plane.book.find(world.account_id)
        assert (account.reserved_micro, account.calls) == (0, 0)
        assert await world.ledger.read(find_imbalance) is None


async def test_client_that_leaves_pays_for_no_empty_events_and_no_more_than_its_bound(tmp_path: Path) -> None:
    async def padded(node: StubNode, call: Any, meta: Any) -> None:
        await call.start(encode(ResponseHead(200, "text/event-stream")))
        await call.send(EVENTS[0] * 30 + b"data:\n\ndata: {}\n\ndata: 1\n\n" * 1000)
        await trio.sleep_forever()

    async with running_world(tmp_path, granted_micro=10**9) as world:
        for fields, output in ({}, 30), ({"max_tokens": 5}, 5):
            node = await world.add_node(StubNode(node_key(0), answer=padded))
            headers = {"authorization": f"Bearer {world.api_key}"}
            body = msgspec.json.encode(chat(**fields))
            async with stream("POST", world.url + CHAT, headers=headers, body=body) as answer:
                async for _ in answer:
                    break
            while node.cancelled == 0:
                await trio.sleep(0.01)
            await world.until(lambda: world.plane.gateway.active == 0)
            delivery = await last_delivery(world)
            assert delivery.status == CallStatus.CANCELLED
            assert delivery.credits_micro == (len(node.bodies[0]) // 6 + output) * 10_000
            node.scope.cancel()
            await world.until(lambda: world.plane.board.is_empty)


async def test_stream_that_uses_up_the_account_is_cut_with_a_proper_end(tmp_path: Path) -> None:
    events = chat_events([f" w{n}" for n in range(5000)])
    async with running_world(tmp_path, granted_micro=2_500_000) as world:
        node = await world.add_node(StubNode(node_key(0), answer=answer_stream(events, (7, 5000))))
        _, _, body = await read_stream(world, chat(max_tokens=10_000, stream_options={"include_usage": True}))
        assert body.endswith(b"data: [DONE]\n\n")
        *_, last, usage, done, rest = body.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        assert msgspec.json.decode(last[6:])["choices"][0]["finish_reason"] == "length"
        assert msgspec.json.decode(last[6:])["id"] == "c1"
        assert msgspec.json.decode(usage[6:])["usage"]["completion_tokens"] > 0
        delivery = await last_delivery(world)
        assert delivery.status == CallStatus.CAPPED
        assert delivery.body_hash == keccak(body)
        granted, _ = await world.balances()
        assert 0 <= granted < 2_500_000
        await world.until(lambda: node.cancelled == 1)
        assert await world.ledger.read(find_imbalance) is None


async def test_stream_without_a_bound_reserves_more_as_it_goes(tmp_path: Path) -> None:
    events = chat_events([" w"] * 300)
    async with running_world(tmp_path, granted_micro=10**9, default_output_tokens=20) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_stream(events, (7, 300))))
        _, _, body = await read_stream(world, chat(stream_options={"include_usage": True}))
        assert body == b"".join(events)
        assert (await last_delivery(world)).credits_micro == 3_070_000


async def test_error_answer_to_a_stream_request_is_passed_on(tmp_path: Path) -> None:
    body = b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}'
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_with(400, body)))
        status, headers, received = await read_stream(world, chat())
        assert (status, headers["content-type"], received) == (400, "application/json", body)


async def test_stream_with_garbage_events_is_relayed_byte_for_byte(tmp_path: Path) -> None:
    events = [
        b": comment\n\n",
        b"event: x\ndata: {\n\n",
        b"data: \xff\xfe\n\n",
        b"data: [DONE]\n\n",
        b"data: late\n\n",
    ]
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_stream(events, (1, 1))))
        _, _, body = await read_stream(world, chat())
        assert body == b"".join(events)


async def test_event_without_end_is_the_nodes_fault(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        huge = [b"data: " + b"x" * (1 << 21)]
        await world.add_node(StubNode(node_key(0), answer=answer_stream(huge, (1, 1), pieces=1 << 15)))
        status, _, body = await read_stream(world, chat())
        assert status == 502
        assert b"EMC-1710" in body


async def test_drained_hub_ends_a_stream_with_its_end(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        slow = answer_stream(EVENTS, USED, pause_s=0.03)
        await world.add_node(StubNode(node_key(0), answer=slow))
        bodies: list[bytes] = []

        async def one() -> None:
            bodies.append((await read_stream(world, chat()))[2])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await world.until(lambda: world.plane.gateway.active == 1)
            await world.role.drain()
        assert bodies[0].endswith(b"data: [DONE]\n\n")


async def test_slow_reader_does_not_hold_up_others(tmp_path: Path) -> None:
    big = chat_events(["x" * 20_000] * 200)
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_stream(big, (7, 200))))
        headers = {"authorization": f"Bearer {world.api_key}"}
        body = msgspec.json.encode(chat())
        with trio.fail_after(15):
            async with stream("POST", world.url + CHAT, headers=headers, body=body) as stuck:
                assert stuck.status == 200
                for _ in range(3):
                    _, _, received = await read_stream(world, chat())
                    assert received.endswith(b"data: [DONE]\n\n")
