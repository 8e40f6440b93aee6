"""A whole batch instead of a path for each record: the same proofs, and nothing of another batch."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from emcd.errors import RemoteProtocolError
from emcd.proto.batch_proof import is_whole_smaller, read_batch_proof
from emcd.proto.control import BatchProofMessage, ProofMessage, decode_control, encode
from emcd.proto.hashing import keccak
from emcd.proto.merkle import build_proof, build_tree, record_leaf, root_from_proof
from emcd.proto.records import Delivery, RecordBatch, RecordKind, RecordProof
from emcd.testing import make_key

HASHES = [keccak(bytes([number])) for number in range(5)]
TREE = build_tree([record_leaf(item) for item in HASHES])
BATCH = RecordBatch(make_key("hub").address, RecordKind.DELIVERY, TREE[0], len(HASHES), 1)
SIGNATURE = b"s" * 65
DELIVERIES = tuple(Delivery(HASHES[n], HASHES[n], HASHES[n], 0, 1, 1, 1, 1) for n in (4, 1))
GOOD = BatchProofMessage(BATCH, SIGNATURE, b"".join(HASHES), (4, 1), DELIVERIES)


def test_batch_proof_gives_the_paths_of_the_nodes_own_records() -> None:
    read = read_batch_proof(GOOD)

    assert read.record_hashes == (HASHES[4], HASHES[1])
    assert read.deliveries == DELIVERIES
    assert [proof.leaf_index for proof in read.proofs] == [4, 1]
    for record_hash, proof in zip(read.record_hashes, read.proofs, strict=True):
        assert (proof.batch, proof.signature) == (BATCH, SIGNATURE)
        assert root_from_proof(record_leaf(record_hash), proof.siblings) == BATCH.root


def test_batch_proof_survives_the_wire() -> None:
    assert decode_control(encode(GOOD)) == GOOD


def test_batch_proof_of_no_own_record_proves_nothing() -> None:
    assert read_batch_proof(msgspec.structs.replace(GOOD, indexes=(), deliveries=())) == ProofMessage((), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"record_hashes": b"".join(HASHES[:4])},
        {"record_hashes": b"".join(HASHES) + bytes(32)},
        {"record_hashes": b"".join(HASHES)[:-1]},
        {"record_hashes": b"".join([*HASHES[:4], bytes(32)])},
        {"record_hashes": b"".join(HASHES[::-1])},
        {"record_hashes": b""},
        {"indexes": (5,)},
        {"indexes": (-1,)},
        {"batch": msgspec.structs.replace(BATCH, root=bytes(32))},
        {"batch": msgspec.structs.replace(BATCH, count=0), "record_hashes": b"", "indexes": ()},
        {"batch": msgspec.structs.replace(BATCH, count=257), "record_hashes": bytes(257 * 32)},
        {"batch": msgspec.structs.replace(BATCH, count=10**9)},
    ],
)
def test_batch_proof_of_other_hashes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read_batch_proof(msgspec.structs.replace(GOOD, **changes))
    assert caught.value.code == "EMC-1496"


@pytest.mark.parametrize("own", [1, 20, 28, 29, 64, 256])
def test_whole_batch_is_sent_where_it_is_smaller(own: int) -> None:
    hashes = [keccak(number.to_bytes(2, "big")) for number in range(256)]
    tree = build_tree([record_leaf(item) for item in hashes])
    batch = msgspec.structs.replace(BATCH, root=tree[0], count=256)
    proofs = tuple(RecordProof(batch, SIGNATURE, n, tuple(build_proof(tree, n))) for n in range(own))
    paths = len(encode(ProofMessage(tuple(hashes[:own]), proofs)))
    whole = len(encode(BatchProofMessage(batch, SIGNATURE, b"".join(hashes), tuple(range(own)))))

    assert not is_whole_smaller(own, 256) or whole < paths
    assert is_whole_smaller(own, 256) or whole > paths / 2
