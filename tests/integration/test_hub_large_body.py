"""Large bodies and answers: read and judged beside the loop, and refused unread where that can be said before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.net.http_client import request
from emcd.proto.hashing import keccak
from emcd.proto.openai import read_request
from emcd.proto.records import CallStatus
from emcd_hub.billing.key_limits import KeyLimits
from emcd_hub.calls.answer import judge_answer
from emcd_hub.calls.context import NodeFault
from tests.support.hub_world import (
    MODEL,
    HubWorld,
    StubNode,
    answer_with,
    embedding_body,
    fetch_receipt,
    node_key,
    post,
    running_world,
)

LARGE = {"model": MODEL, "input": "word " * 120_000}


async def send_head(world: HubWorld, secret: str, size: int) -> bytes:
    """What a client is told that has sent nothing of its body yet."""
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    )
    conn = await trio.open_tcp_stream("127.0.0.1", world.role.ports["public"])
    async with conn:
        await conn.send_all(head.encode() + b"{")
        with trio.fail_after(5):
            return bytes(await conn.receive_some(65536))


async def test_large_body_is_read_in_a_thread_and_a_small_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def reading(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return read_request(*args, **options)

    monkeypatch.setattr("emcd_hub.api.public.read_request", reading)
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        small, large = await post(world), await post(world, LARGE)
        assert (small.status, large.status) == (200, 200)
        assert [thread is threading.main_thread() for thread in threads] == [True, False]
        assert large.headers["x-emc-credits"] == small.headers["x-emc-credits"]


async def test_account_without_credit_is_refused_before_its_body(tmp_path: Path) -> None:
    async with running_world(tmp_path, granted_micro=0) as world:
        await world.add_node(StubNode(node_key(0)))
        answer = await send_head(world, world.api_key, 4_000_000)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"insufficient_quota" in answer


async def test_key_past_its_requests_is_refused_before_its_body(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        keys = world.plane.office.keys
        made = await keys.create_key(world.account_id, "x", KeyLimits(requests_per_minute=1))
        headers = {"authorization": f"Bearer {made.secret}"}
        url = world.url + "/v1/embeddings"
        first = await request("POST", url, json={"model": MODEL, "input": "x"}, headers=headers)
        assert first.status == 200  # what is asked before the body is not counted
        answer = await send_head(world, made.secret, 4_000_000)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"EMC-1784" in answer


@pytest.mark.parametrize("size", [0, 2 << 20])
async def test_large_answer_is_judged_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    threads = []

    def judging(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return judge_answer(*args)

    for module in ("whole_call", "answer"):  # small ones, and those that are judged aside
        monkeypatch.setattr(f"emcd_hub.calls.{module}.judge_answer", judging)
    body = msgspec.json.encode({**msgspec.json.decode(embedding_body()), "pad": "x" * size})
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_with(200, body, (5, 0))))
        headers = {"authorization": f"Bearer {world.api_key}"}
        ask = {"model": MODEL, "input": "x"}
        url = world.url + "/v1/embeddings"
        answer = await request("POST", url, json=ask, headers=headers, max_bytes=4 << 20)
        assert (answer.status, answer.body) == (200, body)
        assert [thread is threading.main_thread() for thread in threads] == [size == 0]
        receipt = await fetch_receipt(world, answer.headers["x-emc-call-id"])
        assert receipt.delivery.body_hash == keccak(body)


async def test_large_answer_that_is_judged_wrong_is_the_nodes_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judging(*args: Any) -> Any:
        raise NodeFault("receipt", "it lies")

    for module in ("whole_call", "answer"):  # small ones, and those that are judged aside
        monkeypatch.setattr(f"emcd_hub.calls.{module}.judge_answer", judging)
    async with running_world(tmp_path, max_attempts=1) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_with(200, bytes(2 << 20), (5, 0))))
        answer = await post(world)
        assert answer.status == 502
        rows = await world.rows("SELECT status, granted_micro, fault FROM hub_calls")
        assert rows == [(CallStatus.NODE_ERROR, 0, "receipt: it lies")]
        account = world.plane.book.find(world.account_id)
        assert (account.reserved_micro, account.calls) == (0, 0)


async def test_unfinished_bodies_hold_no_more_than_all_may_together(tmp_path: Path) -> None:
    """JSON counts like files; what is given up is free again."""
    async with running_world(tmp_path, bodies_bytes=5 << 20) as world:
        await world.add_node(StubNode(node_key(0)))
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.api_key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {4 << 20}\r\n\r\n"
        ).encode()
        before = await trio.open_tcp_stream("127.0.0.1", world.role.ports["public"])
        async with before:
            await before.send_all(head + b"x" * 100_000)
            await trio.sleep(0.1)
            answer = await send_head(world, world.api_key, 4 << 20)
            assert answer.startswith((b"HTTP/1.1 429 ", b"HTTP/1.1 503 "))
            assert b"too many large requests" in answer
            assert (await post(world)).status == 200
        with trio.fail_after(10):
            while (await post(world, {**LARGE, "input": "word " * 800_000})).status != 200:
                await trio.sleep(0.05)
