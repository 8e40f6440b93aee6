"""Receipts that are owed: bounded for each node, and forgotten only once their batch is on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from emcd.clock import SystemClock
from emcd.ledger import Ledger as RealLedger
from emcd.proto.control import BatchMessage
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.records import RecordBatch, RecordKind, batch_root
from emcd.testing import make_key, temporary_ledger
from emcd_hub.records import receipt_desk
from emcd_hub.records.receipt_desk import ReceiptDesk
from emcd_hub.role import SPEC

KEY, OTHER = make_key("node"), make_key("other").address
DOMAIN = Domain(31337, OTHER)


class Ledger:
    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.writes = 0
        self.hold = trio.Event()

    async def write(self, fn: Any) -> None:
        self.writes += 1
        await self.hold.wait()
        if self.fault is not None:
            raise self.fault


def make_desk(ledger: Ledger) -> ReceiptDesk:
    return ReceiptDesk(domain=DOMAIN, ledger=cast("Any", ledger), clock=SystemClock(), keep_ms=3_600_000)


def make_batch(*hashes: bytes) -> BatchMessage:
    now_ms = SystemClock().now_ms()
    batch = RecordBatch(KEY.address, RecordKind.RECEIPT, batch_root(hashes), len(hashes), now_ms)
    return BatchMessage(batch, KEY.sign(DOMAIN, batch), hashes)


def h(number: int) -> bytes:
    return keccak(number.to_bytes(8, "big"))


async def test_node_that_never_sends_loses_only_its_own_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt_desk, "MAX_OWED_BY_NODE", 4)
    monkeypatch.setattr(receipt_desk, "MAX_OWED", 6)
    ledger, now_ms = Ledger(), SystemClock().now_ms()
    ledger.hold.set()
    desk = make_desk(ledger)
    for number in range(100):
        desk.expect(h(number), OTHER, now_ms)
    assert desk.count_owed() == 4
    desk.expect(h(1000), KEY.address, now_ms)
    await desk.take(KEY.address, make_batch(h(1000)))
    assert (desk.count_owed(), ledger.writes) == (4, 1)


async def test_batch_that_fails_to_be_stored_leaves_its_receipts_owed() -> None:
    ledger = Ledger()
    desk = make_desk(ledger)
    desk.expect(h(1), KEY.address, SystemClock().now_ms())
    ledger.fault = RuntimeError("disk")
    ledger.hold.set()
    with pytest.raises(RuntimeError):
        await desk.take(KEY.address, make_batch(h(1)))
    assert desk.count_owed() == 1
    ledger.fault = None
    await desk.take(KEY.address, make_batch(h(1)))
    assert desk.count_owed() == 0


async def test_receipt_is_owed_until_its_batch_is_on_disk_and_stored_once() -> None:
    ledger = Ledger()
    desk = make_desk(ledger)
    desk.expect(h(1), KEY.address, SystemClock().now_ms())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.take, KEY.address, make_batch(h(1)))
        nursery.start_soon(desk.take, KEY.address, make_batch(h(1)))
        await trio.testing.wait_all_tasks_blocked()
        assert (desk.count_owed(), ledger.writes) == (1, 1)
        ledger.hold.set()
    assert desk.count_owed() == 0


async def test_receipts_owed_for_too_long_are_forgotten() -> None:
    desk, now_ms = make_desk(Ledger()), SystemClock().now_ms()
    desk.expect(h(1), KEY.address, now_ms - 3_600_001)
    desk.expect(h(2), KEY.address, now_ms)
    desk.expect(h(3), OTHER, now_ms - 3_600_001)
    await desk.sweep()
    assert desk.count_owed() == 1


async def desk_with_proven(
    folder: Path, ledger: RealLedger, monkeypatch: pytest.MonkeyPatch, count: int
) -> ReceiptDesk:
    """A desk to which one node has proven receipts 0 .. count - 1, each in a batch of its own."""
    monkeypatch.setattr(receipt_desk, "PARKED_MS", -1)
    desk = ReceiptDesk(domain=DOMAIN, ledger=ledger, clock=SystemClock(), keep_ms=3_600_000)
    for number in range(count):
        desk.expect(h(number), KEY.address, SystemClock().now_ms())
        await desk.take(KEY.address, make_batch(h(number)))
    return desk


async def roots(ledger: RealLedger) -> list[int]:
    """Records of each batch on disk, in the order in which they came."""
    sql = "SELECT length(record_hashes) / 32 FROM hub_batches ORDER BY batch_id"
    return await ledger.read(lambda con: [row[0] for row in con.execute(sql)])


async def test_proven_receipts_may_be_signed_once_more_in_a_larger_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with temporary_ledger(tmp_path, {"hub": SPEC.migrations}) as ledger:
        desk = await desk_with_proven(tmp_path, ledger, monkeypatch, 3)
        for _ in range(2):
            await desk.take(KEY.address, make_batch(h(0), h(1), h(2)))
            await desk.sweep()
        assert await roots(ledger) == [1, 1, 1, 3]
        await desk.take(KEY.address, make_batch(h(2), h(1)))
        await desk.sweep()
        assert await roots(ledger) == [1, 1, 1, 3], "each receipt has been signed twice"


async def test_batch_of_what_nobody_delivered_or_of_one_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with temporary_ledger(tmp_path, {"hub": SPEC.migrations}) as ledger:
        desk = await desk_with_proven(tmp_path, ledger, monkeypatch, 2)
        for batch in (make_batch(h(7), h(8), h(9)), make_batch(h(0))):
            await desk.take(KEY.address, batch)
            await desk.sweep()
        assert await roots(ledger) == [1, 1]
        desk.restore_allowance([(KEY.address, 1)])
        await desk.take(KEY.address, make_batch(h(0), h(1), h(7)))
        await desk.sweep()
        assert await roots(ledger) == [1, 1, 3]


async def test_receipt_whose_batch_was_quicker_than_its_call_is_never_owed() -> None:
    """A batch over two receipts is stored for the one that is owed; the other's call ends a moment later."""
    ledger, now_ms = Ledger(), SystemClock().now_ms()
    ledger.hold.set()
    desk = make_desk(ledger)
    desk.expect(h(1), KEY.address, now_ms)
    await desk.take(KEY.address, make_batch(h(1), h(2), h(3)))
    desk.expect(h(2), KEY.address, now_ms)
    assert desk.count_owed() == 0
    desk.expect(h(2), KEY.address, now_ms)
    desk.expect(h(3), OTHER, now_ms)
    assert desk.count_owed() == 2, "a batch is good for a receipt once, and for its own node's alone"


async def test_receipt_whose_call_ends_while_its_batch_is_being_stored_is_not_owed() -> None:
    ledger, now_ms = Ledger(), SystemClock().now_ms()
    desk = make_desk(ledger)
    desk.expect(h(1), KEY.address, now_ms)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.take, KEY.address, make_batch(h(1), h(2)))
        await trio.testing.wait_all_tasks_blocked()
        desk.expect(h(2), KEY.address, now_ms)
        ledger.hold.set()
    assert desk.count_owed() == 0


async def test_receipt_whose_call_ends_long_after_its_batch_is_owed() -> None:
    """Who looks for its batch looks a second before the call's end, and no earlier."""
    ledger, now_ms = Ledger(), SystemClock().now_ms()
    ledger.hold.set()
    desk = make_desk(ledger)
    desk.expect(h(1), KEY.address, now_ms)
    await desk.take(KEY.address, make_batch(h(1), h(2)))
    desk.expect(h(2), KEY.address, now_ms + 60_000)
    assert desk.count_owed() == 1


async def test_what_comes_early_is_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt_desk, "MAX_OWED_BY_NODE", 2)
    ledger, now_ms = Ledger(), SystemClock().now_ms()
    ledger.hold.set()
    desk = make_desk(ledger)
    desk.expect(h(1), KEY.address, now_ms)
    await desk.take(KEY.address, make_batch(h(1), h(2), h(3), h(4)))
    desk.expect(h(2), KEY.address, now_ms)
    assert desk.count_owed() == 1, "of too many the oldest goes"
    monkeypatch.setattr(receipt_desk, "PARKED_MS", -1000)
    await desk.sweep()
    desk.expect(h(3), KEY.address, now_ms)
    assert desk.count_owed() == 2
