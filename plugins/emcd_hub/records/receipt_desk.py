"""Takes the nodes' signed batches of receipts, and knows which receipts are still owed.

Invariants: a batch is stored only when its signature, its root and its size are right and at
least one receipt in it is owed by that node, or the node has proven as many receipts that it has
not signed a second time yet (it consolidates small batches once a round is over), so that nobody
can fill the disk with hashes; a receipt is proven by the first batch that brings it. Bounded: what
is owed too long is forgotten (its call stays in the ledger, unproven).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from emcd_hub.records.batch_row import (
    LATE_AFTER_MS,
    LOOK_BEFORE_MS,
    StoredBatch,
    has_batch,
    insert_batches,
    insert_late_batch,
)

MAX_OWED = 1_000_000
MAX_OWED_BY_NODE = 20_000
MAX_PARKED = 64
PARKED_MS = 2_000
MAX_ALLOWANCE = 2_000_000
"""Of receipts that one node may sign again."""

_TAKEN = counter(
    "emcd_hub_node_batches_total", "Receipt batches from nodes, by what became of them.", ("result",)
)
_OWED = gauge("emcd_hub_receipts_owed", "Receipts that came without their node's signed batch so far.")


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
        self._owed: dict[Address, dict[bytes, int]] = {}  # by node: when the call of each ended
        self._count = 0
        self._early: dict[Address, dict[bytes, int]] = {}
        """By node: records of stored batches that nobody owed yet, and since when they are on disk."""
        self._storing: set[bytes] = set()
        self._parked: list[_Parked] = []
        self._allowance: dict[Address, int] = {}

    def expect(self, receipt_hash: bytes, node: Address, finished_at_ms: int) -> None:
        """A receipt came with its call; its batch must follow, or was a little quicker. Of one node's too
        many the oldest goes.
        """
        early = self._early.get(node)
        if early is not None:
            since_ms = early.pop(receipt_hash, None)
            if since_ms is not None and finished_at_ms - since_ms <= LOOK_BEFORE_MS:
                self._allow(node, 1)
                return
        own = self._owed.get(node)
        if own is None:
            own = self._owed[node] = {}
        if len(own) >= MAX_OWED_BY_NODE:
            del own[next(iter(own))]
            self._count -= 1
        if self._count < MAX_OWED or receipt_hash in own:
            self._count += receipt_hash not in own
            own[receipt_hash] = finished_at_ms
        elif not own:
            del self._owed[node]

    def restore(self, receipts: Iterable[tuple[bytes, Address, int]]) -> None:
        """Take what is owed according to the ledger, at start."""
        for receipt_hash, node, finished_at_ms in receipts:
            self.expect(receipt_hash, node, finished_at_ms)

    def restore_allowance(self, proven: Iterable[tuple[Address, int]]) -> None:
        """Take how many receipts each node has proven lately, at start."""
        for node, count in proven:
            self._allow(node, count)

    def count_owed(self) -> int:
        return self._count

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
                _TAKEN.labels(await self._store_again(item)).inc()
        for node, own in list(self._owed.items()):
            for receipt_hash, finished_at_ms in list(own.items()):
                if finished_at_ms > now_ms - self._keep_ms:
                    break  # in the order of time, but for what was restored
                self._drop(node, (receipt_hash,))
        for node, early in list(self._early.items()):
            for record_hash, since_ms in list(early.items()):
                if since_ms >= now_ms - PARKED_MS:
                    break
                del early[record_hash]
            if not early:
                del self._early[node]
        _OWED.set(self._count)

    def _drop(self, node: Address, hashes: Sequence[bytes]) -> list[bytes]:
        """Returns: those that were not owed."""
        own = self._owed.get(node, {})
        others = [item for item in hashes if own.pop(item, None) is None]
        self._count -= len(hashes) - len(others)
        if not own:
            self._owed.pop(node, None)
        return others

    def _note_early(self, node: Address, hashes: Sequence[bytes], now_ms: int) -> None:
        """Their calls may be about to end; or they are another batch's, or nobody's."""
        if hashes:
            early = self._early.setdefault(node, {})
            early.update(dict.fromkeys(hashes, now_ms))
            while len(early) > MAX_OWED_BY_NODE:
                del early[next(iter(early))]

    def _require(self, node: Address, message: BatchMessage) -> None:
        batch, hashes = message.batch, message.record_hashes
        if batch.signer != node or batch.kind != RecordKind.RECEIPT:
            raise RemoteProtocolError("EMC-1725", f"a batch of kind {batch.kind} signed by {batch.signer}")
        if not 0 < len(hashes) <= BATCH_RECORDS or batch.count != len(hashes):
            raise RemoteProtocolError("EMC-1725", f"{len(hashes)} records in a batch of {batch.count}")
        if set(map(len, hashes)) != {32} or len(set(hashes)) != len(hashes):
            raise RemoteProtocolError("EMC-1725", "a record hash is not 32 bytes, or stands twice")
        if not 0 <= batch.signed_at_ms <= self._clock.now_ms() + MAX_CLOCK_SKEW_MS:
            raise RemoteProtocolError("EMC-1725", "the batch is from the future, or from before all time")
        if batch_root(hashes) != batch.root:
            raise RemoteProtocolError("EMC-1725", "the batch's root is not that of its records")
        require_signer(self._domain, batch, message.signature, node)

    async def _store(self, node: Address, message: BatchMessage) -> bool:
        """Store a batch that brings something owed. Returns: whether it did."""
        now_ms = self._clock.now_ms()
        own = self._owed.get(node, {})
        brought = {
            item: own[item] for item in message.record_hashes if item in own and item not in self._storing
        }
        if not brought:
            return False
        late = min(brought.values()) < now_ms - LATE_AFTER_MS
        stored = StoredBatch(message.batch, message.signature, message.record_hashes, now_ms)

        def store(con: Connection) -> None:
            if late:
                insert_late_batch(con, stored)
            else:
                insert_batches(con, [stored])

        self._storing.update(brought)
        try:
            await self._ledger.write(store)
        finally:
            self._storing.difference_update(brought)
        others = self._drop(node, message.record_hashes)
        self._note_early(node, others, now_ms)
        self._allow(node, len(message.record_hashes) - len(others))
        _TAKEN.labels("late" if late else "stored").inc()
        return True

    async def _store_again(self, item: _Parked) -> str:
        """Store a batch over receipts that are proven already, as far as its node's allowance goes.

        Returns: what became of it.
        """
        node, message = item.node, item.message
        count = len(message.record_hashes)
        if count < 2 or self._allowance.get(node, 0) < count:
            return "unknown"
        stored = StoredBatch(message.batch, message.signature, message.record_hashes, item.since_ms)

        def store(con: Connection) -> bool:
            if has_batch(con, node, RecordKind.RECEIPT, message.batch.root):
                return False
            insert_batches(con, [stored])
            return True

        if not await self._ledger.write(store):
            return "known"
        self._allow(node, -count)
        return "again"

    def _allow(self, node: Address, count: int) -> None:
        allowed = min(MAX_ALLOWANCE, self._allowance.pop(node, 0) + count)
        if allowed > 0:
            self._allowance[node] = allowed
