"""Takes the nodes' signed batches of receipts, and knows which receipts are still owed.

Invariants: a batch is stored only when its signature, its root and its size are right and at
least one receipt in it is owed by that node, so that nobody can fill the disk with hashes; a
receipt is proven by the first batch that brings it. Bounded: what is owed too long is forgotten
(its call stays in the ledger, unproven).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from emcd.clock import Clock
from emcd.errors import RemoteProtocolError
from emcd.ledger import Connection, Ledger
from emcd.metrics import counter, gauge
from emcd.proto.control import BatchMessage
from emcd.proto.eip712 import Domain
from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.proto.records import BATCH_RECORDS, RecordKind, batch_root
from emcd.proto.signing import require_signer
from emcd.types import Address
from emcd_hub.records.batch_row import LATE_AFTER_MS, StoredBatch, insert_batches, insert_late_batch

MAX_OWED = 1_000_000
MAX_PARKED = 64
PARKED_MS = 2_000

_TAKEN = counter(
    "emcd_hub_node_batches_total", "Receipt batches from nodes, by what became of them.", ("result",)
)
_OWED = gauge("emcd_hub_receipts_owed", "Receipts that came without their node's signed batch so far.")


class _Owed(NamedTuple):
    node: Address
    finished_at_ms: int


class _Parked(NamedTuple):
    node: Address
    message: BatchMessage
    since_ms: int


class ReceiptDesk:
    """What the nodes owe, and what they bring."""

    def __init__(self, *, domain: Domain, ledger: Ledger, clock: Clock, keep_ms: int) -> None:
        self._domain = domain
        self._ledger = ledger
        self._clock = clock
        self._keep_ms = keep_ms
        self._owed: dict[bytes, _Owed] = {}
        self._parked: list[_Parked] = []

    def expect(self, receipt_hash: bytes, node: Address, finished_at_ms: int) -> None:
        """A receipt came with its call; its batch must follow."""
        if len(self._owed) < MAX_OWED:
            self._owed[receipt_hash] = _Owed(node, finished_at_ms)

    def restore(self, receipts: Iterable[tuple[bytes, Address, int]]) -> None:
        """Take what is owed according to the ledger, at start."""
        for receipt_hash, node, finished_at_ms in receipts:
            self.expect(receipt_hash, node, finished_at_ms)

    def count_owed(self) -> int:
        return len(self._owed)

    async def take(self, node: Address, message: BatchMessage) -> None:
        """Judge and store a node's batch; what brings nothing owed waits a moment for its calls to end.

        Raises: RemoteProtocolError EMC-1494, EMC-1495 (signature), EMC-1725 (content).
        """
        try:
            self._require(node, message)
        except RemoteProtocolError:
            _TAKEN.labels("refused").inc()
            raise
        if await self._store(node, message):
            return
        if sum(item.node == node for item in self._parked) < MAX_PARKED:
            self._parked.append(_Parked(node, message, self._clock.now_ms()))
        else:  # most likely sent again after a broken connection
            _TAKEN.labels("unknown").inc()

    async def sweep(self) -> None:
        """Look again at what waits, and forget what is owed for too long. Called about once a second."""
        now_ms = self._clock.now_ms()
        parked, self._parked = self._parked, []
        for item in parked:
            if await self._store(item.node, item.message):
                continue
            if item.since_ms > now_ms - PARKED_MS:
                self._parked.append(item)
            else:
                _TAKEN.labels("unknown").inc()
        for receipt_hash, owed in list(self._owed.items()):
            if owed.finished_at_ms > now_ms - self._keep_ms:
                break  # in the order of time, but for what was restored
            del self._owed[receipt_hash]
        _OWED.set(len(self._owed))

    def _require(self, node: Address, message: BatchMessage) -> None:
        batch, hashes = message.batch, message.record_hashes
        if batch.signer != node or batch.kind != RecordKind.RECEIPT:
            raise RemoteProtocolError("EMC-1725", f"a batch of kind {batch.kind} signed by {batch.signer}")
        if not 0 < len(hashes) <= BATCH_RECORDS or batch.count != len(hashes):
            raise RemoteProtocolError("EMC-1725", f"{len(hashes)} records in a batch of {batch.count}")
        if any(len(item) != 32 for item in hashes) or len(set(hashes)) != len(hashes):
            raise RemoteProtocolError("EMC-1725", "a record hash is not 32 bytes, or stands twice")
        if batch.signed_at_ms > self._clock.now_ms() + MAX_CLOCK_SKEW_MS:
            raise RemoteProtocolError("EMC-1725", "the batch is from the future")
        if batch_root(hashes) != batch.root:
            raise RemoteProtocolError("EMC-1725", "the batch's root is not that of its records")
        require_signer(self._domain, batch, message.signature, node)

    async def _store(self, node: Address, message: BatchMessage) -> bool:
        """Store a batch that brings something owed. Returns: whether it did."""
        now_ms = self._clock.now_ms()
        brought = []
        for item in message.record_hashes:
            owed = self._owed.get(item)
            if owed is not None and owed.node == node:
                brought.append((item, owed))
        if not brought:
            return False
        for record_hash, _ in brought:
            del self._owed[record_hash]
        late = min(owed.finished_at_ms for _, owed in brought) < now_ms - LATE_AFTER_MS
        stored = StoredBatch(message.batch, message.signature, message.record_hashes, now_ms)

        def store(con: Connection) -> None:
            if late:
                insert_late_batch(con, stored)
            else:
                insert_batches(con, [stored])

        await self._ledger.write(store)
        _TAKEN.labels("late" if late else "stored").inc()
        return True
