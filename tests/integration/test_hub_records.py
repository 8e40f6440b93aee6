"""Records and batches through restarts: what is on disk is signed sooner or later, by everyone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.accounting.receipt import check_receipt
from emcd.net.http_client import request
from emcd.proto.merkle import record_leaf, root_from_proof
from emcd.proto.signing import require_signer
from emcd_hub.records.batcher import Batcher
from tests.support.hub_world import DOMAIN, HUB_KEY, StubNode, fetch_receipt, node_key, post, running_world


def count_proofs(node: StubNode, wanted: int) -> bool:
    return sum(len(message.record_hashes) for message in node.proofs) == wanted


async def test_nodes_get_proofs_of_their_forwards_and_deliveries(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        nodes = [await world.add_node(StubNode(node_key(n))) for n in range(2)]
        for node in nodes:
            await post(world, x_emc_provider=node.key.address)
        for node in nodes:
            await world.until(partial(count_proofs, node, 2))
            for message in node.proofs:
                for record_hash, proof in zip(message.record_hashes, message.proofs, strict=True):
                    assert root_from_proof(record_leaf(record_hash), proof.siblings) == proof.batch.root
                    require_signer(DOMAIN, proof.batch, proof.signature, HUB_KEY.address)


async def test_records_that_a_crash_left_unsigned_are_signed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: Batcher) -> None:
        await trio.sleep_forever()

    async def nothing(self: Batcher) -> None:
        await trio.lowlevel.checkpoint()

    ids = []
    with monkeypatch.context() as patch:
        patch.setattr(Batcher, "run", never)
        patch.setattr(Batcher, "flush", nothing)
        async with running_world(tmp_path) as world:
            node = await world.add_node(StubNode(node_key(0), batching=False))
            ids = [(await post(world)).headers["x-emc-call-id"] for _ in range(3)]
            kept = list(node.receipts)
            assert await world.rows("SELECT count(*) FROM hub_batches") == [(0,)]
    async with running_world(tmp_path) as world:
        assert world.plane.desk.count_owed() == 3
        node = StubNode(node_key(0))
        node.receipts = kept
        await world.add_node(node)
        for call_id in ids:
            receipt = await fetch_receipt(world, call_id)
            assert check_receipt(DOMAIN, HUB_KEY.address, receipt).ok


async def test_late_batch_proves_its_receipts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emcd_hub.records import receipt_desk

    monkeypatch.setattr(receipt_desk, "LATE_AFTER_MS", -1)
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        call_id = (await post(world)).headers["x-emc-call-id"]
        receipt = await fetch_receipt(world, call_id)
        assert check_receipt(DOMAIN, HUB_KEY.address, receipt).ok
        assert await world.rows("SELECT count(*) FROM hub_late_records") == [(1,)]


async def test_ids_and_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    for number in range(1, 4):
        async with running_world(tmp_path) as world:
            await world.add_node(StubNode(node_key(0)))
            await post(world)
            assert await world.rows("SELECT count(*), max(call_seq) FROM hub_calls") == [(number, number)]


async def test_receipt_of_a_call_no_node_receipted_is_complete_without_one(tmp_path: Path) -> None:
    async def fails(node: StubNode, call: Any, meta: Any) -> None:
        await call.fail("EMC-2010", "no")

    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0), answer=fails))
        assert (await post(world)).status == 502
        (call_id,) = (await world.rows("SELECT call_id FROM hub_calls"))[0]
        receipt = await fetch_receipt(world, "call_" + call_id.hex())
        assert receipt.receipt is None
        assert check_receipt(DOMAIN, HUB_KEY.address, receipt).ok


async def test_malformed_call_id_is_400(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        headers = {"authorization": f"Bearer {world.api_key}"}
        answer = await request("GET", f"{world.url}/v1/calls/call_12/receipt", headers=headers)
        assert answer.status == 400
        answer = await request("GET", f"{world.url}/v1/calls/call_{'0' * 32}/receipt", headers=headers)
        assert answer.status == 404
