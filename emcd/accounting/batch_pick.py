"""Finds the signed batches of a round's records, and keeps those that the bundle needs.

After all calls are known the batches come one by one; of each only what stands in the bundle is
kept, and the places of its records among the calls. Then every record is proven by the batch that
holds most records of this bundle (a node signs its receipts again in large batches), and a batch
that proves nothing more is dropped. Invariant: the choice depends on what the batches are, not on
their order. Memory: 4 bytes a record, and the signature and 250 bytes a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
from msgspec.structs import replace

from emcd.accounting.evidence_rule import require_batch
from emcd.accounting.record_index import Places, RecordIndex
from emcd.accounting.signed_batch import SignedBatch
from emcd.accounting.terms import RoundTerms
from emcd.errors import ProtocolError, RemoteProtocolError
from emcd.proto.address import hex_hash
from emcd.proto.bundle import BatchEntry
from emcd.proto.bundle_batches import batch_key
from emcd.proto.bundle_calls import CallPlaces, Mask
from emcd.proto.bundle_column import U64, Rows
from emcd.proto.records import batch_root
from emcd.types import Address

Refuse = Callable[[str, ProtocolError], None]
"""Told the root as hex of a batch that no audit would accept, and why."""
_HASH_BYTES = 32
_SIGNATURE_BYTES = 65
_AT_ONCE = 1024
"""Batches matched together: at most 262,144 records, 8 MB of hashes."""


class BatchPick:
    """The batches of a round with a record of one of its calls."""

    def __init__(
        self,
        terms: RoundTerms,
        index: RecordIndex,
        batches: Iterable[SignedBatch],
        refuse: Refuse,
        *,
        signatures: bool,
    ) -> None:
        """Args: `signatures`: check signatures and roots too."""
        self._terms = terms
        self._index = index
        self._refuse = refuse
        self._signatures = signatures
        self._names: dict[Address, Address] = {}
        self._roots: dict[bytes, bytes] = {}
        self._kinds = {kind: _KindPick() for kind in index.hashes}
        rest = iter(batches)
        while part := list(islice(rest, _AT_ONCE)):
            good = [item for item in part if self._is_good(item)]
            for kind in self._kinds:
                own = [item for item in good if item.batch.kind == kind]
                if own:
                    self._match(kind, own)
        self._roots.clear()

    def choose(self) -> tuple[list[BatchEntry], CallPlaces]:
        """The batches in use, sorted, and where each call's records stand in them."""
        entries: list[BatchEntry] = []
        columns, leaves = [], 0
        for kind, hashes in self._index.hashes.items():
            column = np.zeros(len(hashes), np.uint64)
            chosen = self._kinds[kind].choose(hashes, column, leaves + 1)
            leaves += sum(entry.count for entry in chosen)
            entries += chosen
            columns.append(column)
        return entries, CallPlaces(*columns)

    def _is_good(self, item: SignedBatch) -> bool:
        root = self._roots.get(item.signature)
        if root == item.batch.root:
            return False
        try:
            if root is not None:
                raise RemoteProtocolError("EMC-1910", "another batch has this signature")
            _require_whole(self._terms, item, signatures=self._signatures)
        except ProtocolError as exc:
            self._refuse(hex_hash(item.batch.root), exc)
            return False
        self._roots[item.signature] = item.batch.root
        return True

    def _match(self, kind: int, items: list[SignedBatch]) -> None:
        data = [item.joined for item in items]
        records = np.frombuffer(b"".join(data), np.uint8).reshape(-1, _HASH_BYTES)
        counts = [item.batch.count for item in items]
        batch_of = np.repeat(np.arange(len(items)), counts)
        signers = np.array([self._index.number_of(item.batch.signer) for item in items], np.int64)
        found = self._index.find(kind, records, signers[batch_of])
        is_kept = np.bincount(batch_of[found >= 0], minlength=len(items)) > 0
        strange: dict[int, list[tuple[int, bytes]]] = {}
        begins = np.cumsum([0, *counts]).tolist()
        for row in np.flatnonzero((found < 0) & is_kept[batch_of]).tolist():
            number = int(batch_of[row])
            leaf = row - begins[number]
            record_hash = data[number][_HASH_BYTES * leaf : _HASH_BYTES * (leaf + 1)]
            strange.setdefault(number, []).append((leaf, record_hash))
        entries = []
        for number in np.flatnonzero(is_kept).tolist():
            batch, signature = items[number].batch, items[number].signature
            signer = self._names.setdefault(batch.signer, batch.signer)
            others = tuple(strange.get(number, ()))
            entries.append(BatchEntry(signer, kind, batch.count, batch.signed_at_ms, signature, others))
        self._kinds[kind].add(entries, found[is_kept[batch_of]])


class _KindPick:
    """The batches of one kind; `others` of an entry are its records that no call has."""

    def __init__(self) -> None:
        self._entries: list[BatchEntry] = []
        self._calls: list[Places] = []

    def add(self, entries: list[BatchEntry], calls: Places) -> None:
        """Args: `calls`: the calls of all their records, one after the other."""
        self._entries += entries
        self._calls.append(calls)

    def choose(self, hashes: Rows, column: U64, first: int) -> list[BatchEntry]:
        """The batches in use, sorted; their leaves are numbered from `first` on, into the calls' column."""
        if not self._entries:
            return []
        entries, calls = self._entries, np.concatenate(self._calls)
        counts = np.array([entry.count for entry in entries], np.int64)
        batch_of = np.repeat(np.arange(len(entries), dtype=np.int32), counts)
        leaf_of = np.arange(len(calls)) - np.repeat(np.cumsum(counts) - counts, counts)
        proves = self._proving(calls, batch_of)
        is_used = np.bincount(batch_of[proves], minlength=len(entries)) > 0
        chosen = sorted(np.flatnonzero(is_used).tolist(), key=lambda number: batch_key(entries[number]))
        begins = np.zeros(len(entries), np.int64)
        begins[chosen] = first + np.cumsum(counts[chosen]) - counts[chosen]
        column[calls[proves]] = (begins[batch_of[proves]] + leaf_of[proves]).astype(np.uint64)
        idle: dict[int, list[tuple[int, bytes]]] = {}
        for row in np.flatnonzero(~proves & (calls >= 0) & is_used[batch_of]).tolist():
            record_hash = hashes[calls[row]].tobytes()
            idle.setdefault(int(batch_of[row]), []).append((int(leaf_of[row]), record_hash))
        for number, more in idle.items():
            others = tuple(sorted([*entries[number].others, *more]))
            entries[number] = replace(entries[number], others=others)
        return [entries[number] for number in chosen]

    def _proving(self, calls: Places, batch_of: Places) -> Mask:
        """Which records are proven by the batch they stand in: one of each call, in its best batch."""
        entries = self._entries
        known = np.bincount(batch_of[calls >= 0], minlength=len(entries)).tolist()
        best = sorted(range(len(entries)), key=lambda number: (-known[number], batch_key(entries[number])))
        rank = np.empty(len(entries), np.int32)
        rank[best] = np.arange(len(entries), dtype=np.int32)
        order = np.argsort(rank[batch_of], kind="stable")
        proves = np.zeros(len(calls), np.bool_)
        proves[order[np.unique(calls[order], return_index=True)[1]]] = True
        return proves & (calls >= 0)


def _require_whole(terms: RoundTerms, item: SignedBatch, *, signatures: bool) -> None:
    batch, joined = item.batch, item.joined
    if len(item.signature) != _SIGNATURE_BYTES or not 0 <= batch.signed_at_ms < 1 << 64:
        raise RemoteProtocolError("EMC-1902", "its signature or its time can't be")
    if _HASH_BYTES * batch.count != len(joined):
        raise RemoteProtocolError(
            "EMC-1910", f"{batch.count} records signed, {len(joined)} bytes of hashes given"
        )
    require_batch(terms, batch, item.signature, signatures=signatures)
    if not signatures:
        return
    hashes = [joined[at : at + _HASH_BYTES] for at in range(0, len(joined), _HASH_BYTES)]
    if batch_root(hashes) != batch.root:
        raise RemoteProtocolError("EMC-1910", "the records do not give the root that was signed")
