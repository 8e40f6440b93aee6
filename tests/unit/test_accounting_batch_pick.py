"""Which signed batches a bundle takes, and which record stands where."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from emcd.accounting import batch_pick
from emcd.accounting.audit import audit_bundle
from emcd.accounting.record_index import RecordIndex
from emcd.accounting.round_close import SignedBatch
from emcd.proto.bundle_column import rows_of
from emcd.proto.hashing import keccak
from emcd.proto.records import RecordKind
from emcd.types import Address
from tests.support.round_world import SealedBundle, World, address_of

KIND = RecordKind.RECEIPT


def receipts(world: World, node: str = "node-1") -> list[bytes]:
    return [
        call.receipt.struct_hash()
        for call in world.calls
        if call.receipt and call.forward.node == address_of(node)
    ]


def of_hub(world: World) -> list[SignedBatch]:
    return [item for item in world.batches() if item.batch.signer == world.hub]


def close(world: World, batches: Iterable[SignedBatch]) -> SealedBundle:
    closed = world.close(batches=batches)
    assert audit_bundle(closed.data).difference is None
    return closed


def node_batches(closed: SealedBundle) -> list[Any]:
    return [entry for entry in closed.bundle.batches if entry.kind == KIND]


@pytest.fixture
def world() -> World:
    return World(node_names=("node-1",), calls_per_node=6)


def test_pick_large_batch_wins_over_the_small_ones_it_repeats(world: World) -> None:
    own = receipts(world)
    small = [world.sign_batch("node-1", KIND, [item]) for item in own]
    large = world.sign_batch("node-1", KIND, own)

    closed = close(world, [*of_hub(world), *small, large])

    assert [(entry.count, entry.others) for entry in node_batches(closed)] == [(len(own), ())]
    assert all(call.receipt_ref is not None for call in closed.bundle.calls)


def test_pick_keeps_a_small_batch_for_what_only_it_proves(world: World) -> None:
    own = receipts(world)
    large = world.sign_batch("node-1", KIND, own[1:])
    small = [world.sign_batch("node-1", KIND, [item]) for item in own]

    closed = close(world, [*small, large, *of_hub(world)])

    assert sorted(entry.count for entry in node_batches(closed)) == [1, len(own) - 1]


def test_pick_record_proven_elsewhere_is_another_record_of_its_batch(world: World) -> None:
    own = receipts(world)
    large = world.sign_batch("node-1", KIND, own[:5])
    over = world.sign_batch("node-1", KIND, own[3:7])

    closed = close(world, [*of_hub(world), over, large])

    first, second = sorted(node_batches(closed), key=lambda entry: -entry.count)
    assert first.others == ()
    assert second.others == ((0, own[3]), (1, own[4]))


def test_pick_does_not_depend_on_the_order_of_the_batches(world: World) -> None:
    own = receipts(world)
    rows = [
        world.sign_batch("node-1", KIND, own[:4]),
        world.sign_batch("node-1", KIND, own[2:6]),
        world.sign_batch("node-1", KIND, own[4:]),
        world.sign_batch("node-1", KIND, own[::2]),
    ]
    found = {close(world, [*of_hub(world), *order]).data for order in permutations(rows)}
    assert len(found) == 1


def test_pick_batches_given_twice_or_joined_are_the_same(world: World) -> None:
    rows = world.batches()
    joined = [SignedBatch(item.batch, item.signature, item.joined) for item in rows]
    assert world.close(batches=[*rows, *rows]).data == world.close(batches=joined).data == world.close().data
    assert world.close(batches=[*rows, *joined]).left_out == ()


def test_pick_another_nodes_batch_proves_no_receipt() -> None:
    world = World(node_names=("node-1", "node-2"))
    stolen = world.sign_batch("node-2", KIND, receipts(world, "node-1"))
    rest = [item for item in world.batches() if item.batch.signer != address_of("node-1")]

    closed = close(world, [stolen, *rest])

    own = [call for call in closed.bundle.calls if call.forward.node == address_of("node-1")]
    assert own
    assert all(call.receipt_ref is None for call in own)
    assert all(entry.signer != address_of("node-2") or entry.others == () for entry in node_batches(closed))


def test_pick_node_of_no_call_proves_nothing(world: World) -> None:
    stolen = world.sign_batch("validator-1", KIND, receipts(world))
    assert [entry.signer for entry in node_batches(close(world, [*of_hub(world), stolen]))] == []


def test_pick_zero_hash_is_no_receipt_of_a_call_without_one() -> None:
    world = World(node_names=("node-1",), calls_per_node=0)
    start = world.params.round_start_ms(world.round)
    world.calls.append(
        world.make_call("node-1", start, edit=lambda kind, record: None if kind == "receipt" else record)
    )
    trap = world.sign_batch("node-1", KIND, [bytes(32)])

    closed = close(world, [*world.batches(), trap])

    assert sum(call.receipt_ref is not None for call in closed.bundle.calls) == len(world.calls) - 1


def test_pick_record_twice_in_a_batch_stands_at_its_first_leaf(world: World) -> None:
    own = receipts(world)
    twice = world.sign_batch("node-1", KIND, [*own, own[0], own[0]])

    closed = close(world, [*of_hub(world), twice])

    assert node_batches(closed)[0].others == ((len(own), own[0]), (len(own) + 1, own[0]))


def test_pick_second_batch_under_one_signature_is_refused(world: World) -> None:
    first = world.sign_batch("node-1", KIND, receipts(world))
    other = world.sign_batch("node-1", KIND, receipts(world)[:2])
    forged = SignedBatch(other.batch, first.signature, other.record_hashes)

    closed = close(world, [*of_hub(world), first, forged])

    assert [(row.code, row.detail) for row in closed.left_out] == [
        ("EMC-1910", "another batch has this signature")
    ]


def test_pick_many_batches_are_taken_in_portions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_pick, "_AT_ONCE", 2)
    assert world.close().data == World(node_names=("node-1",), calls_per_node=6).close().data


def test_index_hashes_that_begin_alike_are_told_apart() -> None:
    """A node can grind 8 bytes: the other 24 decide."""
    head = bytes(8)
    known = [head + keccak(b"%d" % n)[8:] for n in range(5)] + [keccak(b"other")]
    rows = rows_of(known, 32)
    index = RecordIndex(rows, rows, rows, {Address("node"): 3}, np.full(6, 3, np.uint64))
    wanted = rows_of([known[4], known[0], head + bytes(24), known[5], known[2]], 32)

    found = index.find(KIND, wanted, np.full(5, 3, np.int64))

    assert found.tolist() == [4, 0, -1, 5, 2]
    assert index.find(KIND, wanted, np.full(5, 2, np.int64)).tolist() == [-1] * 5
    assert index.find(RecordKind.FORWARD, wanted, np.full(5, -1, np.int64)).tolist() == [4, 0, -1, 5, 2]
    empty = rows_of([], 32)
    nothing = RecordIndex(empty, empty, empty, {}, np.zeros(0, np.uint64))
    assert nothing.find(KIND, wanted, np.full(5, 3, np.int64)).tolist() == [-1] * 5
