"""What a crash left without a signature, found in the ledger at start. SQL and nothing else.

A batch follows its records within a second, so only the calls of the last minutes before the
newest batch need be looked at; receipts may be owed for as long as rounds are open for them.
"""

from __future__ import annotations

from typing import NamedTuple

from emcd.ledger import Connection
from emcd.types import Address
from emcd_hub.records.batch_row import HASH_BYTES, find_last_signed_ms
from emcd_hub.records.call_row import iter_calls_since

LOOK_BACK_MS = 600_000


class Unsigned(NamedTuple):
    """Record hashes without a batch, oldest first, each with its node."""

    forwards: list[tuple[bytes, Address]]
    deliveries: list[tuple[bytes, Address]]
    receipts: list[tuple[bytes, Address, int]]


def find_unsigned(con: Connection, hub: Address, receipts_since_ms: int) -> Unsigned:
    """Compare the calls of the last time with the batches of the same time."""
    newest = find_last_signed_ms(con, hub)
    own_since = 0 if newest is None else newest - LOOK_BACK_MS
    since = min(own_since, receipts_since_ms)
    signed = _signed_hashes(con, since)
    found = Unsigned([], [], [])
    for call in iter_calls_since(con, since):
        node, finished = call.forward.node, call.delivery.finished_at_ms
        if finished >= own_since:
            if call.delivery.forward_hash not in signed:
                found.forwards.append((call.delivery.forward_hash, node))
            delivery_hash = call.delivery.struct_hash()
            if delivery_hash not in signed:
                found.deliveries.append((delivery_hash, node))
        if (
            call.receipt is not None
            and finished >= receipts_since_ms
            and call.delivery.receipt_hash not in signed
        ):
            found.receipts.append((call.delivery.receipt_hash, node, finished))
    return found


def _signed_hashes(con: Connection, since_ms: int) -> set[bytes]:
    """The forward of a long call was signed long before its end: hence the margin."""
    signed: set[bytes] = set()
    rows = con.execute(
        "SELECT record_hashes FROM hub_batches WHERE received_at_ms >= ?", (since_ms - LOOK_BACK_MS,)
    )
    for (hashes,) in rows:
        signed.update(hashes[i : i + HASH_BYTES] for i in range(0, len(hashes), HASH_BYTES))
    return signed
