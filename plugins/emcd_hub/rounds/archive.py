"""Turns a round's bundle into what is kept of it for good: packed, with the list of its owners.

Works on files and a snapshot of the ledger, in a thread or in a process of its own. Invariant: what
is packed was read back and has the hash that the hub sealed, before anybody deletes a call for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.ledger import Connection, LedgerFile, open_reader
from emcd.proto.bundle_codec import BundleReader, compute_bundle_hash, read_call_ids
from emcd_hub.records.call_row import CALL_ID_BYTES, list_owners
from emcd_hub.rounds.bundle_folder import OWNERS, PACKED, BundleFolder, Content
from emcd_hub.rounds.bundle_row import BundleFile
from emcd_hub.rounds.old_bundle import is_old, list_old_call_ids
from emcd_hub.rounds.owners import write_owners
from emcd_hub.rounds.pack import PackedFile, pack_file

_PORTION = 4096 * CALL_ID_BYTES


@dataclass(frozen=True)
class Archived:
    """The two files of an archived round; `first_call` and `last_call` are b"" for a round without calls."""

    packed: LedgerFile
    owners: LedgerFile
    calls: int
    first_call: bytes
    last_call: bytes


def archive_bundle(ledger: Path, root: Path, file: BundleFile, bundle_hash: bytes) -> Archived:
    """Pack a bundle and list its owners. Blocking, CPU-bound.

    Raises: RecoverableError EMC-1755 (no file), EMC-1756 (its bytes are not what was sealed).
    """
    folder = BundleFolder(root)
    with folder.opened(file) as data:
        ids = list_old_call_ids(data) if is_old(data) else read_ids(data)
    with folder.writing(file.round) as (_, partial):
        pack_file(folder.locate(file.path), partial)
        _require_same(partial, folder.locate(file.path), bundle_hash)
        packed = folder.finish(partial, file.round, bundle_hash, PACKED)
    con = open_reader(ledger)
    try:
        con.execute("BEGIN")
        with folder.writing(file.round) as (out, partial):
            write_owners(out, _iter_owners(con, ids))
            out.flush()
            owners = folder.finish(partial, file.round, bundle_hash, OWNERS)
    finally:
        con.close()
    return Archived(packed, owners, len(ids) // CALL_ID_BYTES, ids[:CALL_ID_BYTES], ids[-CALL_ID_BYTES:])


def read_ids(data: Content) -> bytes:
    """The ids of a bundle's calls, joined, ascending."""
    return read_call_ids(BundleReader(data))


def iter_portions(ids: bytes) -> Iterator[bytes]:
    """Joined ids in pieces of a few thousand."""
    for start in range(0, len(ids), _PORTION):
        yield ids[start : start + _PORTION]


def _iter_owners(con: Connection, ids: bytes) -> Iterator[str | None]:
    for part in iter_portions(ids):
        known = {call_id: account_id for call_id, _, account_id in list_owners(con, part)}
        for start in range(0, len(part), CALL_ID_BYTES):
            yield known.get(part[start : start + CALL_ID_BYTES])


def _require_same(packed: Path, plain: Path, bundle_hash: bytes) -> None:
    """Raises: RecoverableError EMC-1756."""
    content = PackedFile(packed)
    try:
        same = _is_same(content, plain, bundle_hash)
    except RemoteProtocolError as exc:
        raise RecoverableError("EMC-1756", f"{plain}: {exc.detail}") from exc
    finally:
        content.close()
    if not same:
        raise RecoverableError("EMC-1756", f"{plain} is not what was sealed")


def _is_same(content: PackedFile, plain: Path, bundle_hash: bytes) -> bool:
    if is_old(content):  # its hash is of another kind
        return content[:] == plain.read_bytes()
    return compute_bundle_hash(content) == bundle_hash
