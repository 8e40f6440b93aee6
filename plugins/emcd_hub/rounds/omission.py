"""Receipts that nodes filed with validators, and that the hub has no signed batch of.

Invariant: a batch leaves here only when it is the node's own signature of the one receipt that the
hub delivered with the call.
"""

from __future__ import annotations

from collections.abc import Iterable

from emcd.errors import RemoteProtocolError
from emcd.ledger import Connection
from emcd.proto.eip712 import Domain
from emcd.proto.records import RecordKind, batch_root
from emcd.proto.signing import require_signer
from emcd_hub.records.batch_row import StoredBatch, find_batch, insert_late_batch
from emcd_hub.records.call_row import StoredCall, find_call
from emcd_hub.rounds.statement import FiledReceipt


def list_lacking(con: Connection, filed: Iterable[FiledReceipt]) -> list[tuple[FiledReceipt, StoredCall]]:
    """Those of them that are of calls of this hub whose receipt stands in no batch here."""
    found = {}
    for item in filed:
        call = find_call(con, item.call_id)
        if call is None or call.receipt is None or not _is_of(item, call):
            continue
        forward, record_hash = call.forward, call.delivery.receipt_hash
        if find_batch(con, forward.node, RecordKind.RECEIPT, record_hash, forward.started_at_ms) is None:
            found[item.call_id] = (item, call)
    return list(found.values())


def insert_late_batches(con: Connection, items: Iterable[StoredBatch]) -> None:
    for item in items:
        insert_late_batch(con, item)


def _is_of(item: FiledReceipt, call: StoredCall) -> bool:
    batch = item.batch
    wanted = (call.forward.node, RecordKind.RECEIPT, 1, batch_root((call.delivery.receipt_hash,)))
    return (batch.signer, batch.kind, batch.count, batch.root) == wanted


def check_filed(domain: Domain, lacking: Iterable[tuple[FiledReceipt, StoredCall]]) -> list[StoredBatch]:
    """Those that their nodes signed.

    A batch counts as received when its call began, so that a node that answers no request for its
    batches does not look as if it did.
    """
    found = []
    for item, call in lacking:
        try:
            require_signer(domain, item.batch, item.signature, call.forward.node)
        except RemoteProtocolError:
            continue
        hashes = (call.delivery.receipt_hash,)
        found.append(StoredBatch(item.batch, item.signature, hashes, call.forward.started_at_ms))
    return found
