"""Receipts: one per call, on disk first, in exactly one signed batch, sent until they arrive."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from emcd.clock import ManualClock
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.ledger import Ledger
from emcd.proto.control import BatchMessage, decode_control
from emcd.proto.records import BATCH_RECORDS, Receipt, RecordKind, batch_root
from emcd.proto.signing import require_signer
from emcd.testing import temporary_ledger
from emcd_node import queries
from emcd_node.omission_row import DeliveryRow, insert_deliveries, list_expected, set_carried
from emcd_node.receipt_book import ReceiptBook
from emcd_node.schema import MIGRATIONS
from tests.support.node_network import DEPLOYMENT, DOMAIN, NODE_KEY, make_meta


class Outbox:
    """Where a connection's control messages go; `broken` loses them."""

    def __init__(self) -> None:
        self.batches: list[BatchMessage] = []
        self.broken = False

    async def send(self, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise RecoverableError("EMC-1412", "lost")
        batch = decode_control(message)
        assert isinstance(batch, BatchMessage)
        require_signer(DOMAIN, batch.batch, batch.signature, NODE_KEY.address)
        assert batch.batch.kind == RecordKind.RECEIPT
        assert batch.batch.root == batch_root(batch.record_hashes)
        assert batch.batch.count == len(batch.record_hashes)
        self.batches.append(batch)

    def hashes(self) -> list[bytes]:
        return [item for batch in self.batches for item in batch.record_hashes]


@pytest.fixture
async def node_ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, {"node": MIGRATIONS}) as ledger:
        yield ledger


def _book(ledger: Ledger, clock: ManualClock | None = None) -> ReceiptBook:
    return ReceiptBook(ledger, NODE_KEY, DOMAIN, DEPLOYMENT.params, clock or ManualClock())


def _receipt(forward_hash: bytes, at_ms: int = ManualClock().now_ms()) -> Receipt:
    return Receipt(forward_hash, bytes(32), 200, 1, 0, at_ms, at_ms)


async def _give(book: ReceiptBook, count: int = 1) -> list[bytes]:
    """Give receipts of as many calls. Returns: their hashes."""
    hashes: list[bytes] = []

    async def give_one() -> None:
        forward = make_meta(b"").forward
        receipt = _receipt(forward.struct_hash())
        await book.give(forward, receipt)
        hashes.append(receipt.struct_hash())

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(give_one)
    return hashes


async def test_give_receipt_is_on_disk_and_in_a_batch(node_ledger: Ledger, nursery: trio.Nursery) -> None:
    book, out = _book(node_ledger), Outbox()
    await nursery.start(book.run)
    await book.attach(out.send)
    forward = make_meta(b"").forward
    receipt = _receipt(forward.struct_hash())
    await book.give(forward, receipt)
    row = await node_ledger.read(lambda con: queries.find_receipt(con, NODE_KEY.address, forward.call_id))
    assert row is not None
    assert row.receipt_hash == receipt.struct_hash()
    await book.flush()
    assert out.hashes() == [receipt.struct_hash()]


async def test_give_second_receipt_of_a_call_is_refused_also_by_another_process(node_ledger: Ledger) -> None:
    forward = make_meta(b"").forward
    await _book(node_ledger).give(forward, _receipt(forward.struct_hash()))
    for at_ms in (ManualClock().now_ms(), 5):
        with pytest.raises(RemoteProtocolError) as caught:
            await _book(node_ledger).give(forward, _receipt(forward.struct_hash(), at_ms))
        assert caught.value.code == "EMC-2002"
    assert len(await node_ledger.read(lambda con: queries.list_unbatched(con, NODE_KEY.address))) == 1


async def test_give_one_repeated_call_does_not_harm_its_neighbours(node_ledger: Ledger) -> None:
    book = _book(node_ledger)
    forward = make_meta(b"").forward
    await book.give(forward, _receipt(forward.struct_hash()))
    failed: list[str] = []

    async def give_again() -> None:
        try:
            await book.give(forward, _receipt(bytes(32)))
        except RemoteProtocolError as exc:
            failed.append(exc.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_give, book, 5)
        nursery.start_soon(give_again)
        nursery.start_soon(_give, book, 5)
    assert failed == ["EMC-2002"]
    assert len(await node_ledger.read(lambda con: queries.list_unbatched(con, NODE_KEY.address))) == 11


async def test_run_many_receipts_make_full_batches_and_each_stands_in_one(
    node_ledger: Ledger, nursery: trio.Nursery
) -> None:
    book, out = _book(node_ledger), Outbox()
    given = await _give(book, BATCH_RECORDS + 10)
    await book.attach(out.send)  # before any batch: one made meanwhile may be sent twice
    await nursery.start(book.run)
    await book.flush()
    assert sorted(out.hashes()) == sorted(given)
    assert [batch.batch.count for batch in out.batches] == [BATCH_RECORDS, 10]


async def test_run_after_a_crash_batches_what_was_left(node_ledger: Ledger, nursery: trio.Nursery) -> None:
    given = await _give(_book(node_ledger), 3)  # that process never batched
    book, out = _book(node_ledger), Outbox()
    await book.attach(out.send)
    await nursery.start(book.run)
    await book.flush()
    assert sorted(out.hashes()) == sorted(given)


async def test_attach_sends_what_no_connection_took(node_ledger: Ledger, nursery: trio.Nursery) -> None:
    book = _book(node_ledger)
    await nursery.start(book.run)
    given = await _give(book, 2)
    await book.flush()
    broken = Outbox()
    broken.broken = True
    with pytest.raises(RecoverableError):
        await book.attach(broken.send)
    given += await _give(book, 1)
    await book.flush()
    out = Outbox()
    await book.attach(out.send)
    assert sorted(out.hashes()) == sorted(given)


async def test_attach_repeats_only_what_was_sent_lately(node_ledger: Ledger, nursery: trio.Nursery) -> None:
    clock = ManualClock()
    book, first = _book(node_ledger, clock), Outbox()
    await nursery.start(book.run)
    await book.attach(first.send)
    await _give(book)
    await book.flush()
    clock.advance(31)
    lately = await _give(book)
    await book.flush()
    book.detach(first.send)
    clock.advance(3600)  # the hub was away
    second = Outbox()
    await book.attach(second.send)
    assert second.hashes() == lately
    assert second.batches[0] == first.batches[1]  # the same signature: signed anew, not differently


async def test_claim_call_twice_is_refused(node_ledger: Ledger) -> None:
    book = _book(node_ledger)
    book.claim_call(b"a" * 16)
    with pytest.raises(RemoteProtocolError) as caught:
        book.claim_call(b"a" * 16)
    assert caught.value.code == "EMC-2002"


async def test_prune_forgets_old_rounds_only(node_ledger: Ledger, nursery: trio.Nursery) -> None:
    clock = ManualClock()
    book = _book(node_ledger, clock)
    await nursery.start(book.run)
    await _give(book)
    await book.flush()
    clock.advance(12 * DEPLOYMENT.params.round_s)
    assert await book.prune(12, 12) == 0
    clock.advance(DEPLOYMENT.params.round_s)
    assert await book.prune(12, 12) == 2  # the receipt and its batch


async def test_prune_forgets_calls_that_a_bundle_carried_long_ago(
    node_ledger: Ledger, nursery: trio.Nursery
) -> None:
    clock = ManualClock()
    book, out = _book(node_ledger, clock), Outbox()
    await nursery.start(book.run)
    await book.attach(out.send)
    carried, expected = await _deliver(node_ledger, book, 2)
    await book.flush()
    index = DEPLOYMENT.params.round_at(clock.now_ms())
    await node_ledger.write(lambda con: set_carried(con, NODE_KEY.address, [carried], index))
    clock.advance(8 * DEPLOYMENT.params.round_s)
    assert await book.prune(22, 8) == 0
    clock.advance(DEPLOYMENT.params.round_s)
    assert await book.prune(22, 8) == 2  # the receipt and its delivery; the batch holds another one
    left = await node_ledger.read(lambda con: list_expected(con, NODE_KEY.address, index))
    assert [call.forward_hash for call in left] == [expected]
    await node_ledger.write(lambda con: set_carried(con, NODE_KEY.address, [expected], index))
    assert await book.prune(22, 8) == 3


async def _deliver(ledger: Ledger, book: ReceiptBook, count: int) -> list[bytes]:
    """Calls that the hub delivered. Returns: their forward hashes."""
    hashes = []
    for _ in range(count):
        forward = make_meta(b"").forward
        receipt = _receipt(forward.struct_hash())
        await book.give(forward, receipt)
        row = DeliveryRow(
            NODE_KEY.address, receipt.forward_hash, secrets.token_bytes(32), receipt.struct_hash(), b"",
            DEPLOYMENT.params.round_at(receipt.finished_at_ms), 5, True,
        )  # fmt: skip
        await ledger.write(lambda con, kept=row: insert_deliveries(con, [kept]))  # type: ignore[misc]
        hashes.append(receipt.forward_hash)
    return hashes


async def _make_small_batches(ledger: Ledger, book: ReceiptBook, count: int) -> None:
    for _ in range(count):
        await _deliver(ledger, book, 1)
        await book.flush()


async def test_consolidate_signs_small_batches_anew_once_and_no_receipt_twice(
    node_ledger: Ledger, nursery: trio.Nursery
) -> None:
    clock = ManualClock()
    book, out = _book(node_ledger, clock), Outbox()
    await nursery.start(book.run)
    await book.attach(out.send)
    await _make_small_batches(node_ledger, book, 3)
    undelivered = await _give(book)
    await book.flush()
    index = DEPLOYMENT.params.round_at(clock.now_ms())
    before = await _receipts_on_disk(node_ledger)
    assert await book.consolidate(index) == 1
    assert await book.consolidate(index) == 0
    assert await book.consolidate(index - 1) == 0
    assert [batch.batch.count for batch in out.batches] == [1, 1, 1, 1, 3]
    assert set(out.batches[-1].record_hashes) == set(out.hashes()[:4]) - set(undelivered)
    assert await _receipts_on_disk(node_ledger) == before


async def _receipts_on_disk(ledger: Ledger) -> list[tuple[object, ...]]:
    sql = "SELECT * FROM node_receipts ORDER BY call_id"
    return await ledger.read(lambda con: [tuple(row) for row in con.execute(sql)])


async def test_consolidated_batches_survive_a_broken_connection_and_a_restart(
    node_ledger: Ledger, nursery: trio.Nursery
) -> None:
    clock = ManualClock()
    book, broken = _book(node_ledger, clock), Outbox()
    await nursery.start(book.run)
    await book.attach(broken.send)
    await _make_small_batches(node_ledger, book, 2)
    index = DEPLOYMENT.params.round_at(clock.now_ms())
    broken.broken = True
    clock.advance(60)
    assert await book.consolidate(index) == 1
    again, out = _book(node_ledger, clock), Outbox()
    await again.attach(out.send)
    assert [batch.batch.count for batch in out.batches if batch.batch.count > 1] == [2]
    assert await again.consolidate(index) == 0
