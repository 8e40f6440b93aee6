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
from emcd.proto.batch_proof import is_whole_smaller
from emcd.proto.control import BatchProofMessage, ProofMessage, encode
from emcd.proto.eip712 import Domain
from emcd.proto.merkle import build_proof, build_tree, record_leaves
from emcd.proto.records import BATCH_MS, BATCH_RECORDS, Delivery, RecordBatch, RecordKind, RecordProof
from emcd.proto.signing import Signer
from emcd.types import Address, Hash
from emcd_hub.records.batch_row import StoredBatch, insert_batches, insert_late_batch
from emcd_hub.records.unsigned import UnsignedDelivery

Notify = Callable[[Address, bytes], Awaitable[None]]
_RINGS = (1, BATCH_RECORDS)
"""How many wait when the task that signs is told."""

_BATCHES = counter("emcd_hub_batches_signed_total", "Record batches signed, by kind.", ("kind",))
_RECORDS = counter("emcd_hub_records_signed_total", "Records in signed batches, by kind.", ("kind",))


_Waiting = tuple[bytes, Address, Delivery | None]
"""A record's hash, its node, and the record itself where the node has not seen it."""


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
        self._forwards: list[_Waiting] = []
        self._deliveries: list[_Waiting] = []
        self._has_late = False
        self._first = trio.Event()
        self._full = trio.Event()

    def add_forward(self, record_hash: bytes, node: Address) -> None:
        """Queue a forward; it is signed within `BATCH_MS`."""
        queue = self._forwards
        queue.append((record_hash, node, None))
        if len(queue) in _RINGS:
            self._ring(len(queue))

    def add_delivery(self, record_hash: bytes, node: Address, delivery: Delivery) -> None:
        """Queue a delivery; it is signed within `BATCH_MS`, and goes to its node with its proof."""
        queue = self._deliveries
        queue.append((record_hash, node, delivery))
        if len(queue) in _RINGS:
            self._ring(len(queue))

    def _ring(self, waiting: int) -> None:
        if waiting == 1:
            self._first.set()
        else:
            self._full.set()

    def restore(
        self, forwards: Iterable[tuple[bytes, Address]], deliveries: Iterable[UnsignedDelivery]
    ) -> None:
        """Queue records of the ledger that a crash left without a signature.

        Their batches are found by the records, for they come long after them.
        """
        for record_hash, node in forwards:
            self.add_forward(record_hash, node)
        for item in deliveries:
            self.add_delivery(item.record_hash, item.node, item.delivery)
        self._has_late = bool(self._forwards or self._deliveries)

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
        for kind, queue in (
            (RecordKind.FORWARD, self._forwards),
            (RecordKind.DELIVERY, self._deliveries),
        ):
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
        hashes = tuple([item[0] for item in records])
        tree = build_tree(record_leaves(hashes))
        batch = RecordBatch(self._signer.address, kind, tree[0], len(records), now_ms)
        signature = self._signer.sign(self._domain, batch)
        _BATCHES.labels(kind.name.lower()).inc()
        _RECORDS.labels(kind.name.lower()).inc(len(records))
        stored = StoredBatch(batch, signature, hashes, now_ms)
        return _Signed(stored, records, tree)

    async def _tell(self, signed: _Signed) -> None:
        """Send every node the proofs of its records; one that is away does without."""
        stored, tree = signed.stored, signed.tree
        by_node: dict[Address, list[int]] = {}
        for index, (_, node, _) in enumerate(signed.records):
            own = by_node.get(node)
            if own is None:
                by_node[node] = [index]
            else:
                own.append(index)
        joined = b"".join(stored.record_hashes)
        for node, indexes in by_node.items():
            found = tuple([item for index in indexes if (item := signed.records[index][2]) is not None])
            if is_whole_smaller(len(indexes), len(signed.records)):
                whole = BatchProofMessage(stored.batch, stored.signature, joined, tuple(indexes), found)
                await self._notify(node, encode(whole))
                continue
            proofs = tuple(
                RecordProof(stored.batch, stored.signature, index, tuple(build_proof(tree, index)))
                for index in indexes
            )
            hashes = tuple(stored.record_hashes[index] for index in indexes)
            await self._notify(node, encode(ProofMessage(hashes, proofs, found)))
