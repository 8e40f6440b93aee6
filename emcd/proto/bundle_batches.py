"""Groups of signed batches as columns: `BatchEntry` structs to bytes and back.

A signer is 0 for the hub, else the place of a node in the directory of the calls, and 1: nobody else
signs anything that a call refers to. Invariant: one content, one encoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from emcd.errors import RemoteProtocolError
from emcd.proto.address import address_bytes
from emcd.proto.bundle import BatchEntry
from emcd.proto.bundle_column import ColumnReader, pack_numbers, rows_of
from emcd.types import Address

_CODE = "EMC-1902"
_SIGNATURE_BYTES = 65


def batch_key(entry: BatchEntry) -> tuple[int, bytes, int, bytes]:
    """What the batches of a bundle are sorted by."""
    return entry.kind, address_bytes(entry.signer), entry.signed_at_ms, entry.signature


def pack_batches(entries: Sequence[BatchEntry], signers: Mapping[Address, int]) -> bytes:
    """The only encoding of these batches. Raises: KeyError on a signer that no call names."""
    others = [item for entry in entries for item in entry.others]
    return b"".join((
        pack_numbers(np.array([entry.kind for entry in entries], np.uint64)),
        pack_numbers(np.array([signers[entry.signer] for entry in entries], np.uint64)),
        pack_numbers(np.array([entry.count for entry in entries], np.uint64)),
        pack_numbers(np.array([entry.signed_at_ms for entry in entries], np.uint64)),
        b"".join([entry.signature for entry in entries]),
        pack_numbers(np.array([len(entry.others) for entry in entries], np.uint64)),
        bytes([leaf for leaf, _ in others]),
        rows_of([record_hash for _, record_hash in others], 32).tobytes(),
    ))  # fmt: skip


def unpack_batches(content: bytes, count: int, signers: Sequence[Address]) -> list[BatchEntry]:
    """The batches of a frame. Raises: RemoteProtocolError EMC-1902."""
    take = ColumnReader(content)
    kinds = take.numbers("kind", count, 8).tolist()
    places = take.numbers("signer", count, 32).tolist()
    counts = take.numbers("count", count, 16).tolist()
    times = take.numbers("signed_at_ms", count).tolist()
    signatures = take.rows("signature", count, _SIGNATURE_BYTES).tobytes()
    sizes = take.numbers("others", count, 9).tolist()
    leaves = take.rows("leaf", sum(sizes), 1).tobytes()
    hashes = take.rows("record_hash", sum(sizes), 32).tobytes()
    take.require_end()
    if count and max(places) >= len(signers):
        raise RemoteProtocolError(_CODE, "signer: no node of the directory")
    entries, at = [], 0
    for row in range(count):
        end = at + sizes[row]
        own = leaves[at:end]
        if any(a >= b for a, b in pairwise(own)):
            raise RemoteProtocolError(_CODE, f"leaf: those of batch {row} of the group do not ascend")
        entries.append(
            BatchEntry(
                signers[places[row]],
                kinds[row],
                counts[row],
                times[row],
                signatures[_SIGNATURE_BYTES * row : _SIGNATURE_BYTES * (row + 1)],
                tuple((own[n], hashes[32 * (at + n) : 32 * (at + n + 1)]) for n in range(end - at)),
            )
        )
        at = end
    return entries
