"""A call's receipt as users fetch it: three records, each with the proof of its signed batch."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.accounting.receipt import CallReceipt
from emcd.ledger import Connection
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.records import RecordKind, RecordProof
from emcd.types import ZERO_HASH, Address
from emcd_hub.records.batch_row import find_batch
from emcd_hub.records.call_row import StoredCall, find_call


@dataclass(frozen=True)
class Pending:
    """The call is recorded; a batch that proves one of its records is still to come."""

    call: StoredCall


def find_receipt(
    con: Connection, hub: Address, call_id: bytes
) -> tuple[StoredCall, CallReceipt] | Pending | None:
    """The receipt of a call. Returns: None (no such call), Pending, or the call with its receipt."""
    call = find_call(con, call_id)
    if call is None:
        return None
    forward, receipt, delivery = call.forward, call.receipt, call.delivery
    finished = delivery.finished_at_ms
    forward_proof = _find_proof(con, hub, RecordKind.FORWARD, delivery.forward_hash, forward.started_at_ms)
    delivery_proof = _find_proof(con, hub, RecordKind.DELIVERY, delivery.struct_hash(), finished)
    receipt_proof = None
    if delivery.receipt_hash != ZERO_HASH:
        receipt_proof = _find_proof(con, forward.node, RecordKind.RECEIPT, delivery.receipt_hash, finished)
        if receipt_proof is None:
            return Pending(call)
    if forward_proof is None or delivery_proof is None:
        return Pending(call)
    return call, CallReceipt(forward, forward_proof, receipt, receipt_proof, delivery, delivery_proof)


def _find_proof(
    con: Connection, signer: Address, kind: RecordKind, record_hash: bytes, made_at_ms: int
) -> RecordProof | None:
    found = find_batch(con, signer, kind, record_hash, made_at_ms)
    if found is None:
        return None
    stored, leaf = found
    tree = build_tree([record_leaf(item) for item in stored.record_hashes])
    return RecordProof(stored.batch, stored.signature, leaf, tuple(build_proof(tree, leaf)))
