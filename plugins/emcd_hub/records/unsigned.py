"""What a crash left without a signature, found in the ledger at start. SQL and nothing else.

A batch follows its records within a second, so only the calls of the last minutes before the
newest batch need be looked at; receipts may be owed for as long as rounds are open for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from emcd.ledger import Connection
from emcd.proto.records import Delivery, RecordKind
from emcd.types import Address
from emcd_hub.records.batch_row import (
    HASH_BYTES,
    LATE_AFTER_MS,
    LOOK_BEFORE_MS,
    find_last_signed_ms,
    is_late_record,
    iter_receipt_hashes,
)
from emcd_hub.records.call_row import (
    ReceiptKey,
    find_times,
    iter_calls_since,
    iter_waiting_receipts,
    list_receipts_between,
)

LOOK_BACK_MS = 600_000
PIECE_MS = 600_000


class UnsignedDelivery(NamedTuple):
    """A delivery without a batch; its node gets it once it has one."""

    record_hash: bytes
    node: Address
    delivery: Delivery


class Unsigned(NamedTuple):
    """Record hashes without a batch, oldest first, each with its node."""

    forwards: list[tuple[bytes, Address]]
    deliveries: list[UnsignedDelivery]
    receipts: list[ReceiptKey]


def find_unsigned(con: Connection, hub: Address, owed_since_ms: int, open_since_ms: int) -> Unsigned:
    """Compare the calls of the last time with the batches of the same time.

    Args:
        owed_since_ms: since when nodes may still bring receipts.
        open_since_ms: since when calls stand in no bundle; of the others those that wait are on a list.
    """
    newest = find_last_signed_ms(con, hub)
    own_since = 0 if newest is None else newest - LOOK_BACK_MS
    signed = _signed_hashes(con, own_since)
    found = Unsigned([], [], [])
    for call in iter_calls_since(con, own_since):
        if call.delivery.forward_hash not in signed:
            found.forwards.append((call.delivery.forward_hash, call.forward.node))
        delivery_hash = call.delivery.struct_hash()
        if delivery_hash not in signed:
            found.deliveries.append(UnsignedDelivery(delivery_hash, call.forward.node, call.delivery))
    found.receipts.extend(item for item in iter_waiting_receipts(con) if item.finished_at_ms >= owed_since_ms)
    found.receipts.extend(_iter_owed(con, max(owed_since_ms, open_since_ms)))
    return found


def _iter_owed(con: Connection, since_ms: int) -> Iterator[ReceiptKey]:
    """Receipts without a batch, piece of time by piece of time: many calls are not in memory at once."""
    first, last = find_times(con, since_ms)
    for start_ms in range(first, last + 1, PIECE_MS):
        owed = {
            (item.node, item.receipt_hash): item
            for item in list_receipts_between(con, start_ms, start_ms + PIECE_MS)
        }
        until_ms = start_ms + PIECE_MS + LATE_AFTER_MS * 2
        for _, signer, hashes in (
            iter_receipt_hashes(con, start_ms - LOOK_BEFORE_MS, until_ms) if owed else ()
        ):
            for place in range(0, len(hashes), HASH_BYTES):
                owed.pop((signer, hashes[place : place + HASH_BYTES]), None)
        for item in owed.values():
            if not is_late_record(con, item.node, item.receipt_hash):
                yield item


def _signed_hashes(con: Connection, since_ms: int) -> set[bytes]:
    """The hub's; the forward of a long call was signed long before its end: hence the margin."""
    signed: set[bytes] = set()
    rows = con.execute(
        "SELECT record_hashes FROM hub_batches WHERE received_at_ms >= ? AND kind <> ?",
        (since_ms - LOOK_BACK_MS, RecordKind.RECEIPT),
    )
    for (hashes,) in rows:
        signed.update(hashes[i : i + HASH_BYTES] for i in range(0, len(hashes), HASH_BYTES))
    return signed
