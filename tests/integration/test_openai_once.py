"""Idempotency-Key: the same request once, whatever happens between; another one never under the same key."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.clock import ManualClock
from emcd.errors import EmcdError
from emcd.ledger import open_ledger
from emcd.net.http_client import Response, request
from emcd.net.http_stream import stream
from emcd.proto.hashing import keccak
from emcd.proto.openai_shape import Once
from emcd.proto.records import CallStatus
from emcd_hub.calls.once import OnceDesk
from emcd_hub.calls.once_writes import OnceWrites
from emcd_hub.records.once_row import REMEMBERED_MS, find_once
from emcd_hub.role import SPEC
from tests.support.hub_stall import answer_when_cancelled, stalled
from tests.support.hub_world import (
    StubNode,
    answer_embedding,
    embedding_body,
    fetch_receipt,
    node_key,
    post,
    running_world,
)
from tests.support.openai_world import OpenAIWorld, openai_world
from tests.support.toy_engine import MODEL

EMBEDDINGS = "/v1/embeddings"
CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "input": "x"}
STREAM = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[OpenAIWorld]:
    async with openai_world(tmp_path, granted_micro=10**9, idempotency_wait_s=0.3) as made:
        yield made


def error_of(answer: Response) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["emc_code"]


async def balance(world: OpenAIWorld) -> int:
    return sum(await world.hub.balances())


async def test_same_request_again_gets_the_same_answer_and_is_charged_once(world: OpenAIWorld) -> None:
    first = await world.post(EMBEDDINGS, BODY, idempotency_key="k")
    left = await balance(world)
    again = await world.post(EMBEDDINGS, b'{ "input" : "x", "model": "toy" }', idempotency_key="other")
    assert "x-emc-idempotent-replay" not in again.headers
    again = await world.post(EMBEDDINGS, b' {"model": "toy",  "input":"x"} ', idempotency_key="k")
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["x-emc-idempotent-replay"] == "true"
    for name in ("x-emc-call-id", "x-emc-node", "x-emc-credits", "content-type"):
        assert again.headers[name] == first.headers[name]
    assert len(world.engine.seen) == 2
    assert await balance(world) == left - (10**9 - left)


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
async def test_key_that_is_none_is_refused(world: OpenAIWorld, key: str) -> None:
    answer = await world.post(EMBEDDINGS, BODY, idempotency_key=key)
    assert error_of(answer) == (400, "EMC-1702")
    assert answer.json()["error"]["param"] == "idempotency-key"


async def test_key_for_another_request_is_refused(world: OpenAIWorld) -> None:
    await world.post(EMBEDDINGS, BODY, idempotency_key="k")
    for path, body in (
        (EMBEDDINGS, {**BODY, "input": "y"}),
        ("/v1/completions", {"model": MODEL, "prompt": "x"}),
    ):
        assert error_of(await world.post(path, body, idempotency_key="k")) == (422, "EMC-1718")
    assert len(world.engine.seen) == 1


async def test_key_is_the_accounts_own(world: OpenAIWorld) -> None:
    await world.post(EMBEDDINGS, BODY, idempotency_key="k")
    account = await world.hub.plane.office.create_account("other")
    await world.hub.plane.office.grant(account.account_id, 10**9, "g", "")
    key = await world.hub.plane.office.keys.create_key(account.account_id, "")
    other = {**BODY, "input": "other"}
    headers = {"authorization": f"Bearer {key.secret}", "idempotency-key": "k"}
    answer = await request("POST", world.hub.url + EMBEDDINGS, json=other, headers=headers)
    assert answer.status == 200
    assert "x-emc-idempotent-replay" not in answer.headers


async def test_form_sent_again_with_another_boundary_is_the_same_request(world: OpenAIWorld) -> None:
    answers = []
    for boundary in ("one", "two"):
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{MODEL}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nsound\r\n'
            f"--{boundary}--\r\n"
        ).encode()
        kind = f"multipart/form-data; boundary={boundary}"
        path = "/v1/audio/transcriptions"
        answers.append(await world.post(path, body, content_type=kind, idempotency_key="k"))
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[1].headers["x-emc-call-id"] == answers[0].headers["x-emc-call-id"]
    assert len(world.engine.seen) == 1


async def test_call_that_failed_frees_its_key(world: OpenAIWorld) -> None:
    world.engine.broken["/embeddings"] = (500, "application/json", [b"{}"])
    assert (await world.post(EMBEDDINGS, BODY, idempotency_key="k")).status == 502
    world.engine.broken["/embeddings"] = (400, "application/json", [b'{"error":{"message":"no"}}'])
    assert (await world.post(EMBEDDINGS, BODY, idempotency_key="k")).status == 400
    world.engine.broken.clear()
    answer = await world.post(EMBEDDINGS, {**BODY, "input": "another"}, idempotency_key="k")
    assert answer.status == 200
    assert "x-emc-idempotent-replay" not in answer.headers


async def test_stream_is_not_done_again(world: OpenAIWorld) -> None:
    _, headers, body = await world.read(CHAT, STREAM, idempotency_key="k")
    assert body.endswith(b"data: [DONE]\n\n")
    again = await world.post(CHAT, STREAM, idempotency_key="k")
    assert error_of(again) == (409, "EMC-1717")
    assert headers["x-emc-call-id"] in again.json()["error"]["message"]
    assert again.headers["x-should-retry"] == "false"
    assert len(world.engine.seen) == 1


async def test_stream_that_was_left_and_paid_for_is_not_done_again(world: OpenAIWorld) -> None:
    world.engine.endless = True
    headers = {"authorization": f"Bearer {world.hub.api_key}", "idempotency-key": "k"}
    raw = msgspec.json.encode(STREAM)
    async with stream("POST", world.hub.url + CHAT, headers=headers, body=raw) as answer:
        async for piece in answer:
            if b"choices" in piece:
                break
    await world.hub.until(lambda: world.hub.plane.gateway.active == 0)
    (row,) = await world.rows()
    assert row.status is CallStatus.CANCELLED
    assert error_of(await world.post(CHAT, STREAM, idempotency_key="k")) == (409, "EMC-1717")


async def test_repeated_key_is_not_charged_again_after_a_restart(tmp_path: Path) -> None:
    """The answer is gone with the process, the fact is not."""
    body = {"model": "stub-model", "input": "x"}
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        headers = {"authorization": f"Bearer {world.api_key}", "idempotency-key": "k"}
        first = await request("POST", world.url + EMBEDDINGS, json=body, headers=headers)
        assert first.status == 200
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0)))
        headers = {"authorization": f"Bearer {world.api_key}", "idempotency-key": "k"}
        again = await request("POST", world.url + EMBEDDINGS, json=body, headers=headers)
        assert error_of(again) == (409, "EMC-1717")
        assert first.headers["x-emc-call-id"] in again.json()["error"]["message"]
        other = await request("POST", world.url + EMBEDDINGS, json={**body, "input": "y"}, headers=headers)
        assert error_of(other) == (422, "EMC-1718")
        assert node.calls == 0


async def test_same_key_at_once_does_the_work_once(tmp_path: Path) -> None:
    going, answers = trio.Event(), []

    async def slow(node: StubNode, call: Any, meta: Any) -> None:
        await going.wait()
        await answer_embedding(node, call, meta)

    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0), answer=slow))

        async def ask() -> None:
            headers = {"authorization": f"Bearer {world.api_key}", "idempotency-key": "k"}
            body = {"model": "stub-model", "input": "x"}
            answers.append(await request("POST", world.url + EMBEDDINGS, json=body, headers=headers))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            await world.until(lambda: node.calls == 1)
            going.set()
        assert node.calls == 1
        assert {answer.status for answer in answers} == {200}
        assert len({answer.headers["x-emc-call-id"] for answer in answers}) == 1
        assert sum("x-emc-idempotent-replay" in answer.headers for answer in answers) == 19


async def test_key_at_work_for_too_long_is_409_and_another_request_422_at_once(tmp_path: Path) -> None:
    async def stuck(node: StubNode, call: Any, meta: Any) -> None:
        await trio.sleep_forever()

    async with running_world(tmp_path, idempotency_wait_s=0.2) as world:
        node = await world.add_node(StubNode(node_key(0), answer=stuck))
        headers = {"authorization": f"Bearer {world.api_key}", "idempotency-key": "k"}
        ask = partial(request, "POST", world.url + EMBEDDINGS, headers=headers)
        body = {"model": "stub-model", "input": "x"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(ask, json=body))
            await world.until(lambda: node.calls == 1)
            busy = await ask(json=body)
            assert (*error_of(busy), busy.headers["retry-after"]) == (409, "EMC-1719", "1")
            assert error_of(await ask(json={**body, "input": "y"})) == (422, "EMC-1718")
            nursery.cancel_scope.cancel()


async def test_answers_are_kept_within_their_memory_and_for_a_day(tmp_path: Path) -> None:
    """What is thrown away is a 409 then, or, after a day, free."""
    clock = ManualClock()

    class Sink:
        begun = False
        status = 0

        async def whole(self, status: int, headers: Any, body: bytes) -> None:
            self.status = status

        begin = more = end = None

    async with open_ledger(tmp_path / "ledger.db", {"hub": SPEC.migrations}) as ledger:
        desk = OnceDesk(ledger, clock, OnceWrites(), max_bytes=100_000, wait_s=0.1)
        done: list[int] = []

        async def run(number: int, size: int = 1000) -> int:
            async def work(reply: Any) -> None:
                done.append(number)
                await reply.whole(200, [(b"x-emc-call-id", b"c")], bytes(size))

            sink: Any = Sink()
            await desk.run(Once(bytes(31) + bytes([number]), bytes(32)), sink, work)
            return int(sink.status)

        for number in range(100):
            assert await run(number) == 200
        assert desk._bytes <= 100_000
        await run(99)
        assert done.count(99) == 1
        await run(0)
        assert done.count(0) == 2  # nothing of it in this ledger: no call was recorded
        await run(200, size=50_000)
        await run(200, size=50_000)
        assert done.count(200) == 2  # too large to be kept
        clock.advance(REMEMBERED_MS // 1000 + 1)
        await desk.sweep()
        assert (desk._bytes, len(desk._answers)) == (0, 0)
        assert await ledger.read(lambda con: find_once(con, bytes(32), 0)) is None


async def test_key_stays_at_work_until_its_late_row_is_written(tmp_path: Path) -> None:
    """A retry behind the ledger's deadline finds the key taken, then used up: it is never charged twice."""
    body = {"model": "stub-model", "input": "x"}
    async with running_world(tmp_path, idempotency_wait_s=0.2) as world:
        await world.add_node(StubNode(node_key(0)))
        gateway = world.plane.gateway
        gateway._limits = dataclasses.replace(gateway._limits, record_timeout_s=0.2)
        before = await world.balances()
        async with stalled(world) as go:
            late = await post(world, body, idempotency_key="k")
            busy = await post(world, body, idempotency_key="k")
            assert [error_of(late), error_of(busy)] == [(500, "EMC-1781"), (409, "EMC-1719")]
            go.set()
        gateway._limits = dataclasses.replace(gateway._limits, record_timeout_s=20.0)
        with trio.fail_after(10):
            while not await world.rows("SELECT 1 FROM hub_calls"):
                await trio.sleep(0.01)
        desk: Any = world.role._once
        await world.until(lambda: not desk._at_work)
        again = await post(world, body, idempotency_key="k")
        assert error_of(again) == (409, "EMC-1717")
        assert await world.balances() == (before[0] - 50_000, 0)


async def test_key_whose_row_the_ledger_refuses_late_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise EmcdError("EMC-1790", "not this one")

    body = {"model": "stub-model", "input": "x"}
    async with running_world(tmp_path, idempotency_wait_s=10.0) as world:
        await world.add_node(StubNode(node_key(0)))
        with monkeypatch.context() as patch:
            patch.setattr("emcd_hub.calls.recorder.insert_calls_once", refuse)
            assert error_of(await post(world, body, idempotency_key="k"))[0] == 500
        assert (await post(world, body, idempotency_key="k")).status == 200
        assert len(await world.rows("SELECT 1 FROM hub_calls")) == 1


async def test_second_row_of_a_key_fails_alone_for_a_day(tmp_path: Path) -> None:
    """Whatever let it come so far: the ledger charges for a key once."""
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        body = {"model": "stub-model", "input": "x"}
        assert (await post(world, body, idempotency_key="k")).status == 200
        left = await world.balances()
        desk: Any = world.role._once
        desk._answers.clear()
        desk._answer_again = forget
        assert error_of(await post(world, body, idempotency_key="k")) == (500, "EMC-1790")
        assert await world.balances() == left
        account = world.plane.book.find(world.account_id)
        assert (account.granted_micro, account.reserved_micro) == left
        await world.ledger.write(
            lambda con: con.execute(f"UPDATE hub_once SET at_ms = at_ms - {REMEMBERED_MS + 60_000}").rowcount
        )
        assert (await post(world, body, idempotency_key="k")).status == 200
        assert len(await world.rows("SELECT 1 FROM hub_calls")) == 2
        assert len(await world.rows("SELECT 1 FROM hub_once")) == 1


async def forget(*args: Any) -> bool:
    """A desk that knows nothing of a key."""
    return False


async def test_answer_that_its_client_did_not_wait_for_is_kept_for_its_retry(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0), answer=answer_when_cancelled))
        body = {"model": "stub-model", "input": "x"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(post, world, body, idempotency_key="k"))
            await world.until(lambda: node.calls == 1)
            nursery.cancel_scope.cancel()
        await world.until(lambda: world.plane.gateway.active == 0)
        left = await world.balances()
        again = await post(world, body, idempotency_key="k")
        assert (again.status, again.body) == (200, embedding_body())
        assert (again.headers["x-emc-idempotent-replay"], again.headers["x-emc-credits"]) == (
            "true",
            "0.050000",
        )
        assert await world.rows("SELECT status, granted_micro FROM hub_calls") == [(CallStatus.OK, 50_000)]
        assert await world.balances() == left
        receipt = await fetch_receipt(world, again.headers["x-emc-call-id"])
        assert receipt.delivery.body_hash == keccak(again.body)
