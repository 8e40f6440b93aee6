"""The node with a real model, against a hub that is honest, away, lying or impatient."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

from emcd.clock import SystemClock
from emcd.config import KeyFile
from emcd.errors import ConfigError, RecoverableError
from emcd.inference.embedder import REFERENCE, Embedder, EmbedResult
from emcd.inference.manifest import decode_manifest, model_hash
from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME, ModelFiles
from emcd.ledger import Ledger
from emcd.proto.control import NoticeMessage, ProofMessage, StatusMessage, StatusRequest, encode
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.records import RecordBatch, RecordKind, RecordProof, batch_root
from emcd.proto.signing import require_signer
from emcd.role import HealthState
from emcd.testing import make_context, make_key, running_role, temporary_ledger
from emcd.types import ZERO_ADDRESS
from emcd_node import queries
from emcd_node.config import ModelConfig, NodeConfig, RouterRef
from emcd_node.role import SPEC, NodeRole
from emcd_node.schema import MIGRATIONS
from tests.support.inference_model import fp32_files, int8_files, shared_models_dir
from tests.support.node_network import (
    CHAT,
    DEPLOYMENT,
    DOMAIN,
    HUB_KEY,
    NODE_KEY,
    TestHub,
    make_deployment,
    make_meta,
    poll_until,
    running_hub,
)

__all__ = ["fp32_files", "int8_files"]

KEY = KeyFile(Path("node.json"))
EMBEDDED = ModelConfig("embedded", MINILM_NAME)


@pytest.fixture
async def node_ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"node": MIGRATIONS}) as ledger:
        yield ledger


def _config(url: str, **fields: Any) -> NodeConfig:
    settings: dict[str, Any] = {
        "model": (EMBEDDED,),
        "models_dir": shared_models_dir(),
        "reconnect_max_s": 0.3,
    }
    return NodeConfig(KEY, HUB_KEY.address, url, **settings | fields)


@asynccontextmanager
async def running_node(ledger: Ledger, url: str, **fields: Any) -> AsyncIterator[NodeRole]:
    deployment = make_deployment(status_interval_ms=fields.pop("status_interval_ms", 200))
    context = make_context("node", ledger, deployment=deployment, clock=SystemClock(), keys={KEY: NODE_KEY})
    role = SPEC.build(_config(url, **fields))
    assert isinstance(role, NodeRole)
    async with running_role(role, context):
        yield role


def _embeddings(**fields: object) -> bytes:
    return msgspec.json.encode({"model": MINILM_NAME, **fields})


async def test_node_serves_embeddings_with_receipt_batch_and_status(
    fp32_files: ModelFiles, node_ledger: Ledger, nursery: trio.Nursery
) -> None:
    reference = Embedder(fp32_files, MINILM_MANIFEST, REFERENCE)
    await nursery.start(reference.run)
    texts = ["a question about stakes", "and a longer answer, " * 9]
    expected = await reference.embed(texts)
    assert isinstance(expected, EmbedResult)
    async with running_hub() as hub, running_node(node_ledger, hub.url) as node:
        plain = (await hub.call(_embeddings(input=texts))).require_sound()
        packed = (await hub.call(_embeddings(input=texts[0], encoding_format="base64"))).require_sound()
        assert (plain.status, plain.content_type) == (200, "application/json")
        vectors = np.array([item["embedding"] for item in plain.json()["data"]], np.float32)
        assert np.linalg.norm(vectors - expected.vectors, axis=1).max() < 1e-6
        packed_vector = np.frombuffer(base64.b64decode(packed.json()["data"][0]["embedding"]), "<f4")
        assert np.linalg.norm(packed_vector - expected.vectors[0]) < 1e-6
        assert plain.json()["usage"]["prompt_tokens"] == sum(expected.token_counts)
        assert plain.end.receipt.input_tokens == sum(expected.token_counts)
        assert plain.end.receipt.output_tokens == 0

        given = {answer.end.receipt.struct_hash() for answer in (plain, packed)}
        await hub.until(lambda: given <= hub.batched(), timeout_s=1)
        for message in hub.batches:
            require_signer(DOMAIN, message.batch, message.signature, NODE_KEY.address)
            assert message.batch.root == batch_root(message.record_hashes)
        await hub.until(lambda: len(hub.statuses) > 2)
        _check_statuses(hub.statuses)
        assert node.health().state is HealthState.READY


def _check_statuses(statuses: list[StatusMessage]) -> None:
    for message in statuses:
        require_signer(DOMAIN, message.status, message.signature, NODE_KEY.address)
        assert message.status.models == (model_hash(MINILM_MANIFEST),)
    assert [decode_manifest(data) for data in statuses[0].manifests] == [MINILM_MANIFEST]
    assert not any(message.manifests for message in statuses[1:])
    sequences = [message.status.sequence for message in statuses]
    assert sequences == sorted(set(sequences))


async def test_node_many_calls_at_once_each_get_their_own(
    fp32_files: ModelFiles, node_ledger: Ledger
) -> None:
    texts = [f"text number {number} " * (1 + number % 7) for number in range(24)]
    answers: dict[int, Any] = {}

    async def ask(hub: TestHub, number: int) -> None:
        answers[number] = (await hub.call(_embeddings(input=texts[number]))).require_sound().json()

    async with running_hub() as hub, running_node(node_ledger, hub.url):
        async with trio.open_nursery() as callers:
            for number in range(len(texts)):
                callers.start_soon(ask, hub, number)
        together = (await hub.call(_embeddings(input=texts))).json()
    for number, item in enumerate(together["data"]):
        alone = np.array(answers[number]["data"][0]["embedding"])
        assert np.linalg.norm(alone - np.array(item["embedding"])) < 1e-6


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", 400),
        (_embeddings(input=""), 400),
        (_embeddings(input=["x" * 40_000]), 400),
        (_embeddings(input=[1, 2]), 400),
    ],
)
async def test_node_request_at_fault_is_refused_with_a_receipt(
    fp32_files: ModelFiles, node_ledger: Ledger, body: bytes, status: int
) -> None:
    async with running_hub() as hub, running_node(node_ledger, hub.url):
        answer = (await hub.call(body)).require_sound()
        assert answer.status == status
        assert answer.json()["error"]["emc_code"] == "EMC-2005"
        await hub.until(lambda: answer.end.receipt.struct_hash() in hub.batched())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"node": make_key("other").address}, "EMC-2001"),
        ({"request_hash": bytes(32)}, "EMC-2001"),
        ({"started_at_ms": 1}, "EMC-2003"),
    ],
)
async def test_node_forward_that_does_not_fit_fails_without_a_receipt(
    fp32_files: ModelFiles, node_ledger: Ledger, changes: dict[str, Any], code: str
) -> None:
    body = _embeddings(input="x")
    async with running_hub() as hub, running_node(node_ledger, hub.url):
        meta = make_meta(body, **changes)
        with pytest.raises(RecoverableError) as caught:
            await hub.call(body, meta)
        assert caught.value.code == code
        row = await node_ledger.read(
            lambda con: queries.find_receipt(con, NODE_KEY.address, meta.forward.call_id)
        )
        assert row is None


async def test_node_restarted_gives_no_second_receipt_of_a_call(
    fp32_files: ModelFiles, node_ledger: Ledger
) -> None:
    body = _embeddings(input="x")
    meta = make_meta(body)
    async with running_hub() as hub:
        async with running_node(node_ledger, hub.url):
            await hub.call(body, meta)
        async with running_node(node_ledger, hub.url):
            with pytest.raises(RecoverableError) as caught:
                await hub.call(body, meta)
            assert caught.value.code == "EMC-2002"


async def test_node_hub_restarts_node_comes_back_and_brings_its_batches(
    fp32_files: ModelFiles, node_ledger: Ledger
) -> None:
    hub = TestHub()
    async with running_hub(hub=hub):
        port = hub.port
        async with trio.open_nursery() as nursery:
            started = trio.Event()
            done = trio.Event()

            async def run() -> None:
                async with running_node(node_ledger, hub.url) as node:
                    started.set()
                    await done.wait()
                    assert node.health().state is HealthState.READY

            nursery.start_soon(run)
            await started.wait()
            answer = await hub.call(_embeddings(input="x"))
            await hub.drop()  # before its batch is due
            hub.batches.clear()
            await hub.until(lambda: hub.peers == 2)
            await hub.until(lambda: answer.end.receipt.struct_hash() in hub.batched())
            assert hub.port == port
            assert (await hub.call(_embeddings(input="y"))).status == 200
            done.set()


async def test_node_hub_away_is_degraded_and_found_when_it_comes(
    fp32_files: ModelFiles, node_ledger: Ledger
) -> None:
    async with running_hub() as hub:
        port = hub.port
    async with running_node(node_ledger, f"ws://127.0.0.1:{port}") as node:
        await trio.sleep(0.1)
        assert node.health().state is HealthState.DEGRADED
        assert "hub" in node.health().reason
        async with running_hub(port=port) as hub:
            assert (await hub.call(_embeddings(input="x"))).status == 200
            assert node.health().state is HealthState.READY


async def test_node_wrong_hub_key_gets_nothing(fp32_files: ModelFiles, node_ledger: Ledger) -> None:
    async with running_hub(key=make_key("impostor")) as hub, running_node(node_ledger, hub.url) as node:
        await trio.sleep(0.3)
        assert hub.statuses == []
        assert node.health().state is HealthState.DEGRADED


async def test_node_replaced_by_another_with_its_key_does_not_fight(
    fp32_files: ModelFiles, node_ledger: Ledger, tmp_path: Path
) -> None:
    async with (
        temporary_ledger(tmp_path / "other", {"node": MIGRATIONS}) as second,
        running_hub() as hub,
        running_node(node_ledger, hub.url) as first,
    ):
        await hub.until(lambda: hub.peers == 1)
        async with running_node(second, hub.url):
            await hub.until(lambda: hub.peers == 2)
            await poll_until(lambda: "EMC-1410" in first.health().reason)
            await trio.sleep(0.7)
            assert hub.peers == 2


async def test_node_drain_finishes_calls_and_sends_their_receipts(
    fp32_files: ModelFiles, node_ledger: Ledger
) -> None:
    results: list[Any] = []

    async def ask(hub: TestHub) -> None:
        results.append(await hub.call(_embeddings(input=["some text " * 100] * 20)))

    async with running_hub() as hub, trio.open_nursery() as nursery:
        async with running_node(node_ledger, hub.url, status_interval_ms=60_000) as node:
            await hub.until(lambda: hub.peer)
            nursery.start_soon(ask, hub)
            await poll_until(lambda: node._calls.in_flight)
        # running_role drained it
        await hub.until(lambda: results)
        assert results[0].status == 200
        assert results[0].end.receipt.struct_hash() in hub.batched()
        assert hub.statuses[-1].status.capacity == 0
        assert node.health().state is HealthState.DRAINING


async def test_node_keeps_the_hubs_proofs_and_shows_its_notices(
    fp32_files: ModelFiles, node_ledger: Ledger
) -> None:
    async with running_hub() as hub, running_node(node_ledger, hub.url) as node:
        answer = await hub.call(_embeddings(input="x"))
        forward_hash = answer.meta.forward.struct_hash()
        tree = build_tree([record_leaf(forward_hash)])
        batch = RecordBatch(HUB_KEY.address, RecordKind.FORWARD, tree[0], 1, 1)
        proof = RecordProof(batch, HUB_KEY.sign(DOMAIN, batch), 0, tuple(build_proof(tree, 0)))
        assert hub.peer is not None
        await hub.peer.send_control(b"garbage")
        await hub.peer.send_control(encode(hub.statuses[0]))  # a node's message: not for a node
        await hub.peer.send_control(encode(ProofMessage((bytes(32),), (proof,))))
        await hub.peer.send_control(encode(ProofMessage((forward_hash,), (proof,))))
        await hub.peer.send_control(encode(NoticeMessage("EMC-1750", "sequence went back")))
        await poll_until(lambda: "sequence went back" in node.health().reason)
        kept = await node_ledger.read(lambda con: queries.find_proof(con, NODE_KEY.address, forward_hash))
        assert kept == msgspec.msgpack.encode(proof)
        assert (
            await node_ledger.read(lambda con: queries.find_proof(con, NODE_KEY.address, bytes(32))) is None
        )


async def test_node_cancelled_call_frees_its_place(fp32_files: ModelFiles, node_ledger: Ledger) -> None:
    body = _embeddings(input=["a long text " * 100] * 200)
    async with running_hub() as hub, running_node(node_ledger, hub.url, max_parallel_calls=1) as node:
        with trio.move_on_after(0.3):
            await hub.call(body)
        await poll_until(lambda: not node._calls.in_flight)
        assert (await hub.call(_embeddings(input="x"))).status == 200


async def test_node_cheating_demo_advertises_the_honest_model_and_serves_another(
    fp32_files: ModelFiles, int8_files: ModelFiles, node_ledger: Ledger, nursery: trio.Nursery
) -> None:
    reference = Embedder(fp32_files, MINILM_MANIFEST, REFERENCE)
    await nursery.start(reference.run)
    expected = await reference.embed(["what is served?"])
    assert isinstance(expected, EmbedResult)
    cheat = ModelConfig("embedded", MINILM_NAME, serve_instead="int8")
    async with running_hub() as hub:
        async with running_node(node_ledger, hub.url, model=(cheat,), allow_cheating_demo=True):
            answer = (await hub.call(_embeddings(input="what is served?"))).require_sound()
            assert hub.statuses[0].status.models == (model_hash(MINILM_MANIFEST),)
        vector = np.array(answer.json()["data"][0]["embedding"], np.float32)
        assert np.linalg.norm(vector - expected.vectors[0]) >= 1e-2


async def test_setup_hubs_key_as_the_nodes_is_refused(node_ledger: Ledger) -> None:
    context = make_context("node", node_ledger, deployment=DEPLOYMENT, keys={KEY: HUB_KEY})
    with pytest.raises(ConfigError) as caught:
        await SPEC.build(_config("ws://127.0.0.1:1")).setup(context)
    assert caught.value.code == "EMC-2014"


async def test_node_chat_with_an_embedding_model_is_refused(
    fp32_files: ModelFiles, node_ledger: Ledger
) -> None:
    async with running_hub() as hub, running_node(node_ledger, hub.url):
        body = msgspec.json.encode({"model": MINILM_NAME, "messages": [{"role": "user", "content": "hi"}]})
        answer = (await hub.call(body, path=CHAT)).require_sound()
        assert answer.status == 400
        assert answer.json()["error"]["param"] == "model"


async def test_node_behind_a_router_says_so_and_serves_only_calls_that_name_it(node_ledger: Ledger) -> None:
    """The hub here is the router's end of the tunnel, with the router's key."""
    router = make_key("router")
    async with running_hub(key=router) as end:
        routers = (RouterRef(end.url, router.address),)
        async with running_node(node_ledger, "", routers=routers) as node:
            body = _embeddings(input="hello")
            answer = await end.call(body, router=router.address)
            assert answer.require_sound().status == 200
            for named in (ZERO_ADDRESS, HUB_KEY.address):
                with pytest.raises(RecoverableError, match="EMC-2015"):
                    await end.call(body, router=named)

            assert end.statuses[0].status.hub == HUB_KEY.address
            health = node.health()
            assert health.state is HealthState.READY
            assert health.reason == f"through router {router.address} at {end.url}"


async def test_node_that_is_asked_for_a_status_begins_anew(node_ledger: Ledger) -> None:
    """A router's hub has forgotten the node: manifests and the last batches once more."""
    router = make_key("router")
    async with running_hub(key=router) as end:
        routers = (RouterRef(end.url, router.address),)
        async with running_node(node_ledger, "", routers=routers, status_interval_ms=60_000):
            await end.call(_embeddings(input="hello"), router=router.address)
            await end.until(lambda: len(end.batches) == 1)
            assert end.peer is not None
            await end.peer.send_control(encode(StatusRequest()))

            await end.until(lambda: len(end.batches) == 2)
            assert [bool(message.manifests) for message in end.statuses] == [True, True]
            assert end.batches[0].record_hashes == end.batches[1].record_hashes


async def test_routers_from_the_chain_need_a_chain(node_ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="EMC-2016"):
        async with running_node(node_ledger, "", routers_from_chain=True):
            pass


def test_routers_are_named_once_and_reached_by_tls_off_this_machine() -> None:
    near = RouterRef("ws://127.0.0.1:8423", make_key("a").address)
    far = RouterRef("wss://router.example:8423", make_key("b").address)
    assert _config("", routers=(near, far)).check() == []
    assert [fault.code for fault in _config("").check()] == ["EMC-2011"]
    assert [fault.code for fault in _config("", routers=(near, near)).check()] == ["EMC-2011"]
    hub = RouterRef("wss://router.example:8423", HUB_KEY.address)
    assert [fault.code for fault in _config("", routers=(hub,)).check()] == ["EMC-2011"]
    assert [fault.code for fault in RouterRef("ws://router.example:8423", far.address).check()] == [
        "EMC-2011"
    ]
