"""Groups of calls as columns, and the columns of where their records stand.

A group is the calls of one frame: arrays of one row a call. Addresses and manifests are numbers into
the bundle's directory, which lists them in the order in which the calls first name them. What follows
is not stored: whose hub, what a receipt and a delivery hash, a body that is the node's response, the
part of a charge that the vault paid where it is all or nothing. Invariant: one content, one encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from emcd.errors import RemoteProtocolError
from emcd.proto.bundle_column import (
    U64,
    ColumnReader,
    Rows,
    fold_difference,
    pack_numbers,
    unfold_difference,
)
from emcd.proto.bundle_hash import hash_deliveries, hash_forwards, hash_receipts

Mask = npt.NDArray[np.bool_]
_T = TypeVar("_T", bound=np.generic)
_CODE = "EMC-1902"
_HAS_RECEIPT, _HAS_BODY, _VAULT = 1, 2, 4
_ALL_FROM_VAULT, _NONE_FROM_VAULT, _PART_FROM_VAULT = 0, 1, 2


@dataclass
class CallGroup:
    """Some calls, one row each; what a call has not is zero. Byte columns are uint8 [n, size]."""

    call_id: Rows
    node: U64
    router: U64
    model: U64
    price_version: U64
    request_hash: Rows
    started_at_ms: U64
    has_receipt: Mask
    response_hash: Rows
    http_status: U64
    input_tokens: U64
    output_tokens: U64
    receipt_started_at_ms: U64
    receipt_finished_at_ms: U64
    body_hash: Rows
    status: U64
    credits_micro: U64
    vault_micro: U64
    round: U64
    finished_at_ms: U64

    def __len__(self) -> int:
        return len(self.call_id)

    def take(self, rows: npt.NDArray[np.int64] | slice) -> CallGroup:
        """The calls at these places."""
        return CallGroup(*[getattr(self, item.name)[rows] for item in fields(self)])


@dataclass
class CallPlaces:
    """Where the records of a group's calls stand: 0 for nowhere, else the leaf's number and 1.

    The leaves of a bundle are counted over all its batches, in their order.
    """

    forward: U64
    receipt: U64
    delivery: U64


@dataclass(frozen=True)
class GroupHashes:
    """Struct hashes of a group's records, uint8 [n, 32]; zero for a receipt that is missing."""

    forward: Rows
    receipt: Rows
    delivery: Rows


@dataclass(frozen=True)
class Directory:
    """What the numbers of node, router and model mean: uint8 [n, 20], [n, 20], [n, 32]."""

    nodes: Rows
    routers: Rows
    models: Rows


def pack_group(group: CallGroup) -> bytes:
    """The only encoding of these calls."""
    has_receipt = group.has_receipt
    has_body = ~(has_receipt & (group.body_hash == group.response_hash).all(axis=1))
    vault = np.full(len(group), _PART_FROM_VAULT, np.uint64)
    vault[group.vault_micro == 0] = _NONE_FROM_VAULT
    vault[group.vault_micro == group.credits_micro] = _ALL_FROM_VAULT
    flags = (
        has_receipt * np.uint64(_HAS_RECEIPT) + has_body * np.uint64(_HAS_BODY) + vault * np.uint64(_VAULT)
    )
    started, receipt_started = group.started_at_ms[has_receipt], group.receipt_started_at_ms[has_receipt]
    return b"".join((
        group.call_id.tobytes(),
        pack_numbers(group.node),
        pack_numbers(group.router),
        pack_numbers(group.model),
        pack_numbers(group.price_version),
        group.request_hash.tobytes(),
        pack_numbers(group.started_at_ms),
        pack_numbers(fold_difference(group.finished_at_ms, group.started_at_ms)),
        pack_numbers(group.round),
        pack_numbers(flags),
        pack_numbers(group.status),
        pack_numbers(group.credits_micro),
        pack_numbers(group.vault_micro[vault == _PART_FROM_VAULT]),
        group.response_hash[has_receipt].tobytes(),
        pack_numbers(group.http_status[has_receipt]),
        pack_numbers(group.input_tokens[has_receipt]),
        pack_numbers(group.output_tokens[has_receipt]),
        pack_numbers(fold_difference(receipt_started, started)),
        pack_numbers(fold_difference(group.receipt_finished_at_ms[has_receipt], receipt_started)),
        group.body_hash[has_body].tobytes(),
    ))  # fmt: skip


def unpack_group(content: bytes, count: int) -> CallGroup:
    """The calls of a frame. Raises: RemoteProtocolError EMC-1902."""
    take = ColumnReader(content)
    call_id = take.rows("call_id", count, 16)
    node = take.numbers("node", count, 32)
    router = take.numbers("router", count, 32)
    model = take.numbers("model", count, 32)
    price_version = take.numbers("price_version", count, 32)
    request_hash = take.rows("request_hash", count, 32)
    started = take.numbers("started_at_ms", count)
    finished = unfold_difference(take.numbers("finished_at_ms", count), started)
    rounds = take.numbers("round", count)
    flags = take.numbers("flags", count, 4)
    has_receipt = (flags & np.uint64(_HAS_RECEIPT)) != 0
    has_body = (flags & np.uint64(_HAS_BODY)) != 0
    vault_kind = flags // np.uint64(_VAULT)
    status = take.numbers("status", count, 8)
    credits = take.numbers("credits_micro", count)
    vault = _unpack_vault(take, vault_kind, credits)
    receipts = int(has_receipt.sum())
    response = _spread(take.rows("response_hash", receipts, 32), has_receipt)
    http_status = _spread(take.numbers("http_status", receipts, 16), has_receipt)
    input_tokens = _spread(take.numbers("input_tokens", receipts), has_receipt)
    output_tokens = _spread(take.numbers("output_tokens", receipts), has_receipt)
    receipt_started = unfold_difference(take.numbers("receipt.started_at_ms", receipts), started[has_receipt])
    receipt_finished = unfold_difference(take.numbers("receipt.finished_at_ms", receipts), receipt_started)
    body = response.copy()
    body[has_body] = take.rows("body_hash", int(has_body.sum()), 32)
    take.require_end()
    if not (has_receipt | has_body).all():
        raise RemoteProtocolError(_CODE, "body_hash: without a receipt it is stated")
    if (has_body & has_receipt & (body == response).all(axis=1)).any():
        raise RemoteProtocolError(_CODE, "body_hash: stated where it is the response's")
    return CallGroup(
        call_id, node, router, model, price_version, request_hash, started, has_receipt, response, http_status,
        input_tokens, output_tokens, _spread(receipt_started, has_receipt), _spread(receipt_finished, has_receipt),
        body, status, credits, vault, rounds, finished,
    )  # fmt: skip


def _unpack_vault(take: ColumnReader, kind: U64, credits: U64) -> U64:
    if (kind > _PART_FROM_VAULT).any():
        raise RemoteProtocolError(_CODE, "flags: bits that mean nothing")
    vault = np.where(kind == _ALL_FROM_VAULT, credits, np.uint64(0))
    is_part = kind == _PART_FROM_VAULT
    vault[is_part] = take.numbers("vault_micro", int(is_part.sum()))
    is_nothing = (kind == _NONE_FROM_VAULT) & (credits == 0)
    if (is_nothing | (is_part & ((vault == 0) | (vault == credits)))).any():
        raise RemoteProtocolError(_CODE, "vault_micro: stated where it is all or nothing")
    return vault


def _spread(values: npt.NDArray[_T], mask: Mask) -> npt.NDArray[_T]:
    """A column of the calls with a receipt as one of all calls."""
    wide = np.zeros((len(mask), *values.shape[1:]), values.dtype)
    wide[mask] = values
    return wide


def pack_places(places: CallPlaces) -> bytes:
    """The only encoding of these places."""
    return pack_numbers(places.forward) + pack_numbers(places.receipt) + pack_numbers(places.delivery)


def unpack_places(content: bytes, count: int) -> CallPlaces:
    """Raises: RemoteProtocolError EMC-1902."""
    take = ColumnReader(content)
    places = CallPlaces(
        *(take.numbers(f"{name}_ref", count, 48) for name in ("forward", "receipt", "delivery"))
    )
    take.require_end()
    return places


def pack_directory(nodes: Sequence[bytes], routers: Sequence[bytes], models: Sequence[bytes]) -> bytes:
    """u32 counts of nodes, routers and models, then they."""
    counts = b"".join(len(items).to_bytes(4, "big") for items in (nodes, routers, models))
    return counts + b"".join((*nodes, *routers, *models))


def unpack_directory(content: bytes) -> Directory:
    """Raises: RemoteProtocolError EMC-1902 when something stands there twice or too much."""
    counts = [int.from_bytes(content[at : at + 4], "big") for at in (0, 4, 8)]
    take = ColumnReader(content[12:])
    parts = [
        take.rows(name, count, size)
        for name, count, size in zip(("nodes", "routers", "models"), counts, (20, 20, 32), strict=True)
    ]
    take.require_end()
    for name, part in zip(("nodes", "routers", "models"), parts, strict=True):
        if len(set(map(bytes, part))) != len(part):
            raise RemoteProtocolError(_CODE, f"the directory lists one of its {name} twice")
    return Directory(*parts)


class UseOrder:
    """Checks that a directory stands in the order of first use, and holds nothing that is not used."""

    def __init__(self, directory: Directory) -> None:
        self._sizes = (len(directory.nodes), len(directory.routers), len(directory.models))
        self._seen = [0, 0, 0]

    def add(self, group: CallGroup) -> None:
        """The next group. Raises: RemoteProtocolError EMC-1902."""
        for part, numbers in enumerate((group.node, group.router, group.model)):
            seen = self._seen[part]
            fresh = numbers[numbers >= seen].astype(np.int64)
            if not len(fresh):
                continue
            tops = np.maximum.accumulate(fresh)
            if tops[0] != seen or (np.diff(tops) > 1).any() or tops[-1] >= self._sizes[part]:
                raise RemoteProtocolError(_CODE, "the directory is not in the order of first use")
            self._seen[part] = int(tops[-1]) + 1

    def require_end(self) -> None:
        """After the last group. Raises: RemoteProtocolError EMC-1902."""
        if tuple(self._seen) != self._sizes:
            raise RemoteProtocolError(_CODE, "the directory lists what no call names")


def require_known(group: CallGroup, directory: Directory) -> None:
    """Raises: RemoteProtocolError EMC-1902 when a number is not in the directory."""
    parts = (
        (group.node, directory.nodes),
        (group.router, directory.routers),
        (group.model, directory.models),
    )
    if any(len(numbers) and int(numbers.max()) >= len(known) for numbers, known in parts):
        raise RemoteProtocolError(_CODE, "a call names what the directory does not hold")


def hash_group(group: CallGroup, directory: Directory, hub: bytes) -> GroupHashes:
    """The struct hashes of all records of a group."""
    forward = hash_forwards(
        group.call_id, hub, directory.routers[group.router.astype(np.int64)],
        directory.nodes[group.node.astype(np.int64)], group.request_hash,
        directory.models[group.model.astype(np.int64)], group.price_version, group.started_at_ms,
    )  # fmt: skip
    receipt = np.zeros_like(forward)
    own = group.has_receipt
    receipt[own] = hash_receipts(
        forward[own], group.response_hash[own], group.http_status[own], group.input_tokens[own],
        group.output_tokens[own], group.receipt_started_at_ms[own], group.receipt_finished_at_ms[own],
    )  # fmt: skip
    delivery = hash_deliveries(
        forward, receipt, group.body_hash, group.status, group.credits_micro, group.vault_micro, group.round,
        group.finished_at_ms,
    )  # fmt: skip
    return GroupHashes(forward, receipt, delivery)
