"""Consolidated batches: whatever stands in small ones, each receipt once, never more signatures."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from emcd.proto.hashing import keccak
from emcd.proto.records import BATCH_RECORDS
from emcd_node.batch_plan import SMALL_BATCH, Batched, plan_batches

SIZES = st.lists(st.sampled_from([1, 1, 1, 2, 7, 127, 128, 200, 256]), max_size=400)


def receipts_of(sizes: list[int]) -> list[Batched]:
    """Receipts of batches of these sizes, in an order of their own."""
    made = [
        Batched(keccak(b"%d/%d" % (number, leaf)), keccak(b"root %d" % number), size)
        for number, size in enumerate(sizes)
        for leaf in range(size)
    ]
    return sorted(made)


@given(SIZES)
@example([1] * 1000)
@example([256, 1, 256])
@example([1])
@example([])
@example([127, 127, 127])
def test_plan_signs_each_small_batch_anew_and_never_more_often(sizes: list[int]) -> None:
    receipts = receipts_of(sizes[: 4_000 // max(1, max(sizes, default=1))] if sizes else [])
    by_hash = {item.receipt_hash: item for item in receipts}
    plan = plan_batches(receipts)
    signed = [item for batch in plan for item in batch]
    assert len(signed) == len(set(signed))
    assert all(1 < len(batch) <= BATCH_RECORDS for batch in plan)
    assert all(by_hash[item].size < SMALL_BATCH for item in signed)
    small = [item.receipt_hash for item in receipts if item.size < SMALL_BATCH]
    assert [item for item in small if item in set(signed)] == signed, "in the given order"
    left = [by_hash[item] for item in small if item not in set(signed)]
    assert len({item.root for item in left}) <= 1, "at most one small batch stays as it is"
    replaced = {by_hash[item].root for item in signed}
    kept = {item.root for item in receipts} - replaced
    assert len(kept) + len(plan) <= len(kept) + len(replaced)
    assert len(plan) <= -(-len(small) // BATCH_RECORDS)


@given(SIZES)
def test_plan_of_a_plan_is_stable(sizes: list[int]) -> None:
    receipts = receipts_of(sizes[:200])
    plan = plan_batches(receipts)
    root_of = {item: (keccak(b"".join(batch)), len(batch)) for batch in plan for item in batch}
    after = [
        Batched(item.receipt_hash, *root_of.get(item.receipt_hash, (item.root, item.size)))
        for item in receipts
    ]
    again = plan_batches(after)
    assert Counter(map(len, again)).total() <= max(1, len([b for b in plan if len(b) < SMALL_BATCH]))
