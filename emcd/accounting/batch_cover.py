"""The leaves of signed batches, gathered group by group until every batch is whole.

Invariants: at the end each leaf was given exactly once, by a call or as a record of another bundle,
and the leaves give a root that the batch's signer signed; memory is 40 bytes a leaf and 14 a batch, and no more
leaves are prepared than the calls and the other records can fill, and a few.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from emcd.accounting.evidence_rule import require_batch
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle import BatchEntry
from emcd.proto.bundle_calls import CallGroup, CallPlaces, GroupHashes, Mask
from emcd.proto.bundle_column import U64, Rows
from emcd.proto.bundle_hash import keccak_rows
from emcd.proto.merkle import build_root
from emcd.proto.records import BATCH_RECORDS, RecordKind
from emcd.types import Address

_RECORDS_OF_CALL = 3
_SPARE_LEAVES = 1 << 16
"""So many may be missing until the batch is named that lacks them."""


class BatchCover:
    """Checks where calls say that their records stand, then the batches."""

    def __init__(
        self, terms: RoundTerms, entries: Iterable[BatchEntry], signers: Sequence[Address], calls: int
    ) -> None:
        """Args: `entries` are read once and not kept; `signers` are the hub, then the nodes by their
        numbers; `calls` is how many there are.

        Raises: RemoteProtocolError EMC-1910 when the batches can't be filled.
        """
        self._terms = terms
        numbers = {signer: number for number, signer in enumerate(signers)}
        kinds, names, counts = array("H"), array("q"), array("q")
        others = 0
        for entry in entries:
            kinds.append(entry.kind)
            names.append(numbers[entry.signer])
            counts.append(entry.count)
            others += len(entry.others)
        self._kinds, self._signers = np.array(kinds, np.int16), np.array(names, np.int32)
        self._offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.array(counts, np.int64))))
        leaves = int(self._offsets[-1])
        if leaves > _RECORDS_OF_CALL * calls + others + _SPARE_LEAVES:
            raise RemoteProtocolError(
                "EMC-1910", f"{leaves} records are signed, {calls} calls and {others} others can't be all"
            )
        self._batch_of = np.repeat(np.arange(len(kinds), dtype=np.int32), np.diff(self._offsets))
        self._leaves = np.zeros((leaves, 32), np.uint8)
        self._given = np.zeros(leaves, np.bool_)
        self._used = np.zeros(len(kinds), np.bool_)

    def place(self, group: CallGroup, places: CallPlaces, hashes: GroupHashes) -> tuple[Mask, int, str]:
        """Take where a group's records stand.

        Returns: which calls are proven by all three, and the first row that refers to something wrong
        with what is wrong; -1 and nothing when all is well.
        """
        faults = [
            self._place(RecordKind.FORWARD, places.forward, hashes.forward, np.zeros(len(group), np.int64)),
            self._place(RecordKind.RECEIPT, places.receipt, hashes.receipt, group.node.astype(np.int64) + 1),
            self._place(
                RecordKind.DELIVERY, places.delivery, hashes.delivery, np.zeros(len(group), np.int64)
            ),
        ]
        lost = np.flatnonzero(~group.has_receipt & (places.receipt != 0))
        if len(lost):
            faults.append((int(lost[0]), "it refers to a receipt that it does not have"))
        proven = (places.forward != 0) & (places.receipt != 0) & (places.delivery != 0)
        return (proven, *min((fault for fault in faults if fault[0] >= 0), default=(-1, "")))

    def require_whole(self, index: int, entry: BatchEntry) -> None:
        """Check one batch after all calls. Raises: RemoteProtocolError EMC-1910."""
        first, end = int(self._offsets[index]), int(self._offsets[index + 1])
        if not 0 < entry.count <= BATCH_RECORDS:
            raise RemoteProtocolError("EMC-1910", f"a batch of {entry.count} records")
        if not self._used[index]:
            raise RemoteProtocolError("EMC-1910", "no call has a record in this batch")
        for leaf, record_hash in entry.others:
            if leaf >= entry.count or self._given[first + leaf]:
                raise RemoteProtocolError("EMC-1910", f"leaf {leaf} is given twice or not in the batch")
            self._given[first + leaf] = True
            self._leaves[first + leaf] = np.frombuffer(record_hash, np.uint8)
        missing = np.flatnonzero(~self._given[first:end])
        if len(missing):
            raise RemoteProtocolError("EMC-1910", f"leaf {int(missing[0])} is missing")
        leaves = keccak_rows(self._leaves[first:end]).tobytes()
        root = build_root([leaves[at : at + 32] for at in range(0, len(leaves), 32)])
        require_batch(self._terms, entry.with_root(root), entry.signature)

    def _place(
        self, kind: RecordKind, column: U64, hashes: Rows, signer: npt.NDArray[np.int64]
    ) -> tuple[int, str]:
        name = kind.name.lower()
        rows = np.flatnonzero(column)
        slots = column[rows].astype(np.int64) - 1
        inside = slots < len(self._given)
        batches = (
            self._batch_of[np.where(inside, slots, 0)] if len(self._given) else np.zeros(len(rows), np.int32)
        )
        fits = inside.copy()
        fits[inside] = (self._kinds[batches[inside]] == kind) & (
            self._signers[batches[inside]] == signer[rows[inside]]
        )
        is_free = fits.copy()
        is_free[fits] = ~self._given[slots[fits]]
        order = np.argsort(slots, kind="stable")
        again = order[1:][slots[order[1:]] == slots[order[:-1]]]
        is_free[again] = False
        wrong = np.flatnonzero(~is_free)
        if len(wrong):
            at = int(wrong[0])
            if not inside[at]:
                fault = f"its {name} stands at leaf {int(slots[at])} of all batches, which is not there"
            elif not fits[at]:
                fault = f"batch {int(batches[at])} is not one of {name} records by its {'node' if signer[rows[at]] else 'hub'}"
            else:
                fault = f"its {name} stands at a leaf of batch {int(batches[at])} which is taken"
            return int(rows[at]), fault
        self._given[slots] = True
        self._leaves[slots] = hashes[rows]
        self._used[batches] = True
        return -1, ""
