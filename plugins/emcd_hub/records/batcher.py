"""Signs the hub's records in batches, and tells the nodes where theirs stand.

Owns the queue of record hashes that wait for a signature. A batch is closed at 256 records or
250 ms after its first; it is on disk before anybody is shown its signature. Invariants: a record
is in one batch only; a crash loses signatures, never records: `restore` queues again what stands
in the ledger without one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import trio

from emcd.clock import Clock
from emcd.ledger import Connection, Ledger
from emcd.metrics import counter
from emcd.proto.control import ProofMessage, encode
from emcd.proto.eip712 import Domain
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.records import BATCH_MS, BATCH_RECORDS, Delivery, RecordBatch, RecordKind, RecordProof
from emcd.proto.signing import Signer
from emcd.types import Address, Hash
from emcd_hub.records.batch_row import StoredBatch, insert_batches, insert_late_batch
from emcd_hub.records.unsigned import UnsignedDelivery

Notify = Callable[[Address, bytes], Awaitable[None]]

_BATCHES = counter("emcd_hub_batches_signed_total", "Record batches signed, by kind.", ("kind",))
_RECORDS = counter("emcd_hub_records_signed_total", "Records in signed batches, by kind.", ("kind",))


class _Waiting(NamedTuple):
    record_hash: bytes
    node: Address
    delivery: Delivery | None = None


class _Signed(NamedTuple):
    stored: StoredBatch
    records: list[_Waiting]
    tree: list[Hash]


class Batcher:
    """Forward and delivery records on their way to a signature."""

    def __init__(
        self, *, signer: Signer, domain: Domain, ledger: Ledger, clock: Clock, notify: Notify
    ) -> None:
        self._signer = signer
        self._domain = domain
        self._ledger = ledger
        self._clock = clock
        self._notify = notify
        self._queues: dict[RecordKind, list[_Waiting]] = {RecordKind.FORWARD: [], RecordKind.DELIVERY: []}
        self._has_late = False
        self._first = trio.Event()
        self._full = trio.Event()

    def add(
        self, kind: RecordKind, record_hash: bytes, node: Address, delivery: Delivery | None = None
    ) -> None:
        """Queue a record; it is signed within `BATCH_MS`. A delivery goes to its node with its proof."""
        queue = self._queues[kind]
        queue.append(_Waiting(record_hash, node, delivery))
        if len(queue) == 1:
            self._first.set()
        elif len(queue) == BATCH_RECORDS:
            self._full.set()

    def restore(
        self, forwards: Iterable[tuple[bytes, Address]], deliveries: Iterable[UnsignedDelivery]
    ) -> None:
        """Queue records of the ledger that a crash left without a signature.

        Their batches are found by the records, for they come long after them.
        """
        for record_hash, node in forwards:
            self.add(RecordKind.FORWARD, record_hash, node)
        for item in deliveries:
            self.add(RecordKind.DELIVERY, item.record_hash, item.node, item.delivery)
        self._has_late = any(self._queues.values())

    async def run(self) -> None:
        """Sign until cancelled. Cancellation: what waits is queued again at the next start."""
        while True:
            await self._first.wait()
            with trio.move_on_after(BATCH_MS / 1000):
                await self._full.wait()
            await self.flush()

    async def flush(self) -> None:
        """Sign and store all that waits now."""
        self._first, self._full = trio.Event(), trio.Event()
        made: list[_Signed] = []
        for kind, queue in self._queues.items():
            for start in range(0, len(queue), BATCH_RECORDS):
                records = queue[start : start + BATCH_RECORDS]
                made.append(self._sign(kind, records))
            queue.clear()
        if not made:
            return
        stored = [item.stored for item in made]
        has_late, self._has_late = self._has_late, False

        def store(con: Connection) -> None:
            if has_late:
                for item in stored:
                    insert_late_batch(con, item)
            else:
                insert_batches(con, stored)

        await self._ledger.write(store)
        for item in made:
            await self._tell(item)

    def _sign(self, kind: RecordKind, records: list[_Waiting]) -> _Signed:
        now_ms = self._clock.now_ms()
        tree = build_tree([record_leaf(item.record_hash) for item in records])
        batch = RecordBatch(self._signer.address, kind, tree[0], len(records), now_ms)
        signature = self._signer.sign(self._domain, batch)
        _BATCHES.labels(kind.name.lower()).inc()
        _RECORDS.labels(kind.name.lower()).inc(len(records))
        stored = StoredBatch(batch, signature, tuple(item.record_hash for item in records), now_ms)
        return _Signed(stored, records, tree)

    async def _tell(self, signed: _Signed) -> None:
        """Send every node the proofs of its records; one that is away does without."""
        stored, tree = signed.stored, signed.tree
        by_node: dict[Address, list[int]] = {}
        for index, item in enumerate(signed.records):
            by_node.setdefault(item.node, []).append(index)
        for node, indexes in by_node.items():
            proofs = tuple(
                RecordProof(stored.batch, stored.signature, index, tuple(build_proof(tree, index)))
                for index in indexes
            )
            hashes = tuple(stored.record_hashes[index] for index in indexes)
            found = (signed.records[index].delivery for index in indexes)
            message = ProofMessage(hashes, proofs, tuple(item for item in found if item is not None))
            await self._notify(node, encode(message))
