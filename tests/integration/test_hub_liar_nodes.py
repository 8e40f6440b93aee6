"""Nodes that lie, babble or break the protocol: the lie costs them, never the hub or the client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.errors import RemoteProtocolError
from emcd.inference.manifest import EmbeddingManifest, EngineManifest
from emcd.net.http_client import Response, request
from emcd.net.tunnel import run_tunnel
from emcd.proto.control import (
    BatchMessage,
    CallEnd,
    NoticeMessage,
    ProofMessage,
    ResponseHead,
    StatusMessage,
    encode,
)
from emcd.proto.hashing import keccak
from emcd.proto.records import CallStatus, Receipt, RecordKind
from emcd.testing import make_key
from tests.support.hub_world import (
    DOMAIN,
    HUB_KEY,
    MODEL,
    HubWorld,
    StubNode,
    answer_with,
    embedding_body,
    node_key,
    running_world,
)

BODY = {"model": MODEL, "input": "hello"}
replace = msgspec.structs.replace


async def post(world: HubWorld, **fields: Any) -> Response:
    headers = {"authorization": f"Bearer {world.api_key}"}
    return await request(
        "POST", world.url + "/v1/embeddings", json={**BODY, **fields}, headers=headers, timeout_s=20
    )


LIES: dict[str, Callable[[Receipt], Receipt]] = {
    "another call": lambda r: replace(r, forward_hash=keccak(b"another")),
    "another answer": lambda r: replace(r, response_hash=keccak(b"another")),
    "another status": lambda r: replace(r, http_status=201),
    "more tokens than its answer says": lambda r: replace(r, input_tokens=r.input_tokens + 1),
    "tokens out of nothing": lambda r: replace(r, output_tokens=7),
}


@pytest.mark.parametrize("lie", LIES)
async def test_lying_receipt_counts_as_failure_and_is_retried(tmp_path: Path, lie: str) -> None:
    async with running_world(tmp_path, granted_micro=10**9) as world:
        liar = await world.add_node(StubNode(node_key(0), capacity=999, edit_receipt=LIES[lie]))
        good = await world.add_node(StubNode(node_key(1), capacity=1))
        answer = await post(world)
        assert (answer.status, answer.headers["x-emc-node"]) == (200, good.key.address)
        rows = await world.rows(
            "SELECT node, status, receipt IS NULL, granted_micro FROM hub_calls ORDER BY call_seq"
        )
        assert rows[0] == (liar.key.address, int(CallStatus.NODE_ERROR), 1, 0)
        assert rows[1][:2] == (good.key.address, int(CallStatus.OK))


async def test_inflated_usage_is_bounded_by_the_request(tmp_path: Path) -> None:
    """Answer and receipt agree on a million tokens for five bytes: the request bounds both."""
    async with running_world(tmp_path, granted_micro=10**15) as world:
        body = embedding_body(1_000_000)
        liar = StubNode(node_key(0), answer=answer_with(200, body, (1_000_000, 0)))
        await world.add_node(liar)
        assert (await post(world)).status == 502
        assert await world.balances() == (10**15, 0)


async def test_inflated_output_without_a_bound_is_refused(tmp_path: Path) -> None:
    """One letter for 2**53 tokens, in a request without max_tokens: nothing is charged."""
    async with running_world(tmp_path, granted_micro=10**15) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_with(200, b"x", (1, 2**53))))
        headers = {"authorization": f"Bearer {world.api_key}"}
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        answer = await request("POST", world.url + "/v1/chat/completions", json=chat, headers=headers)
        assert answer.status == 502
        assert await world.balances() == (10**15, 0)


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens", "started_at_ms", "finished_at_ms"])
async def test_negative_number_in_a_receipt_is_retried_elsewhere(tmp_path: Path, field: str) -> None:
    async def negative(node: StubNode, call: Any, meta: Any) -> None:
        body = b"{}"
        await call.start(encode(ResponseHead(200, "application/json")))
        await call.send(body)
        receipt = Receipt(meta.forward.struct_hash(), keccak(body), 200, 5, 0, 1, 2)
        await call.finish(encode(CallEnd(replace(receipt, **{field: -1}))))

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), capacity=999, answer=negative))
        good = await world.add_node(StubNode(node_key(1), capacity=1))
        got = await post(world)
        assert (got.status, got.headers["x-emc-node"]) == (200, good.key.address)
        memory = world.plane.book.find(world.account_id)
        assert (memory.granted_micro, memory.vault_micro) == await world.balances()


async def test_receipt_with_a_wrong_clock_serves_and_does_not_count(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        late = StubNode(
            node_key(0), edit_receipt=lambda r: replace(r, finished_at_ms=r.finished_at_ms + 60_000)
        )
        await world.add_node(late)
        assert (await post(world)).status == 200
        assert await world.rows("SELECT fault, status FROM hub_calls") == [("clock", 0)]


async def garbage_head(node: StubNode, call: Any, meta: Any) -> None:
    await call.start(b"\xc1garbage")
    await call.finish(b"")


async def garbage_end(node: StubNode, call: Any, meta: Any) -> None:
    await call.start(encode(ResponseHead(200, "application/json")))
    await call.send(embedding_body())
    await call.finish(b"\x93\x01")


async def strange_status(node: StubNode, call: Any, meta: Any) -> None:
    body = b"{}"
    await call.start(encode(ResponseHead(302, "text/html")))
    await call.send(body)
    await node.finish(call, meta, keccak(body), 302, (0, 0))


async def refuses(node: StubNode, call: Any, meta: Any) -> None:
    await call.fail("EMC-2010", "out of memory")


async def raises(node: StubNode, call: Any, meta: Any) -> None:
    raise RuntimeError("bug")


async def short_receipt(node: StubNode, call: Any, meta: Any) -> None:
    body = embedding_body()
    await call.start(encode(ResponseHead(200, "application/json")))
    await call.send(body)
    await call.finish(encode(CallEnd(Receipt(b"short", b"", 200, 5, 0, 1, 2))))


@pytest.mark.parametrize(
    "answer", [garbage_head, garbage_end, strange_status, refuses, raises, short_receipt]
)
async def test_broken_answer_is_retried_elsewhere(tmp_path: Path, answer: Any) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), capacity=999, answer=answer))
        good = await world.add_node(StubNode(node_key(1), capacity=1))
        got = await post(world)
        assert (got.status, got.headers["x-emc-node"]) == (200, good.key.address)


async def test_answer_beyond_the_bound_is_a_failure(tmp_path: Path) -> None:
    async with running_world(tmp_path, answer_bytes=100_000) as world:
        await world.add_node(StubNode(node_key(0), answer=answer_with(200, b"x" * 200_000)))
        assert (await post(world)).status == 502


async def test_content_type_of_a_node_never_becomes_html(tmp_path: Path) -> None:
    async def html(node: StubNode, call: Any, meta: Any) -> None:
        body = b"<script>alert(1)</script>"
        await call.start(encode(ResponseHead(200, "text/html\r\nset-cookie: a=b")))
        await call.send(body)
        await node.finish(call, meta, keccak(body), 200, (1, 0))

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=html))
        answer = await post(world)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert "set-cookie" not in answer.headers


# What a node says of itself


def by_another_key(node: StubNode, message: StatusMessage) -> StatusMessage:
    return replace(message, signature=make_key("stranger").sign(DOMAIN, message.status))


STATUS_LIES: dict[str, tuple[str, dict[str, Any]]] = {
    "for another hub": ("EMC-1720", {"hub": make_key("other hub").address}),
    "of another node": ("EMC-1720", {"node": make_key("other node").address}),
    "old sequence": ("EMC-1721", {"sequence": 0}),
    "from the past": ("EMC-1722", {"sent_at_ms": 1_700_000_000_000}),
    "models twice": ("EMC-1723", {"models": (keccak(b"m"), keccak(b"m"))}),
    "endless capacity": ("EMC-1723", {"capacity": 1_000_000}),
    "long text": ("EMC-1723", {"gpu": "x" * 1000}),
    "model without manifest": ("EMC-1724", {"models": (keccak(b"m"),)}),
}


@pytest.mark.parametrize("lie", STATUS_LIES)
async def test_wrong_status_is_refused_with_its_code(tmp_path: Path, lie: str) -> None:
    code, changes = STATUS_LIES[lie]
    async with running_world(tmp_path) as world:
        node = await world.add_node(
            StubNode(node_key(0), edit_status=lambda s: replace(s, **changes)), online=False
        )
        await world.until(lambda: node.notices)
        assert node.notices[0].code == code
        assert not world.is_online(node)
        assert (await post(world)).status == 404


async def send(world: HubWorld, node: StubNode, message: Any) -> str:
    """Send a control message and return the code of the notice that answers it."""
    assert node.link is not None
    before = len(node.notices)
    await node.link.send_control(message if isinstance(message, bytes) else encode(message))
    await world.until(lambda: len(node.notices) > before)
    return node.notices[-1].code


async def test_replayed_and_foreign_statuses_are_refused(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        seen: list[StatusMessage] = []
        node = StubNode(node_key(0))
        await world.add_node(node)
        entry = world.plane.board.find(node.key.address)
        status = entry.status
        replay = StatusMessage(status, node.key.sign(DOMAIN, status), ())
        assert await send(world, node, replay) == "EMC-1721"
        newer = replace(status, sequence=status.sequence + 1)
        assert (
            await send(world, node, StatusMessage(newer, make_key("stranger").sign(DOMAIN, newer), ()))
            == "EMC-1495"
        )
        assert await send(world, node, StatusMessage(newer, b"", ())) == "EMC-1494"
        assert await send(world, node, StatusMessage(newer, b"\0" * 65, ())) == "EMC-1494"
        assert (
            await send(world, node, StatusMessage(newer, node.key.sign(DOMAIN, newer), (b"{}",)))
            == "EMC-1724"
        )
        assert (await post(world)).status == 200
        assert not seen


@pytest.mark.parametrize(
    "changes",
    [{"sequence": -1}, {"sent_at_ms": -1}, {"capacity": -1}, {"in_flight": -1}, {"in_flight": 2**32},
     {"capacity": 2**40}, {"models": (b"short",)}],
)  # fmt: skip
async def test_status_that_can_not_be_hashed_is_a_fault_of_the_node(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0)))
        status = world.plane.board.find(node.key.address).status
        bad = replace(status, **{"sequence": status.sequence + 1, **changes})
        assert await send(world, node, StatusMessage(bad, b"\0" * 65, ())) == "EMC-1723"
        assert (await post(world)).status == 200


async def test_batch_that_can_not_be_hashed_is_a_fault_of_the_node(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node, hashes = await quiet_node(world)
        good = node.make_batch(hashes)
        bad = BatchMessage(replace(good.batch, signed_at_ms=-1), good.signature, hashes)
        assert await send(world, node, bad) == "EMC-1725"


async def test_node_that_comes_with_ever_new_models_is_held_back(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0)))
        for number in range(12):
            node.manifests = (EngineManifest(name=f"m{number}"),)
            await node.send_status()
        await world.until(lambda: len(node.notices) == 5)
        assert {notice.code for notice in node.notices} == {"EMC-1729"}
        assert len(world.plane.board._known) == 8
        assert node.link is not None
        assert not node.link.closed.is_set()


@pytest.mark.parametrize(
    "raw",
    [
        encode(NoticeMessage("x", "abc")).replace(b"abc", b"\xff" * 3),
        b"",
        b"\xc1",
        b"\x80",
        b"garbage" * 100,
        encode(ProofMessage((), ())),
    ],
)
async def test_garbage_control_messages_are_answered_and_survived(tmp_path: Path, raw: bytes) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0)))
        assert await send(world, node, raw) in ("EMC-1498", "EMC-1727")
        assert (await post(world)).status == 200


async def test_node_that_goes_on_babbling_is_disconnected(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0)))
        assert node.link is not None
        for _ in range(40):
            if node.link.closed.is_set():
                break
            try:
                await node.link.send_control(b"\xc1")
            except Exception:
                break
            await trio.sleep(0.01)
        await world.until(lambda: world.plane.board.find(node.key.address) is None)


async def test_node_not_on_the_list_is_not_admitted(tmp_path: Path) -> None:
    stranger = StubNode(make_key("stranger"))
    async with running_world(tmp_path) as world:
        with pytest.raises(RemoteProtocolError) as refused:
            await run_tunnel(
                f"ws://127.0.0.1:{world.role.ports['tunnel']}",
                key=stranger.key,
                domain=DOMAIN,
                hub_address=HUB_KEY.address,
                on_call=stranger.on_call,
                on_control=stranger.on_control,
            )
        assert refused.value.code == "EMC-1407"
        assert world.plane.board.list_entries() == []


async def test_manifest_of_another_hash_is_not_served_by_a_name_that_is_tied(tmp_path: Path) -> None:
    from emcd.types import Hash

    async with running_world(tmp_path, manifests={MODEL: (Hash(keccak(b"the true one")),)}) as world:
        node = await world.add_node(StubNode(node_key(0), manifests=(EngineManifest(name=MODEL),)))
        await world.until(lambda: node.notices)
        assert node.notices[0].code == "EMC-1728"
        assert (await post(world)).status == 404


async def test_embedding_manifest_serves_embeddings_only(tmp_path: Path) -> None:
    manifest = EmbeddingManifest(name="embedder", files={}, graph="g", dimension=3, max_tokens=4)
    async with running_world(tmp_path) as world:
        await world.add_node(
            StubNode(node_key(0), manifests=(manifest,), answer=answer_with(200, embedding_body(4), (4, 0)))
        )
        assert (await post(world, model="embedder")).status == 200
        headers = {"authorization": f"Bearer {world.api_key}"}
        chat = {"model": "embedder", "messages": [{"role": "user", "content": "hi"}]}
        answer = await request("POST", world.url + "/v1/chat/completions", json=chat, headers=headers)
        assert answer.status == 404


# Batches of receipts


async def quiet_node(world: HubWorld) -> tuple[StubNode, tuple[bytes, ...]]:
    """A node that has done two calls and sent no batch."""
    node = await world.add_node(StubNode(node_key(0), batching=False))
    for _ in range(2):
        await post(world)
    return node, tuple(node.receipts)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": int(RecordKind.DELIVERY)},
        {"signer": make_key("stranger").address},
        {"root": keccak(b"another root")},
        {"count": 3},
        {"signed_at_ms": 2**50},
    ],
)
async def test_wrong_batch_is_refused_and_nothing_stored(tmp_path: Path, changes: dict[str, Any]) -> None:
    async with running_world(tmp_path) as world:
        node, hashes = await quiet_node(world)
        assert await send(world, node, node.make_batch(hashes, **changes)) == "EMC-1725"
        owner = node.key.address
        assert await world.rows(f"SELECT count(*) FROM hub_batches WHERE signer = '{owner}'") == [(0,)]


async def test_batch_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node, hashes = await quiet_node(world)
        good = node.make_batch(hashes)
        forged = BatchMessage(good.batch, make_key("stranger").sign(DOMAIN, good.batch), hashes)
        assert await send(world, node, forged) == "EMC-1495"
        empty = BatchMessage(good.batch, b"", hashes)
        assert await send(world, node, empty) == "EMC-1494"
        assert await send(world, node, node.make_batch((hashes[0], hashes[0]))) == "EMC-1725"


async def test_batch_of_receipts_nobody_awaits_is_not_stored(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node, hashes = await quiet_node(world)
        assert node.link is not None
        await node.link.send_control(encode(node.make_batch((keccak(b"made up"),))))
        await node.link.send_control(encode(node.make_batch(hashes)))
        owner = node.key.address
        with trio.fail_after(5):
            while await world.rows(f"SELECT count(*) FROM hub_batches WHERE signer = '{owner}'") != [(1,)]:
                await trio.sleep(0.02)
        assert world.plane.desk.count_owed() == 0
        await node.link.send_control(encode(node.make_batch(hashes)))
        await trio.sleep(0.2)
        assert await world.rows(f"SELECT count(*) FROM hub_batches WHERE signer = '{owner}'") == [(1,)]


async def test_node_cannot_bring_another_nodes_receipts(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        _, hashes = await quiet_node(world)
        thief = await world.add_node(StubNode(node_key(1), batching=False))
        assert thief.link is not None
        await thief.link.send_control(encode(thief.make_batch(hashes)))
        await trio.sleep(0.2)
        assert world.plane.desk.count_owed() == 2
