"""The node's receipts: given once, kept before anybody sees them, signed in batches.

Owns the node's receipt and batch rows. Invariants: a receipt is on disk before the call's end is
sent; a call id has one receipt for ever (the primary key decides, not memory); every receipt ends
up in exactly one batch, also after a crash, and once its round is over perhaps in a larger one too;
a batch is on disk before it is signed, and signing the same batch again gives the same signature.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from emcd.clock import Clock
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.ledger import IntegrityError, Ledger
from emcd.proto.control import BatchMessage, encode
from emcd.proto.eip712 import Domain
from emcd.proto.params import NetworkParams
from emcd.proto.records import BATCH_MS, BATCH_RECORDS, Forward, Receipt, RecordBatch, RecordKind, batch_root
from emcd.proto.signing import Signer
from emcd.types import Hash
from emcd_node import queries
from emcd_node.batch_plan import plan_batches
from emcd_node.queries import BatchRow, ReceiptRow

SendControl = Callable[[bytes], Awaitable[None]]

_REMEMBERED_CALLS = 8192
"""Call ids kept in memory so that a repeated call is refused before work, not only after."""
_RESEND_MS = 30_000
"""What was sent this shortly before a connection broke may not have reached the hub's disk."""
_CONSOLIDATED_PAUSE_S = 0.05
"""A hub listens to 50 messages a second of a node."""
_WRITE_S = 30.0
"""A ledger that takes longer is as good as lost; the call fails and no receipt is shown."""


class ReceiptBook:
    """Receipts of one node key. `run` makes the batches; `attach` gives them a way out."""

    def __init__(
        self, ledger: Ledger, key: Signer, domain: Domain, params: NetworkParams, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._key = key
        self._domain = domain
        self._params = params
        self._clock = clock
        self._calls: OrderedDict[bytes, None] = OrderedDict()
        self._unbatched: list[Hash] = []
        self._arrived = trio.lowlevel.ParkingLot()
        self._batched = trio.lowlevel.ParkingLot()
        self._send: SendControl | None = None
        self._sending = False

    def claim_call(self, call_id: bytes) -> None:
        """Take a call id for a call that begins. Raises: RemoteProtocolError EMC-2002 when it came before."""
        if call_id in self._calls:
            raise RemoteProtocolError("EMC-2002", f"call {call_id.hex()}")
        self._calls[call_id] = None
        if len(self._calls) > _REMEMBERED_CALLS:
            self._calls.popitem(last=False)

    async def give(self, forward: Forward, receipt: Receipt) -> None:
        """Put a receipt on disk; from its return on it may be shown.

        Raises: RemoteProtocolError EMC-2002 when the call has one already; RecoverableError EMC-2013
        when the ledger does not answer.
        Cancellation: after the write, which is on disk then.
        """
        receipt_hash = receipt.struct_hash()
        row = ReceiptRow(
            instance=self._key.address,
            call_id=forward.call_id,
            forward_hash=Hash(receipt.forward_hash),
            receipt_hash=receipt_hash,
            forward=msgspec.msgpack.encode(forward),
            receipt=msgspec.msgpack.encode(receipt),
            round=self._params.round_at(receipt.finished_at_ms),
        )
        with trio.move_on_after(_WRITE_S, shield=True):  # a receipt on disk must be known here too
            try:
                await self._ledger.write_bulk(queries.insert_receipts, row)
            except IntegrityError as exc:
                raise RemoteProtocolError("EMC-2002", f"call {forward.call_id.hex()}") from exc
            self._unbatched.append(receipt_hash)
            self._arrived.unpark()
            return
        raise RecoverableError("EMC-2013", f"call {forward.call_id.hex()}")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Batch what a crash left, then every receipt within `BATCH_MS` of its coming."""
        left = await self._ledger.read(lambda con: queries.list_unbatched(con, self._key.address))
        known = set(self._unbatched)
        self._unbatched[:0] = [item for item in left if item not in known]
        task_status.started()
        while True:
            await self._wait_for(1)
            with trio.move_on_after(BATCH_MS / 1000):
                await self._wait_for(BATCH_RECORDS)
            await self._make_batch()

    async def flush(self) -> None:
        """Wait until every receipt given so far stands in a batch on disk, sent if there is a connection."""
        while self._unbatched or self._sending:
            await self._batched.park()

    async def _wait_for(self, count: int) -> None:
        while len(self._unbatched) < count:
            await self._arrived.park()

    async def attach(self, send: SendControl) -> None:
        """Send the batches through a new connection: first those the hub may miss, then all new ones.

        Raises: what `send` raises; the batches stay due then.
        """
        self._send = send
        address = self._key.address
        last = await self._ledger.read(lambda con: queries.find_last_sent_ms(con, address))
        rows = await self._ledger.read(
            lambda con: queries.list_batches_to_send(con, address, last - _RESEND_MS)
        )
        for row in rows:
            await self._send_batch(send, row)

    def detach(self, send: SendControl) -> None:
        """The connection is gone; batches wait on disk for the next."""
        if self._send is send:
            self._send = None

    async def consolidate(self, round_index: int) -> int:
        """Sign the receipts of a round that is over anew, those of small batches in larger ones, once.

        Returns: how many batches were made; they are sent, and sent again after a broken connection, as
        all others are. Cancellation: what is on disk is sent through the next connection.
        """
        address = self._key.address
        if await self._ledger.read(lambda con: queries.is_consolidated(con, address, round_index)):
            return 0
        found = await self._ledger.read(lambda con: queries.list_batched(con, address, round_index))
        rows = [self._make_row(hashes) for hashes in plan_batches(found)]
        if not await self._ledger.write(
            lambda con: queries.insert_consolidated(con, address, round_index, rows)
        ):
            return 0
        for row in rows:
            if self._send is not None:
                try:
                    await self._send_batch(self._send, row)
                except RecoverableError:
                    self._send = None
            await trio.sleep(_CONSOLIDATED_PAUSE_S)
        return len(rows)

    async def prune(self, keep_rounds: int, settled_rounds: int) -> int:
        """Forget what is older than `keep_rounds` rounds, and what a bundle of `settled_rounds` ago carried.

        Returns: how many rows went.
        """
        address, current = self._key.address, self._params.round_at(self._clock.now_ms())
        before, settled = current - keep_rounds, current - settled_rounds
        gone = await self._ledger.write(lambda con: queries.delete_before(con, address, before))
        return gone + await self._ledger.write(lambda con: queries.delete_settled(con, address, settled))

    def _make_row(self, hashes: Sequence[bytes]) -> BatchRow:
        now_ms = self._clock.now_ms()
        batch = RecordBatch(
            signer=self._key.address,
            kind=RecordKind.RECEIPT,
            root=batch_root(hashes),
            count=len(hashes),
            signed_at_ms=now_ms,
        )
        return BatchRow(
            instance=self._key.address,
            root=Hash(batch.root),
            batch=msgspec.msgpack.encode(batch),
            record_hashes=b"".join(hashes),
            round=self._params.round_at(now_ms),
        )

    async def _make_batch(self) -> None:
        hashes = self._unbatched[:BATCH_RECORDS]
        row = self._make_row(hashes)
        await self._ledger.write(lambda con: queries.insert_batch(con, row))
        self._sending = True
        del self._unbatched[: len(hashes)]
        try:
            if self._send is not None:
                await self._send_batch(self._send, row)
        except RecoverableError:
            self._send = None  # the connection broke: the next one's `attach` sends it
        finally:
            self._sending = False
            self._batched.unpark_all()

    async def _send_batch(self, send: SendControl, row: BatchRow) -> None:
        batch = msgspec.msgpack.decode(row.batch, type=RecordBatch)
        signature = self._key.sign(self._domain, batch)
        await send(encode(BatchMessage(batch, signature, tuple(queries.split_hashes(row.record_hashes)))))
        now_ms = self._clock.now_ms()
        await self._ledger.write(lambda con: queries.mark_batch_sent(con, row.instance, row.root, now_ms))
