"""The offline check of a call's receipt: three records, three proofs, two signers.

With it a user proves to anybody what was asked, who did it and what it cost; no network is
needed, only the addresses of hub and node and the contract that the signatures are for.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from emcd.accounting.call_rule import CallStanding, check_standing
from emcd.accounting.price import charge_call_ceil, price_of
from emcd.errors import LocalProtocolError, RemoteProtocolError
from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.params import PriceTable
from emcd.proto.records import (
    CallStatus,
    Delivery,
    Forward,
    Receipt,
    RecordProof,
    request_hash,
    require_proof,
)
from emcd.types import ZERO_HASH, Address


class CallReceipt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The receipt of a call: the forward, the node's receipt and the delivery, each with its proof.

    `receipt` and its proof are None together, where the node gave none.
    """

    forward: Forward
    forward_proof: RecordProof
    receipt: Receipt | None
    receipt_proof: RecordProof | None
    delivery: Delivery
    delivery_proof: RecordProof


@dataclass(frozen=True)
class ReceiptFault:
    """The first thing that is wrong, with its code."""

    code: str
    detail: str


@dataclass(frozen=True)
class ReceiptOutcome:
    """`fault` None: the receipt is true. A true receipt may still not count, for `standing`."""

    fault: ReceiptFault | None
    standing: CallStanding | None = None

    @property
    def ok(self) -> bool:
        return self.fault is None

    @property
    def counts(self) -> bool:
        return self.standing is CallStanding.COUNTS


def check_receipt(
    domain: Domain,
    hub: Address,
    call: CallReceipt,
    *,
    request: tuple[str, bytes] | None = None,
    body: bytes | None = None,
    prices: PriceTable | None = None,
) -> ReceiptOutcome:
    """Check a receipt, and what the caller still has of the call.

    Args: `request` the path and body as they were forwarded to the node; `body` what the caller
    got; `prices` the table in force when the call started.
    """
    try:
        _require_chain(hub, call)
        require_proof(domain, call.forward, call.forward_proof, hub)
        if call.receipt is not None and call.receipt_proof is not None:
            require_proof(domain, call.receipt, call.receipt_proof, call.forward.node)
        require_proof(domain, call.delivery, call.delivery_proof, hub)
        if request is not None and request_hash(*request) != call.forward.request_hash:
            raise RemoteProtocolError("EMC-1961", "another request was forwarded to the node")
        if body is not None and keccak(body) != call.delivery.body_hash:
            raise RemoteProtocolError("EMC-1961", "another body was delivered")
        if prices is not None:
            _require_charge(call, prices)
    except (RemoteProtocolError, LocalProtocolError) as exc:
        return ReceiptOutcome(ReceiptFault(exc.code, exc.detail))
    return ReceiptOutcome(None, check_standing(call.forward, call.receipt, call.delivery, is_proven=True))


def _require_chain(hub: Address, call: CallReceipt) -> None:
    forward_hash = call.forward.struct_hash()
    if call.forward.hub != hub:
        raise RemoteProtocolError("EMC-1960", f"the forward is by hub {call.forward.hub}")
    if (call.receipt is None) != (call.receipt_proof is None):
        raise RemoteProtocolError("EMC-1960", "the node's receipt and its proof come together")
    if call.delivery.forward_hash != forward_hash:
        raise RemoteProtocolError("EMC-1960", "the delivery is of another forward")
    if call.receipt is not None and call.receipt.forward_hash != forward_hash:
        raise RemoteProtocolError("EMC-1960", "the receipt is of another forward")
    if call.delivery.receipt_hash != (ZERO_HASH if call.receipt is None else call.receipt.struct_hash()):
        raise RemoteProtocolError("EMC-1960", "the delivery is of another receipt")
    if call.delivery.status not in {int(status) for status in CallStatus}:
        raise RemoteProtocolError("EMC-1960", f"{call.delivery.status} is no call status")


def _require_charge(call: CallReceipt, prices: PriceTable) -> None:
    if prices.version != call.forward.price_version:
        raise RemoteProtocolError("EMC-1962", f"the call was priced by table {call.forward.price_version}")
    if call.receipt is None:
        return
    status = CallStatus(call.delivery.status)
    price = price_of(prices, call.forward.model_hash)
    charge = charge_call_ceil(price, call.receipt.input_tokens, call.receipt.output_tokens)
    paid = call.delivery.credits_micro
    wrong = paid != charge if status is CallStatus.OK else paid > (charge if status.is_success else 0)
    if wrong:
        raise RemoteProtocolError("EMC-1962", f"{paid} micro-credits were charged, the price is {charge}")
