"""The three records of a call, and the signed batches that carry them. Source: DESIGN 2.7.

Invariants: a record's hash is its EIP-712 struct hash; hub and node sign the Merkle root of a
batch of record hashes, never a record by itself; call ids are unique for ever (16 random bytes).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.eip712 import Domain, TypedStruct
from emcd.proto.hashing import keccak_of
from emcd.proto.merkle import build_root, record_leaf, record_leaves, root_from_proof
from emcd.proto.signing import require_signer
from emcd.types import Address, Hash

BATCH_RECORDS = 256
BATCH_MS = 250
_CALL_PREFIX = "call_"
_JSON = "application/json"


class CallStatus(IntEnum):
    """How a call ended, as the hub saw it."""

    __hash__ = int.__hash__  # Enum's own is a Python function, on the way of every call

    OK = 0
    CLIENT_ERROR = 1  # the node refused the request itself (4xx)
    NODE_ERROR = 2  # the node failed, was cut off or was too late
    CANCELLED = 3  # the client left; what was produced is charged
    CAPPED = 4  # the budget cut the stream; what was produced is charged

    @property
    def is_success(self) -> bool:
        return self in (CallStatus.OK, CallStatus.CANCELLED, CallStatus.CAPPED)


class RecordKind(IntEnum):
    FORWARD = 1
    RECEIPT = 2
    DELIVERY = 3


class Forward(TypedStruct, frozen=True, array_like=True):
    """The hub gives a call to a node. `router` is zero where the hub schedules by itself."""

    eip712: ClassVar = ("bytes16", "address", "address", "address", "bytes32", "bytes32", "uint32", "uint64")
    call_id: bytes
    hub: Address
    router: Address
    node: Address
    request_hash: bytes
    model_hash: bytes
    price_version: int
    started_at_ms: int


class Receipt(TypedStruct, frozen=True, array_like=True):
    """The node did it. `http_status` is what it answered; times are the node's clock."""

    eip712: ClassVar = ("bytes32", "bytes32", "uint16", "uint64", "uint64", "uint64", "uint64")
    forward_hash: bytes
    response_hash: bytes
    http_status: int
    input_tokens: int
    output_tokens: int
    started_at_ms: int
    finished_at_ms: int


class Delivery(TypedStruct, frozen=True, array_like=True):
    """The hub passed it on and charged it. `receipt_hash` is zero when the node gave none.

    `vault_micro` is the part of `credits_micro` that was paid from credits bought in the vault.
    """

    eip712: ClassVar = ("bytes32", "bytes32", "bytes32", "uint8", "uint64", "uint64", "uint64", "uint64")
    forward_hash: bytes
    receipt_hash: bytes
    body_hash: bytes
    status: int
    credits_micro: int
    vault_micro: int
    round: int
    finished_at_ms: int


class RecordBatch(TypedStruct, frozen=True, array_like=True):
    """What is signed: the root over at most 256 record hashes of one kind."""

    eip712: ClassVar = ("address", "uint8", "bytes32", "uint32", "uint64")
    signer: Address
    kind: int
    root: bytes
    count: int
    signed_at_ms: int


class RecordProof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """That one record stands in a signed batch."""

    batch: RecordBatch
    signature: bytes
    leaf_index: int
    siblings: tuple[bytes, ...]


def request_hash(path: str, body: bytes, content_type: str = _JSON) -> Hash:
    """What the node is asked, as bytes: keccak(path || 0x00 || body).

    A body that is not JSON means nothing without its content type (a form's boundary stands there):
    keccak(path || 0x00 || content_type || 0x00 || body). JSON bodies begin with a brace, so that no
    body is both.
    """
    if content_type == _JSON:
        return keccak_of(path.encode() + b"\0", body)
    return keccak_of(path.encode() + b"\0" + content_type.encode() + b"\0", body)


def batch_root(record_hashes: Sequence[bytes]) -> Hash:
    """The root of a batch in the order in which its records came."""
    return build_root(record_leaves(record_hashes))


def require_proof(
    domain: Domain, record: Forward | Receipt | Delivery, proof: RecordProof, signer: Address
) -> None:
    """Check that `signer` signed a batch with this record in it.

    Raises: RemoteProtocolError EMC-1494, EMC-1495 (signature), EMC-1496 (kind or path).
    """
    kind = {Forward: RecordKind.FORWARD, Receipt: RecordKind.RECEIPT, Delivery: RecordKind.DELIVERY}[
        type(record)
    ]
    if proof.batch.kind != kind or proof.batch.signer != signer or not 0 < proof.batch.count <= BATCH_RECORDS:
        raise RemoteProtocolError("EMC-1496", f"the batch is not one of {kind.name} records by {signer}", 401)
    if root_from_proof(record_leaf(record.struct_hash()), proof.siblings) != proof.batch.root:
        raise RemoteProtocolError("EMC-1496", "the record does not stand in the signed batch", 401)
    require_signer(domain, proof.batch, proof.signature, signer)


def format_call_id(call_id: bytes) -> str:
    """The text of a call id: call_ and 32 hex digits."""
    return _CALL_PREFIX + call_id.hex()


def parse_call_id(text: str) -> bytes:
    """Raises: RemoteProtocolError EMC-1497 when it is not call_ and 32 hex digits."""
    digits = text.removeprefix(_CALL_PREFIX)
    if digits == text or len(digits) != 32 or not set(digits) <= set("0123456789abcdef"):
        raise RemoteProtocolError("EMC-1497", f"{text[:80]!r} is not a call id")
    return bytes.fromhex(digits)
