"""Which batches prove a round's receipts: exactly those that hold most of them."""

from __future__ import annotations

import pytest

from emcd.proto.hashing import keccak
from emcd.testing import make_key
from emcd.types import Address
from emcd_hub.rounds.receipt_pick import ReceiptPick

A, B = make_key("node a").address, make_key("node b").address
HASHES = [keccak(bytes([number])) for number in range(8)]


def joined(*numbers: int) -> bytes:
    return b"".join(HASHES[number] for number in numbers)


def proven(pick: ReceiptPick, *receipts: tuple[str, bytes]) -> list[bool]:
    return pick.find_proven(pick.key([(Address(node), item) for node, item in receipts])).tolist()


def want(pick: ReceiptPick, *receipts: tuple[str, bytes]) -> None:
    pick.want(pick.key([(Address(node), item) for node, item in receipts]))


@pytest.fixture
def pick() -> ReceiptPick:
    made = ReceiptPick()
    made.add(1, A, joined(0))
    made.add(2, A, joined(1))
    made.add(3, B, joined(4, 5))
    made.add(4, A, joined(0, 1, 2))
    made.add(5, B, joined(3, 7))
    return made


def test_receipt_in_a_batch_of_its_node_is_proven(pick: ReceiptPick) -> None:
    assert proven(pick, (A, HASHES[0]), (A, HASHES[2]), (B, HASHES[4])) == [True, True, True]


def test_receipt_in_another_nodes_batch_only_is_not_proven(pick: ReceiptPick) -> None:
    """Else a node that signs a stranger's receipt would take away the stranger's time to prove it."""
    assert proven(pick, (A, HASHES[3]), (B, HASHES[0]), (A, HASHES[6])) == [False, False, False]
    assert proven(pick, (make_key("node c").address, HASHES[0])) == [False]


def test_nothing_is_proven_and_picked_without_batches() -> None:
    pick = ReceiptPick()

    assert proven(pick, (A, HASHES[0])) == [False]
    want(pick, (A, HASHES[0]))
    assert pick.pick() == []


def test_largest_batch_is_picked_for_each_receipt(pick: ReceiptPick) -> None:
    proven(pick)
    want(pick, (A, HASHES[0]), (A, HASHES[1]))
    want(pick, (B, HASHES[4]))

    assert pick.pick() == [3, 4]


def test_batch_without_wanted_receipts_is_not_picked(pick: ReceiptPick) -> None:
    want(pick, (B, HASHES[3]))

    assert pick.pick() == [5]


def test_batch_counts_by_its_wanted_receipts_not_by_its_size() -> None:
    pick = ReceiptPick()
    pick.add(1, A, joined(0, 5, 6, 7))
    pick.add(2, A, joined(0, 1))
    want(pick, (A, HASHES[0]), (A, HASHES[1]))

    assert pick.pick() == [2]


def test_older_batch_is_picked_among_equals() -> None:
    pick = ReceiptPick()
    pick.add(7, A, joined(0))
    pick.add(3, A, joined(0))
    pick.add(9, A, joined(0))
    want(pick, (A, HASHES[0]))

    assert pick.pick() == [7]
