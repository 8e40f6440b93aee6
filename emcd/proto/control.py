"""What hub and node say to each other beside the calls: msgpack, one tagged struct a message.

The OPEN frame of a call carries a `CallMeta`, its HEAD a `ResponseHead`, its END a `CallEnd`;
CONTROL frames carry one of `Control`. Between a hub and a router the OPEN frame carries a
`RoutedMeta` around the node's, and CONTROL frames one of `RouterControl`, which has what the node
and the hub say to each other inside, untouched. Decoding is strict and raises RemoteProtocolError
EMC-1498.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.messages import NodeStatus, RouterStatus
from emcd.proto.records import Delivery, Forward, Receipt, RecordBatch, RecordProof
from emcd.types import Address

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


class BatchProofMessage(msgspec.Struct, frozen=True, tag="batch_proof", forbid_unknown_fields=True):
    """Hub to node: the same as a `ProofMessage`, for a node with many records of one batch.

    `record_hashes`: of the whole batch, 32 bytes each; `indexes`: which of them are the node's, whose
    `deliveries` follow in that order. Source: `proto.batch_proof`.
    """

    batch: RecordBatch
    signature: bytes
    record_hashes: bytes
    indexes: tuple[int, ...]
    deliveries: tuple[Delivery, ...] = ()


class NoticeMessage(msgspec.Struct, frozen=True, tag="notice", forbid_unknown_fields=True):
    """The hub tells the node something with a stable code (a refused status, say)."""

    code: str
    detail: str


class StatusRequest(msgspec.Struct, frozen=True, tag="ask", forbid_unknown_fields=True):
    """Router to node: the hub knows nothing of this node (any more); begin as on a new tunnel."""


class Accepted(msgspec.Struct, frozen=True, tag="accepted", forbid_unknown_fields=True):
    """Router to node: the hub has admitted the node through this router. It is the router's word alone."""


class RoutedMeta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Hub to router: a call for that node, with the `CallMeta` that the node gets."""

    node: Address
    meta: bytes


class RelayMessage(msgspec.Struct, frozen=True, tag="relay", forbid_unknown_fields=True):
    """Between hub and router: a control message from or to the node.

    `number`, here and below: which of the node's sessions at the router is meant, since a word may be
    late; the router counts them up.
    """

    node: Address
    payload: bytes
    number: int = 0


class RelayTaken(msgspec.Struct, frozen=True, tag="taken", forbid_unknown_fields=True):
    """Hub to router: the node is admitted, by its own status that the router brought."""

    node: Address
    number: int = 0


class RelayGone(msgspec.Struct, frozen=True, tag="gone", forbid_unknown_fields=True):
    """The node is not reached, or not wanted, through the router any more; `code` says why.

    Calls that are under way go on.
    """

    node: Address
    code: str
    detail: str = ""
    number: int = 0


class RelayLive(msgspec.Struct, frozen=True, tag="live", forbid_unknown_fields=True):
    """Router to hub: whether the node's link is there. While it is not, its session may be resumed."""

    node: Address
    live: bool
    number: int = 0


class RouterStatusMessage(msgspec.Struct, frozen=True, tag="router", forbid_unknown_fields=True):
    """Router to hub: a signed heartbeat of its own."""

    status: RouterStatus
    signature: bytes


Control = (
    StatusMessage | BatchMessage | ProofMessage | BatchProofMessage | NoticeMessage | StatusRequest | Accepted
)
RouterControl = RelayMessage | RelayTaken | RelayGone | RelayLive | RouterStatusMessage | NoticeMessage

_encoder = msgspec.msgpack.Encoder()
_control_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)
_router_decoder: msgspec.msgpack.Decoder[RouterControl] = msgspec.msgpack.Decoder(RouterControl)
_decoders = {kind: msgspec.msgpack.Decoder(kind) for kind in (CallMeta, ResponseHead, CallEnd, RoutedMeta)}


def encode(message: msgspec.Struct) -> bytes:
    """The wire bytes of any of these structs."""
    return _encoder.encode(message)


def decode_control(data: bytes) -> Control:
    """Raises: RemoteProtocolError EMC-1498."""
    try:
        return _control_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1498", f"control message: {exc}") from exc


def decode_router_control(data: bytes) -> RouterControl:
    """Raises: RemoteProtocolError EMC-1498."""
    try:
        return _router_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1498", f"router's control message: {exc}") from exc


def decode_part(data: bytes, kind: type[T]) -> T:
    """Decode a CallMeta, RoutedMeta, ResponseHead or CallEnd. Raises: RemoteProtocolError EMC-1498."""
    try:
        part = _decoders[kind].decode(data)  # type: ignore[index]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1498", f"{kind.__name__}: {exc}") from exc
    assert isinstance(part, kind)
    return part
