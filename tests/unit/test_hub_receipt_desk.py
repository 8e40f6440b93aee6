"""Receipts that are owed: bounded for each node, and forgotten only once their batch is on disk."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
import trio.testing

from emcd.clock import SystemClock
from emcd.proto.control import BatchMessage
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.records import RecordBatch, RecordKind, batch_root
from emcd.testing import make_key
from emcd_hub.records import receipt_desk
from emcd_hub.records.receipt_desk import ReceiptDesk

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
