"""Which receipts are signed anew in larger batches once their round is over. Pure.

A node signs every 250 ms, so at few calls a second each batch holds one receipt, and each bundle and
audit would pay one signature a call. The receipts stay what they are: only the roots are new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from emcd.proto.records import BATCH_RECORDS

SMALL_BATCH = BATCH_RECORDS // 2
"""From here on a batch is large enough to stay."""


class Batched(NamedTuple):
    """A receipt, the batch that signs it now, and how many receipts that one holds."""

    receipt_hash: bytes
    root: bytes
    size: int


def plan_batches(receipts: Sequence[Batched]) -> list[tuple[bytes, ...]]:
    """Group the receipts of small batches, in the given order.

    Args: `receipts`: those of a round, in the order in which a bundle has their calls.
    Returns: the receipt hashes of each new batch; nothing where that would not save a signature.
    """
    small = [item for item in receipts if item.size < SMALL_BATCH]
    chunks = [small[at : at + BATCH_RECORDS] for at in range(0, len(small), BATCH_RECORDS)]
    return [
        tuple(item.receipt_hash for item in chunk)
        for chunk in chunks
        if len({item.root for item in chunk}) > 1
    ]
