"""The three records of a call, and its row: what makes an answer one that nobody can lose.

Owns call ids, the forward before a call, the delivery after it, the settlement of its charge.
Invariants: a forward is queued for signing before the node hears of the call; a delivery is
queued only when its row is on disk; `settle` returns only then; a reservation is closed exactly
once. Nothing here may be cancelled half-way: callers shield.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from emcd.accounting.price import charge_call_ceil
from emcd.clock import Clock
from emcd.ledger import Ledger
from emcd.proto.control import CallMeta
from emcd.proto.openai import UpstreamRequest
from emcd.proto.params import ModelPrice
from emcd.proto.records import CallStatus, Delivery, Forward, Receipt, RecordKind, request_hash
from emcd.types import ZERO_ADDRESS, ZERO_HASH, Address
from emcd_hub.billing.book import NO_CHARGE, AccountBook, Charge, Reservation
from emcd_hub.in_force import InForce
from emcd_hub.nodes.status import ModelInfo
from emcd_hub.records.call_row import CallRow, insert_calls

_encode = msgspec.msgpack.Encoder().encode


class RecordSink(Protocol):
    """Where the hashes of records go to be signed in batches."""

    def add(
        self, kind: RecordKind, record_hash: bytes, node: Address, delivery: Delivery | None = None
    ) -> None: ...

    def expect_receipt(self, receipt_hash: bytes, node: Address, finished_at_ms: int) -> None:
        """The node owes a signed batch with this receipt in it."""
        ...


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call at a node, from its forward to its delivery."""

    forward: Forward
    forward_hash: bytes
    meta: bytes
    info: ModelInfo
    reservation: Reservation
    price: ModelPrice
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """How a call ended, as it stands on disk."""

    status: CallStatus
    charge: Charge
    delivery: Delivery


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
        self._seq = last_seq

    def open(
        self,
        request: UpstreamRequest,
        hash_of_request: bytes,
        node: Address,
        info: ModelInfo,
        held: Reservation,
    ) -> OpenCall:
        """Make the forward of a call that goes to a node now.

        Ids begin with the time, so that those of one day lie together in the ledger's index.
        """
        now_ms = self._clock.now_ms()
        forward = Forward(
            now_ms.to_bytes(6, "big") + self._random_bytes(10),
            self._hub,
            ZERO_ADDRESS,
            node,
            hash_of_request,
            info.model_hash,
            self._in_force.prices(now_ms).version,
            now_ms,
        )
        forward_hash = forward.struct_hash()
        self._sink.add(RecordKind.FORWARD, forward_hash, node)
        meta = _encode(CallMeta(forward, request.endpoint.value, request.model, request.stream))
        price = self._in_force.price(info.model_hash, now_ms)
        return OpenCall(forward, forward_hash, meta, info, held, price)

    def price_now(self, info: ModelInfo) -> ModelPrice:
        """The price of a call of the model that starts now."""
        return self._in_force.price(info.model_hash, self._clock.now_ms())

    def now_ms(self) -> int:
        return self._clock.now_ms()

    async def settle(
        self,
        call: OpenCall,
        status: CallStatus,
        receipt: Receipt | None,
        body_hash: bytes,
        cost_micro: int,
        fault: str,
    ) -> Settled:
        """Charge a call and write its row; returns when that is on disk.

        Args:
            receipt: the node's, once it was found to fit; body_hash: of what the caller gets.
            cost_micro: its price, 0 for a failed call; what the account can't pay caps the call.

        Raises: FatalError when the ledger fails. What is raised leaves the balance in memory as it was.
        """
        forward = call.forward
        receipt_hash = ZERO_HASH if receipt is None else receipt.struct_hash()
        forward_bytes = _encode(forward)
        receipt_bytes = None if receipt is None else _encode(receipt)
        held = self._book.extend(call.reservation, cost_micro)
        if cost_micro > held:
            status, cost_micro = CallStatus.CAPPED, held
        charge = self._book.settle(call.reservation, cost_micro) if cost_micro else NO_CHARGE
        self._book.release(call.reservation)
        call.settled = True
        finished_at_ms = max(self._clock.now_ms(), forward.started_at_ms)
        try:
            delivery = Delivery(
                call.forward_hash,
                receipt_hash,
                body_hash,
                status,
                charge.total_micro,
                charge.vault_micro,
                self._in_force.params(finished_at_ms).round_at(finished_at_ms),
                finished_at_ms,
            )
            delivery_hash = delivery.struct_hash()
            self._seq += 1
            row = CallRow(
                self._seq,
                forward.call_id,
                call.reservation.account.account_id,
                forward.node,
                call.info.name,
                delivery.round,
                status,
                forward_bytes,
                receipt_bytes,
                _encode(delivery),
                charge.granted_micro,
                charge.vault_micro,
                fault,
                finished_at_ms,
            )
            await self._ledger.write_bulk(insert_calls, row)
        except Exception:
            self._book.refund(call.reservation.account, charge)
            raise
        self._sink.add(RecordKind.DELIVERY, delivery_hash, forward.node, delivery)
        if receipt is not None:
            self._sink.expect_receipt(receipt_hash, forward.node, finished_at_ms)
        return Settled(status, charge, delivery)

    def cost_of(self, call: OpenCall, input_tokens: int, output_tokens: int) -> int:
        """The price of a successful call with these tokens."""
        return charge_call_ceil(call.price, input_tokens, output_tokens)


def hash_request(request: UpstreamRequest) -> bytes:
    """What stands in the forward: the same for every node that is tried."""
    return request_hash(request.endpoint.value, request.body)
