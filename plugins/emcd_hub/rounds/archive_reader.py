"""Receipts of calls that have left the ledger: found in the archived bundle, with their proofs.

The bundle holds the records and the leaves of every batch, so a proof is made anew. Invariant: only
the account of a call is told anything of it.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import trio

from emcd.accounting.receipt import CallReceipt
from emcd.bundle_file import run_somewhere
from emcd.ledger import Ledger
from emcd.proto.bundle import CallEntry, RecordRef
from emcd.proto.bundle_codec import BundleReader, Section, find_call, read_batch_leaves
from emcd.proto.merkle import build_proof, build_tree, record_leaf
from emcd.proto.records import RecordBatch, RecordProof
from emcd_hub.rounds.archive_row import list_archived_with
from emcd_hub.rounds.bundle_folder import BundleFolder
from emcd_hub.rounds.bundle_row import BundleFile
from emcd_hub.rounds.old_bundle import is_old
from emcd_hub.rounds.owners import read_owner


class ArchiveReader:
    """Looks into archived bundles, one at a time."""

    def __init__(self, ledger: Ledger, folder: BundleFolder) -> None:
        self._ledger = ledger
        self._folder = folder
        self._limiter = trio.CapacityLimiter(1)

    async def find_receipt(self, call_id: bytes, account_id: str) -> CallReceipt | None:
        """The receipt of an account's archived call; None when there is none, or it is another's.

        Raises: RecoverableError EMC-1034, EMC-1755, EMC-1756.
        """
        files = await self._ledger.read(lambda con: list_archived_with(con, call_id))
        for file in files:
            async with self._limiter:
                owner = await trio.to_thread.run_sync(find_owner, self._folder.root, file, call_id)
                if owner != account_id:
                    continue
                found = await run_somewhere(
                    read_receipt, self._folder.root, file, call_id, size_bytes=file.size_bytes
                )
            if found is not None:
                return found
        return None


def find_owner(root: Path, file: BundleFile, call_id: bytes) -> str | None:
    """Whose call it is, if it stands in the bundle. Blocking: reads a few blocks."""
    folder = BundleFolder(root)
    with folder.opened(file) as data:
        if is_old(data) or file.owners_path is None:
            return None
        found = find_call(BundleReader(data), call_id)
    return None if found is None else read_owner(folder.locate(file.owners_path), found[0])


def read_receipt(root: Path, file: BundleFile, call_id: bytes) -> CallReceipt | None:
    """A call's records with their proofs; None where one of them was never proven. Blocking, CPU-bound."""
    with BundleFolder(root).opened(file) as data:
        reader = BundleReader(data)
        found = find_call(reader, call_id)
        if found is None:
            return None
        call = found[1]
        forward = _prove(reader, call.forward_ref)
        delivery = _prove(reader, call.delivery_ref)
        receipt = _prove(reader, call.receipt_ref)
        if forward is None or delivery is None or _lacks_receipt(call):
            return None
        return CallReceipt(call.forward, forward, call.receipt, receipt, call.delivery, delivery)


def _lacks_receipt(call: CallEntry) -> bool:
    return call.receipt is not None and call.receipt_ref is None


def _prove(reader: BundleReader, ref: RecordRef | None) -> RecordProof | None:
    if ref is None:
        return None
    entry = next(islice(reader.items(Section.BATCHES), ref.batch, None))
    tree = build_tree([record_leaf(item) for item in read_batch_leaves(reader, ref.batch)])
    batch = RecordBatch(entry.signer, entry.kind, tree[0], entry.count, entry.signed_at_ms)
    return RecordProof(batch, entry.signature, ref.leaf, tuple(build_proof(tree, ref.leaf)))
