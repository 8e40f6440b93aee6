"""Proofs of many records of one batch: all its hashes once, instead of a path for each record. Pure.

A path through a batch of 256 is 8 hashes, so from a ninth of the records on the whole batch is
smaller, and costs its sender nothing; whoever gets it builds the tree and the paths by itself. That
the hub signed the root is still for the receiver to check.
"""

from __future__ import annotations

from emcd.errors import RemoteProtocolError
from emcd.proto.control import BatchProofMessage, ProofMessage
from emcd.proto.merkle import build_proof, build_tree, record_leaves
from emcd.proto.records import BATCH_RECORDS, RecordProof

_HASH_BYTES = 32
_PATH_HASHES = 9
"""What a path of a full batch weighs, its index and frame included."""


def is_whole_smaller(own: int, count: int) -> bool:
    """Whether a node with so many of a batch's records should get all hashes of it."""
    return own * _PATH_HASHES >= count


def read_batch_proof(message: BatchProofMessage) -> ProofMessage:
    """The proofs of a node's own records.

    Raises: RemoteProtocolError EMC-1496 when the hashes are not those of the batch.
    """
    batch, joined = message.batch, message.record_hashes
    if not 0 < batch.count <= BATCH_RECORDS or len(joined) != batch.count * _HASH_BYTES:
        raise RemoteProtocolError("EMC-1496", f"{len(joined)} bytes of hashes in a batch of {batch.count}")
    if any(not 0 <= index < batch.count for index in message.indexes):
        raise RemoteProtocolError("EMC-1496", f"a record that a batch of {batch.count} does not have")
    hashes = [joined[at : at + _HASH_BYTES] for at in range(0, len(joined), _HASH_BYTES)]
    tree = build_tree(record_leaves(hashes))
    if tree[0] != batch.root:
        raise RemoteProtocolError("EMC-1496", "the hashes are not those of the batch")
    proofs = tuple(
        RecordProof(batch, message.signature, index, tuple(build_proof(tree, index)))
        for index in message.indexes
    )
    return ProofMessage(tuple(hashes[index] for index in message.indexes), proofs, message.deliveries)
