"""The three records of a call, and its row: what makes an answer one that nobody can lose.

Owns call ids, the forward before a call, the delivery after it, the settlement of its charge.
Invariants: a forward is queued for signing before the node hears of the call; a delivery is
queued only when its row is on disk; a reservation is closed exactly once.

A call is settled in three steps: `prepare` takes the charge in memory and makes the row, the ledger
commits it, `confirm` or `undo` follows, by the ledger's own word: whoever waits for that may give up
waiting, never the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from emcd.accounting.price import charge_call_ceil
from emcd.clock import Clock
from emcd.inference.manifest import EMBEDDED_ENGINE, TextManifest
from emcd.ledger import Ledger
from emcd.proto.control import CallMeta
from emcd.proto.openai_shape import Once, UpstreamRequest
from emcd.proto.params import ModelPrice
from emcd.proto.records import CallStatus, Delivery, Forward, Receipt, request_hash
from emcd.types import ZERO_HASH, Address
from emcd_hub.billing.book import AccountBook, Charge, Reservation
from emcd_hub.calls.held import Held
from emcd_hub.calls.once_writes import OnceWrites
from emcd_hub.in_force import InForce
from emcd_hub.nodes.status import ModelInfo
from emcd_hub.records.call_row import CallRow, insert_calls
from emcd_hub.records.once_row import insert_calls_once
from emcd_hub.records.withheld import find_withheld

_POOL_BYTES = 65_536
"""Random bytes drawn at once: the kernel is asked once for 6,500 call ids."""
_TAIL_BYTES = 10
_MOST_UNCOUNTED = 2**31 - 1
"""Kept of one call: the sums of a round's calls stay within 64 bits, whatever engines state."""
_ENDED_EARLY = frozenset((CallStatus.CANCELLED, CallStatus.CAPPED))
_encode = msgspec.msgpack.Encoder().encode


class RecordSink(Protocol):
    """Where the hashes of records go to be signed in batches."""

    def add_forward(self, record_hash: bytes, node: Address) -> None: ...

    def add_delivery(self, record_hash: bytes, node: Address, delivery: Delivery) -> None: ...

    def expect_receipt(self, receipt_hash: bytes, node: Address, finished_at_ms: int) -> None:
        """The node owes a signed batch with this receipt in it."""
        ...


class OpenCall(msgspec.Struct, eq=False):
    """A call at a node, from its forward to its delivery."""

    forward: Forward
    forward_hash: bytes
    meta: bytes
    info: ModelInfo
    reservation: Reservation
    price: ModelPrice
    once: Once | None = None
    settled: bool = False
    is_media: bool = False
    withheld: int = 0
    seed: int | None = None
    uncounted_tokens: int = 0
    held: Held | None = None

    @property
    def owes_evidence(self) -> bool:
        """Whether its node always has the evidence of a text."""
        manifest = self.info.checked
        return isinstance(manifest, TextManifest) and manifest.engine == EMBEDDED_ENGINE

    def find_proven(self, claimed: tuple[int, int]) -> tuple[int, int]:
        """Input and output tokens, as far as they can be proven where that is possible."""
        if self.held is None or self.info.checked is None:
            return claimed
        return self.held.bound(claimed)


class Settled:
    """How a call ended. It is so once its row is on disk."""

    __slots__ = (
        "call", "charge", "delivery", "delivery_hash", "once", "receipt", "receipt_hash", "row", "status"
    )  # fmt: skip

    def __init__(self, call: OpenCall, status: CallStatus, charge: Charge, receipt_hash: bytes) -> None:
        self.call = call
        self.status = status
        self.charge = charge
        self.receipt_hash = receipt_hash
        self.once = call.once if status is CallStatus.OK or charge.total_micro else None
        """The key that is used up by this: one of a call that failed, or cost nothing, stays free."""
        self.receipt: Receipt | None = None
        self.delivery: Delivery
        self.delivery_hash: bytes
        self.row: CallRow


class CallRecorder:
    """Makes and keeps the records of this hub's calls."""

    def __init__(
        self,
        *,
        hub: Address,
        in_force: InForce,
        ledger: Ledger,
        clock: Clock,
        book: AccountBook,
        sink: RecordSink,
        random_bytes: Callable[[int], bytes],
        last_seq: int,
    ) -> None:
        self._hub = hub
        self._in_force = in_force
        self._ledger = ledger
        self._clock = clock
        self._book = book
        self._sink = sink
        self._random_bytes = random_bytes
        self._pool = b""
        self._pool_at = 0
        self._seq = last_seq
        self.once_writes = OnceWrites()

    def open(
        self,
        request: UpstreamRequest,
        hash_of_request: bytes,
        node: Address,
        router: Address,
        info: ModelInfo,
        held: Reservation,
        price: ModelPrice,
        now_ms: int,
    ) -> OpenCall:
        """Make the forward of a call that goes to a node now.

        Args:
            router: whose tunnel it goes through; zero where that is the node's own.
            price: the model's at `now_ms`.
        """
        forward = Forward(
            self._draw_call_id(now_ms),
            self._hub,
            router,
            node,
            hash_of_request,
            info.model_hash,
            self._in_force.prices(now_ms).version,
            now_ms,
        )
        forward_hash = forward.struct_hash()
        self._sink.add_forward(forward_hash, node)
        meta = _encode(
            CallMeta(forward, request.endpoint.path, request.model, request.stream, request.content_type)
        )
        media = request.endpoint.is_media
        return OpenCall(
            forward, forward_hash, meta, info, held, price, request.once, is_media=media,
            withheld=find_withheld(request) if request.evidence or request.stream else 0,
            seed=request.drawn_seed,
        )  # fmt: skip

    def price_now(self, info: ModelInfo) -> ModelPrice:
        """The price of a call of the model that starts now."""
        return self._in_force.price(info.model_hash, self._clock.now_ms())

    def price_at(self, info: ModelInfo, at_ms: int) -> ModelPrice:
        """The price of a call of the model that starts at a time."""
        return self._in_force.price(info.model_hash, at_ms)

    def has_free_model(self, now_ms: int) -> bool:
        """Whether a call may cost nothing at all."""
        table = self._in_force.prices(now_ms)
        prices = (table.default, *(price for _, price in table.models))
        return not all(any(msgspec.structs.astuple(price)) for price in prices)

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def prepare(
        self,
        call: OpenCall,
        status: CallStatus,
        receipt: Receipt | None,
        body_hash: bytes,
        cost_micro: int,
        fault: str,
    ) -> Settled:
        """Take a call's charge from its reservation and make its row. `submit` must follow.

        Args:
            receipt: the node's, once it was found to fit; body_hash: of what the caller gets.
            cost_micro: its price, 0 for a failed call; what the account can't pay caps the call. One that
                was left or cut costs no more than it holds.
        """
        book, held = self._book, call.reservation
        finished_at_ms = max(self._clock.now_ms(), call.forward.started_at_ms)
        if cost_micro > held.amount_micro:
            if status in _ENDED_EARLY:
                most_micro = held.amount_micro
            else:
                most_micro = book.extend(held, cost_micro, finished_at_ms)
                status = CallStatus.CAPPED if cost_micro > most_micro else status
            cost_micro = min(cost_micro, most_micro)
        receipt_hash: bytes = ZERO_HASH
        tokens = None
        if receipt is not None:
            receipt_hash = receipt.struct_hash()
            tokens = sum(call.find_proven((receipt.input_tokens, receipt.output_tokens)))
            if call.is_media:  # stated by the engine, and by nothing bounded
                tokens = min(tokens, held.tokens)
        charge = book.settle(held, cost_micro, finished_at_ms, tokens)
        call.settled = True
        settled = Settled(call, status, charge, receipt_hash)
        settled.receipt = receipt
        try:
            self._make_row(settled, receipt, body_hash, fault, finished_at_ms)
        except Exception:
            book.refund(held, charge, finished_at_ms)
            raise
        return settled

    @property
    def has_room(self) -> bool:
        """Whether the ledger takes a row now, without anybody waiting."""
        return self._ledger.has_room

    async def wait_room(self, settled: Settled) -> None:
        """Wait until the ledger has room for a row. Cancellation: it is not written, and was not charged."""
        try:
            await self._ledger.wait_room()
        except trio.Cancelled:
            self.undo(settled)
            raise

    def submit(self, settled: Settled, ended: Callable[[Exception | None, None], None]) -> None:
        """Have the row written; `ended` is called in the loop and must `confirm` or `undo`."""
        try:
            if settled.once is None:
                self._ledger.submit_bulk(insert_calls, settled.row, ended)
            else:
                item = (settled.row, settled.once)
                self._ledger.submit_bulk(insert_calls_once, item, self.once_writes.add(settled.once, ended))
        except Exception:
            self.undo(settled)
            raise

    def confirm(self, settled: Settled) -> None:
        """The row is on disk: the delivery may be signed, and the node owes its receipt."""
        delivery, node = settled.delivery, settled.call.forward.node
        self._sink.add_delivery(settled.delivery_hash, node, delivery)
        if settled.receipt_hash is not ZERO_HASH:
            self._sink.expect_receipt(settled.receipt_hash, node, delivery.finished_at_ms)

    def undo(self, settled: Settled) -> None:
        """The ledger refused the row: the balance in memory is as it was."""
        self._book.refund(settled.call.reservation, settled.charge, settled.delivery.finished_at_ms)

    def cost_of(self, call: OpenCall, input_tokens: int, output_tokens: int) -> int:
        """The price of a successful call with these tokens."""
        return charge_call_ceil(call.price, input_tokens, output_tokens)

    def _make_row(
        self, settled: Settled, receipt: Receipt | None, body_hash: bytes, fault: str, finished_at_ms: int
    ) -> None:
        call, status = settled.call, settled.status
        granted_micro, vault_micro = settled.charge
        forward = call.forward
        delivery = settled.delivery = Delivery(
            call.forward_hash,
            settled.receipt_hash,
            body_hash,
            status,
            granted_micro + vault_micro,
            vault_micro,
            self._in_force.round_at(finished_at_ms),
            finished_at_ms,
        )
        settled.delivery_hash = delivery.struct_hash()
        self._seq += 1
        key = call.reservation.key
        settled.row = CallRow(
            self._seq,
            forward.call_id,
            key.account_id,
            forward.node,
            call.info.name,
            delivery.round,
            int(status),
            bytearray(_encode(forward)),
            None if receipt is None else bytearray(_encode(receipt)),
            bytearray(_encode(delivery)),
            granted_micro,
            vault_micro,
            fault,
            finished_at_ms,
            key.key_id,
            call.withheld,
            call.seed,
            0 if receipt is None else min(call.uncounted_tokens, receipt.output_tokens, _MOST_UNCOUNTED),
        )

    def _draw_call_id(self, now_ms: int) -> bytes:
        """Ids begin with the time, so that those of one day lie together in the ledger's index."""
        at = self._pool_at
        if at >= len(self._pool):
            self._pool, at = self._random_bytes(_POOL_BYTES // _TAIL_BYTES * _TAIL_BYTES), 0
        self._pool_at = at + _TAIL_BYTES
        return now_ms.to_bytes(6, "big") + self._pool[at : at + _TAIL_BYTES]


def hash_request(request: UpstreamRequest) -> bytes:
    """What stands in the forward: the same for every node that is tried."""
    known = request.known_hash
    return known or request_hash(request.endpoint.path, request.body, request.content_type)
