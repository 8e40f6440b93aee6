"""Finds the signed batches of a round's records, and keeps those that a call stands in.

Two steps: while calls are taken a ref counts batches as they came; `settle` drops unused batches
and sorts the rest, after which `resolve` gives a call its final refs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from emcd.accounting.call_rule import CallHashes
from emcd.accounting.evidence_rule import require_batch
from emcd.accounting.terms import RoundTerms
from emcd.errors import ProtocolError, RemoteProtocolError
from emcd.proto.address import hex_hash
from emcd.proto.bundle import BatchEntry, CallEntry, RecordRef
from emcd.proto.bundle_codec import Section, sort_key
from emcd.proto.bundle_shape import require_shape
from emcd.proto.records import RecordBatch, RecordKind, batch_root
from emcd.types import Address

Refs = tuple[RecordRef | None, RecordRef | None, RecordRef | None]


@dataclass(frozen=True)
class SignedBatch:
    """A signed batch with the hashes of all its records, in order."""

    batch: RecordBatch
    signature: bytes
    record_hashes: tuple[bytes, ...]


class BatchPick:
    """`refused` holds (root as hex, code, detail) of batches that no audit would accept."""

    def __init__(self, terms: RoundTerms, batches: Iterable[SignedBatch], *, signatures: bool) -> None:
        self.refused: list[tuple[str, str, str]] = []
        self._hub = terms.hub
        self._batches: list[SignedBatch] = []
        self._places: dict[tuple[Address, bytes], tuple[int, int]] = {}
        self._taken: list[set[int]] = []
        self._final: dict[int, int] = {}
        keys = set()
        for item in batches:
            key = (item.batch.signer, item.batch.kind, item.batch.root)
            if key in keys:
                continue
            try:
                _require_whole(terms, item, signatures=signatures)
            except ProtocolError as exc:
                self.refused.append((hex_hash(item.batch.root), exc.code, exc.detail))
                continue
            keys.add(key)
            self._add(item)

    def _add(self, item: SignedBatch) -> None:
        index = len(self._batches)
        self._batches.append(item)
        self._taken.append(set())
        for leaf, record_hash in enumerate(item.record_hashes):
            self._places.setdefault((item.batch.signer, record_hash), (index, leaf))

    def place(self, node: Address, hashes: CallHashes, *, has_receipt: bool) -> Refs:
        """Provisional refs of a call's records; None where no batch holds one."""
        return (
            self._find(self._hub, RecordKind.FORWARD, hashes.forward),
            self._find(node, RecordKind.RECEIPT, hashes.receipt) if has_receipt else None,
            self._find(self._hub, RecordKind.DELIVERY, hashes.delivery),
        )

    def settle(self) -> None:
        """Fix the order of the batches in use; no call is placed any more."""
        used = [index for index, leaves in enumerate(self._taken) if leaves]
        used.sort(key=lambda index: sort_key(Section.BATCHES, self._entry(index)))
        self._final = {index: position for position, index in enumerate(used)}

    def resolve(self, call: CallEntry) -> CallEntry:
        """The call with its final refs."""
        refs = (call.forward_ref, call.receipt_ref, call.delivery_ref)
        final = [None if ref is None else RecordRef(self._final[ref.batch], ref.leaf) for ref in refs]
        return CallEntry(call.forward, call.receipt, call.delivery, *final)

    def entries(self) -> tuple[BatchEntry, ...]:
        """The batches in use, sorted, with the records that stand in no call here."""
        return tuple(map(self._entry, self._final))

    def _find(self, signer: Address, kind: RecordKind, record_hash: bytes) -> RecordRef | None:
        place = self._places.get((signer, record_hash))
        if place is None or self._batches[place[0]].batch.kind != kind:
            return None
        self._taken[place[0]].add(place[1])
        return RecordRef(*place)

    def _entry(self, index: int) -> BatchEntry:
        item, taken = self._batches[index], self._taken[index]
        others = tuple((leaf, h) for leaf, h in enumerate(item.record_hashes) if leaf not in taken)
        return BatchEntry(item.batch, item.signature, others)


def _require_whole(terms: RoundTerms, item: SignedBatch, *, signatures: bool) -> None:
    require_shape(BatchEntry(item.batch, item.signature, tuple(enumerate(item.record_hashes))))
    if item.batch.count != len(item.record_hashes):
        raise RemoteProtocolError(
            "EMC-1910", f"{item.batch.count} records signed, {len(item.record_hashes)} given"
        )
    require_batch(terms, item.batch, item.signature, signatures=signatures)
    if batch_root(item.record_hashes) != item.batch.root:
        raise RemoteProtocolError("EMC-1910", "the records do not give the root that was signed")
