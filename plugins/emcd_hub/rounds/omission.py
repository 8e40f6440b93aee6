"""Calls that were filed with validators because a bundle left them out: brought back into the next.

Two things may be lacking here: the node's signed batch, which the validators pass on, and the call
itself among those that wait for a bundle. Invariants: a batch leaves here only when it is the
node's own signature over the receipt that the hub delivered with the call; a call is carried only
when it stands in no bundle of this hub since its round, whatever anybody says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emcd.errors import RemoteProtocolError
from emcd.ledger import Connection
from emcd.proto.bundle_codec import BundleReader
from emcd.proto.bundle_codec import find_call as find_entry
from emcd.proto.eip712 import Domain
from emcd.proto.records import RecordKind, batch_root
from emcd.proto.signing import require_signer
from emcd_hub.records.batch_row import StoredBatch, find_batch, insert_late_batch
from emcd_hub.records.call_row import StoredCall, find_call
from emcd_hub.rounds.bundle_folder import BundleFolder
from emcd_hub.rounds.bundle_row import find_bundle_file, list_facts
from emcd_hub.rounds.old_bundle import is_old
from emcd_hub.rounds.statement import FiledReceipt

MAX_LOOKED_UP = 512
"""Calls looked for in bundles at a time; the others' turn comes with the next collection."""
FILED = "left out of a bundle, and filed"


def list_lacking(con: Connection, filed: Iterable[FiledReceipt]) -> list[tuple[FiledReceipt, StoredCall]]:
    """Those of them that are of calls of this hub whose receipt stands in no batch here; a batch once."""
    found: dict[tuple[bytes, bytes], tuple[FiledReceipt, StoredCall]] = {}
    for item in filed:
        call = find_call(con, item.call_id)
        if call is None or call.receipt is None:
            continue
        forward, record_hash = call.forward, call.delivery.receipt_hash
        key = (item.batch.root, item.signature)
        if key in found and record_hash in found[key][0].record_hashes:
            continue
        if find_batch(con, forward.node, RecordKind.RECEIPT, record_hash, forward.started_at_ms) is not None:
            continue
        if _is_of(item, call):
            found[key] = (item, call)
    return list(found.values())


def insert_late_batches(con: Connection, items: Iterable[StoredBatch]) -> None:
    for item in items:
        insert_late_batch(con, item)


def _is_of(item: FiledReceipt, call: StoredCall) -> bool:
    own = call.delivery.receipt_hash
    hashes = item.record_hashes or (own,)
    wanted = (call.forward.node, RecordKind.RECEIPT, len(hashes), batch_root(hashes))
    batch = item.batch
    return own in hashes and (batch.signer, batch.kind, batch.count, batch.root) == wanted


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
        hashes = item.record_hashes or (call.delivery.receipt_hash,)
        found.append(StoredBatch(item.batch, item.signature, hashes, call.forward.started_at_ms))
    return found


def list_forgotten(
    con: Connection, folder: BundleFolder, call_ids: Sequence[bytes], carry_rounds: int
) -> list[tuple[int, int]]:
    """Those calls of closed rounds that stand in no bundle since and wait for none: (call_seq, round).

    Blocking: looks into bundles. Raises: RecoverableError EMC-1755, EMC-1756 (a bundle's file).
    """
    closed = list_facts(con, carry_rounds + 1)
    if not closed:
        return []
    newest = closed[0].round
    calls = [find_call(con, call_id) for call_id in call_ids[:MAX_LOOKED_UP]]
    open_calls = {
        call.forward.call_id: call
        for call in calls
        if call is not None
        and newest - carry_rounds < call.delivery.round <= newest
        and not _is_carried(con, call.call_seq)
    }
    for facts in closed:
        if open_calls and facts.round >= min(call.delivery.round for call in open_calls.values()):
            for call_id in _list_held(con, folder, facts.round, list(open_calls)):
                del open_calls[call_id]
    return [(call.call_seq, call.delivery.round) for call in open_calls.values()]


def insert_forgotten(con: Connection, found: Iterable[tuple[int, int]]) -> None:
    """Let these calls wait for the next bundle."""
    con.executemany(
        "INSERT INTO hub_carried_calls VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(call_seq, index, FILED) for call_seq, index in found],
    )


def _is_carried(con: Connection, call_seq: int) -> bool:
    row = con.execute("SELECT 1 FROM hub_carried_calls WHERE call_seq = ?", (call_seq,)).fetchone()
    return row is not None


def _list_held(con: Connection, folder: BundleFolder, index: int, call_ids: list[bytes]) -> list[bytes]:
    """Which of the calls stand in the bundle of a round."""
    file = find_bundle_file(con, index)
    if file is None:
        return []
    with folder.opened(file) as data:
        if is_old(data):
            return call_ids  # of an earlier release: not looked into, and never carried twice
        reader = BundleReader(data)
        return [call_id for call_id in call_ids if find_entry(reader, call_id) is not None]
