"""What the three records of a call must say together, and whether the call counts.

Two questions: may it stand in the bundle at all (`require_call` raises), and does it earn
(`CallStanding`). Source: DESIGN 2.1, 2.4, 2.7.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from emcd.accounting.price import charge_call_ceil, price_of
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.proto.records import CallStatus, Delivery, Forward, Receipt
from emcd.types import ZERO_HASH

_STATUSES = frozenset(int(status) for status in CallStatus)


class CallHashes(NamedTuple):
    """The struct hashes of a call's records; zero for a receipt that is missing."""

    forward: bytes
    receipt: bytes
    delivery: bytes


class CallStanding(Enum):
    """Does a call earn, and if not, why not."""

    COUNTS = "counts"
    FAILED = "failed"
    NO_RECEIPT = "no receipt"
    UNPROVEN = "no signed batch holds all three records"
    TIMES = "the node's times differ from the hub's by more than 30 s"


def hash_call(forward: Forward, receipt: Receipt | None, delivery: Delivery) -> CallHashes:
    """The struct hashes of the three records."""
    return CallHashes(
        forward.struct_hash(), ZERO_HASH if receipt is None else receipt.struct_hash(), delivery.struct_hash()
    )


def require_call(
    terms: RoundTerms, forward: Forward, receipt: Receipt | None, delivery: Delivery, hashes: CallHashes
) -> None:
    """Raises: RemoteProtocolError EMC-1911 (records don't belong together), 1913 (charge), 1914 (round)."""
    fault = _chain_fault(terms, forward, receipt, delivery, hashes)
    if fault:
        raise RemoteProtocolError("EMC-1911", fault)
    fault = _round_fault(terms, forward, delivery)
    if fault:
        raise RemoteProtocolError("EMC-1914", fault)
    fault = _charge_fault(terms, forward, receipt, delivery)
    if fault:
        raise RemoteProtocolError("EMC-1913", fault)


def check_standing(
    forward: Forward, receipt: Receipt | None, delivery: Delivery, *, is_proven: bool
) -> CallStanding:
    """Does the call earn? `is_proven`: each of the three stands in a signed batch."""
    if not CallStatus(delivery.status).is_success or (
        receipt is not None and not 200 <= receipt.http_status < 300
    ):
        return CallStanding.FAILED
    if receipt is None:
        return CallStanding.NO_RECEIPT
    if not is_proven:
        return CallStanding.UNPROVEN
    earliest = forward.started_at_ms - MAX_CLOCK_SKEW_MS
    latest = delivery.finished_at_ms + MAX_CLOCK_SKEW_MS
    if not earliest <= receipt.started_at_ms <= receipt.finished_at_ms <= latest:
        return CallStanding.TIMES
    return CallStanding.COUNTS


def _chain_fault(
    terms: RoundTerms, forward: Forward, receipt: Receipt | None, delivery: Delivery, hashes: CallHashes
) -> str:
    if forward.hub != terms.hub:
        return f"the forward is by hub {forward.hub}"
    if delivery.forward_hash != hashes.forward:
        return "the delivery is not of this forward"
    if delivery.receipt_hash != hashes.receipt:
        return "the delivery is not of this receipt"
    if receipt is not None and receipt.forward_hash != hashes.forward:
        return "the receipt is not of this forward"
    if delivery.status not in _STATUSES:
        return f"{delivery.status} is no call status"
    if delivery.finished_at_ms < forward.started_at_ms:
        return "it finished before it started"
    return ""


def _round_fault(terms: RoundTerms, forward: Forward, delivery: Delivery) -> str:
    if delivery.round != terms.params.round_at(delivery.finished_at_ms):
        return f"it finished in round {terms.params.round_at(delivery.finished_at_ms)}, not {delivery.round}"
    if not terms.round - terms.params.carry_rounds <= delivery.round <= terms.round:
        return f"round {delivery.round} is not carried into round {terms.round}"
    if forward.price_version not in terms.prices:
        return f"price table {forward.price_version} is not in the bundle"
    in_force = terms.price_in_force(forward.started_at_ms)
    if in_force is None or in_force.version != forward.price_version:
        named = "none of the bundle's" if in_force is None else f"table {in_force.version}"
        return f"priced by table {forward.price_version}; when it started, {named} was in force"
    return ""


def _charge_fault(terms: RoundTerms, forward: Forward, receipt: Receipt | None, delivery: Delivery) -> str:
    if delivery.vault_micro > delivery.credits_micro:
        return f"{delivery.vault_micro} of {delivery.credits_micro} micro-credits came from the vault"
    status = CallStatus(delivery.status)
    if not status.is_success:
        return f"a failed call was charged {delivery.credits_micro}" if delivery.credits_micro else ""
    if receipt is None:
        return ""
    price = price_of(terms.prices[forward.price_version], forward.model_hash)
    charge = charge_call_ceil(price, receipt.input_tokens, receipt.output_tokens)
    if status is CallStatus.OK and delivery.credits_micro != charge:
        return f"{delivery.credits_micro} micro-credits charged, the price is {charge}"
    if delivery.credits_micro > charge:
        return f"{delivery.credits_micro} micro-credits charged, the price is at most {charge}"
    return ""
