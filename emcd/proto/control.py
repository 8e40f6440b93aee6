"""What hub and node say to each other beside the calls: msgpack, one tagged struct a message.

The OPEN frame of a call carries a `CallMeta`, its HEAD a `ResponseHead`, its END a `CallEnd`;
CONTROL frames carry one of `Control`. Decoding is strict and raises RemoteProtocolError EMC-1498.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.messages import NodeStatus
from emcd.proto.records import Delivery, Forward, Receipt, RecordBatch, RecordProof

T = TypeVar("T")


class CallMeta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A call as the node gets it; its body follows in the frames."""

    forward: Forward
    path: str
    model: str
    stream: bool
    content_type: str = "application/json"


class ResponseHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    status: int
    content_type: str


class CallEnd(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The node's last word: its receipt; the batch that signs it follows within a second."""

    receipt: Receipt


class StatusMessage(msgspec.Struct, frozen=True, tag="status", forbid_unknown_fields=True):
    """A signed heartbeat with the canonical JSON of every manifest whose hash it names."""

    status: NodeStatus
    signature: bytes
    manifests: tuple[bytes, ...] = ()


class BatchMessage(msgspec.Struct, frozen=True, tag="batch", forbid_unknown_fields=True):
    """Node to hub: a whole signed batch with the hashes of its records, in order."""

    batch: RecordBatch
    signature: bytes
    record_hashes: tuple[bytes, ...]


class ProofMessage(msgspec.Struct, frozen=True, tag="proof", forbid_unknown_fields=True):
    """Hub to node: where the node's forward and delivery records stand in the hub's batches.

    `deliveries`: the records themselves where these are deliveries, in the same order, since the
    node has not seen them and could prove nothing with a hash; else empty.
    """

    record_hashes: tuple[bytes, ...]
    proofs: tuple[RecordProof, ...]
    deliveries: tuple[Delivery, ...] = ()


class NoticeMessage(msgspec.Struct, frozen=True, tag="notice", forbid_unknown_fields=True):
    """The hub tells the node something with a stable code (a refused status, say)."""

    code: str
    detail: str


Control = StatusMessage | BatchMessage | ProofMessage | NoticeMessage

_encoder = msgspec.msgpack.Encoder()
_control_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)
_decoders = {kind: msgspec.msgpack.Decoder(kind) for kind in (CallMeta, ResponseHead, CallEnd)}


def encode(message: msgspec.Struct) -> bytes:
    """The wire bytes of any of these structs."""
    return _encoder.encode(message)


def decode_control(data: bytes) -> Control:
    """Raises: RemoteProtocolError EMC-1498."""
    try:
        return _control_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1498", f"control message: {exc}") from exc


def decode_part(data: bytes, kind: type[T]) -> T:
    """Decode a CallMeta, ResponseHead or CallEnd. Raises: RemoteProtocolError EMC-1498."""
    try:
        part = _decoders[kind].decode(data)  # type: ignore[index]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1498", f"{kind.__name__}: {exc}") from exc
    assert isinstance(part, kind)
    return part
