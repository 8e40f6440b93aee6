"""The leaves of signed batches, gathered call by call until every batch is whole.

Invariant: at the end each leaf was given exactly once, by a call or as a record of another
bundle, and the leaves give the root that was signed.
"""

from __future__ import annotations

from collections.abc import Sequence

from emcd.accounting.call_rule import CallHashes
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle import BatchEntry, CallEntry, RecordRef
from emcd.proto.records import RecordKind, batch_root
from emcd.types import Address


class BatchCover:
    """Checks refs against batches that passed `require_batch`."""

    def __init__(self, terms: RoundTerms, batches: Sequence[BatchEntry]) -> None:
        self._hub = terms.hub
        self._batches = batches
        self._leaves: list[list[bytes | None]] = [[None] * entry.batch.count for entry in batches]
        self._used = [False] * len(batches)

    def place(self, call: CallEntry, hashes: CallHashes) -> bool:
        """Take the refs of a call; True when all three records are proven.

        Raises: RemoteProtocolError EMC-1912.
        """
        if call.receipt is None and call.receipt_ref is not None:
            raise RemoteProtocolError("EMC-1912", "it refers to a receipt that it does not have")
        self._place(call.forward_ref, RecordKind.FORWARD, self._hub, hashes.forward)
        self._place(call.receipt_ref, RecordKind.RECEIPT, call.forward.node, hashes.receipt)
        self._place(call.delivery_ref, RecordKind.DELIVERY, self._hub, hashes.delivery)
        return None not in (call.forward_ref, call.receipt_ref, call.delivery_ref)

    def require_whole(self, index: int) -> None:
        """Check one batch after all calls. Raises: RemoteProtocolError EMC-1910."""
        entry, leaves = self._batches[index], self._leaves[index]
        if not self._used[index]:
            raise RemoteProtocolError("EMC-1910", "no call has a record in this batch")
        for leaf, record_hash in entry.others:
            if leaf >= len(leaves) or leaves[leaf] is not None:
                raise RemoteProtocolError("EMC-1910", f"leaf {leaf} is given twice or not in the batch")
            leaves[leaf] = record_hash
        hashes = [item for item in leaves if item is not None]
        if len(hashes) != len(leaves):
            raise RemoteProtocolError("EMC-1910", f"leaf {leaves.index(None)} is missing")
        if batch_root(hashes) != entry.batch.root:
            raise RemoteProtocolError("EMC-1910", "the records do not give the root that was signed")
        self._leaves[index] = []

    def _place(self, ref: RecordRef | None, kind: RecordKind, signer: Address, record_hash: bytes) -> None:
        if ref is None:
            return
        name = kind.name.lower()
        if ref.batch >= len(self._batches):
            raise RemoteProtocolError(
                "EMC-1912", f"its {name} stands in batch {ref.batch}, which is not there"
            )
        batch = self._batches[ref.batch].batch
        if batch.kind != kind or batch.signer != signer:
            raise RemoteProtocolError(
                "EMC-1912", f"batch {ref.batch} is not one of {name} records by {signer}"
            )
        leaves = self._leaves[ref.batch]
        if ref.leaf >= len(leaves) or leaves[ref.leaf] is not None:
            raise RemoteProtocolError(
                "EMC-1912", f"its {name} stands at leaf {ref.leaf}, which is taken or not there"
            )
        leaves[ref.leaf] = record_hash
        self._used[ref.batch] = True
