"""From the records of calls to columns, and from columns back to records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from emcd.proto.address import address_bytes, address_from_bytes
from emcd.proto.bundle_calls import CallGroup, Directory, GroupHashes
from emcd.proto.bundle_column import U64, Rows, join_rows, rows_of
from emcd.proto.records import Delivery, Forward, Receipt
from emcd.types import ZERO_HASH, Address

CallRow = tuple[Forward, Receipt | None, Delivery]
_EMPTY_RECEIPT = Receipt(ZERO_HASH, ZERO_HASH, 0, 0, 0, 0, 0)
_BITS = {"price_version": 32, "http_status": 16, "status": 8}


class CallTable:
    """Makes columns of records; addresses and manifests get the numbers of their first sight here."""

    def __init__(self) -> None:
        self._addresses: dict[str, int] = {}
        self._address_rows: list[bytes] = []
        self._models: dict[bytes, int] = {}

    @property
    def directory(self) -> Directory:
        """What the numbers mean; nodes and routers share one list."""
        addresses = rows_of(self._address_rows, 20)
        return Directory(addresses, addresses, rows_of(list(self._models), 32))

    def make_columns(self, rows: Sequence[CallRow]) -> tuple[CallGroup, GroupHashes]:
        """The columns of some calls, and the hashes that their records state of each other.

        `forward` and `receipt` are those that the deliveries state, `delivery` is the forward hash that
        the receipts state (the delivery's where there is none). Hubs are not compared.
        Raises: ValueError, OverflowError when a record's field holds what its type can't.
        """
        forwards = [row[0] for row in rows]
        receipts = [row[1] or _EMPTY_RECEIPT for row in rows]
        deliveries = [row[2] for row in rows]
        has_receipt = np.array([row[1] is not None for row in rows], np.bool_)
        group = CallGroup(
            call_id=join_rows([item.call_id for item in forwards], 16),
            node=self._number_addresses([item.node for item in forwards]),
            router=self._number_addresses([item.router for item in forwards]),
            model=self._number_models([item.model_hash for item in forwards]),
            price_version=_numbers([item.price_version for item in forwards], 32),
            request_hash=join_rows([item.request_hash for item in forwards], 32),
            started_at_ms=_numbers([item.started_at_ms for item in forwards]),
            has_receipt=has_receipt,
            response_hash=join_rows([item.response_hash for item in receipts], 32),
            http_status=_numbers([item.http_status for item in receipts], 16),
            input_tokens=_numbers([item.input_tokens for item in receipts]),
            output_tokens=_numbers([item.output_tokens for item in receipts]),
            receipt_started_at_ms=_numbers([item.started_at_ms for item in receipts]),
            receipt_finished_at_ms=_numbers([item.finished_at_ms for item in receipts]),
            body_hash=join_rows([item.body_hash for item in deliveries], 32),
            status=_numbers([item.status for item in deliveries], 8),
            credits_micro=_numbers([item.credits_micro for item in deliveries]),
            vault_micro=_numbers([item.vault_micro for item in deliveries]),
            round=_numbers([item.round for item in deliveries]),
            finished_at_ms=_numbers([item.finished_at_ms for item in deliveries]),
        )
        forward_hash = join_rows([item.forward_hash for item in deliveries], 32)
        of_receipt = join_rows([item.forward_hash for item in receipts], 32)
        stated = GroupHashes(
            forward_hash,
            join_rows([item.receipt_hash for item in deliveries], 32),
            np.where(has_receipt[:, None], of_receipt, forward_hash),
        )
        return group, stated

    def _number_addresses(self, texts: Sequence[str]) -> U64:
        known = self._addresses
        try:
            return np.array([known[text] for text in texts], np.uint64)
        except KeyError:
            for text in dict.fromkeys(texts):
                if text not in known:
                    self._address_rows.append(_canonical_bytes(text))
                    known[text] = len(known)
        return np.array([known[text] for text in texts], np.uint64)

    def _number_models(self, hashes: Sequence[bytes]) -> U64:
        known = self._models
        try:
            return np.array([known[item] for item in hashes], np.uint64)
        except KeyError:
            for item in dict.fromkeys(hashes):
                if len(item) != 32:
                    raise ValueError("a manifest hash is 32 bytes") from None
                known.setdefault(item, len(known))
        return np.array([known[item] for item in hashes], np.uint64)


class FirstUse:
    """Renumbers one kind of name in the order of first use, group after group."""

    def __init__(self) -> None:
        self._final = np.zeros(0, np.int64)
        self.order: list[int] = []
        """The numbers given, in the order in which they came."""

    def renumber(self, numbers: U64) -> U64:
        given = numbers.astype(np.int64)
        if len(given) and (top := int(given.max())) >= len(self._final):
            more = np.full(2 * top + 16 - len(self._final), -1, np.int64)
            self._final = np.concatenate((self._final, more))
        fresh = given[self._final[given] < 0]
        values, first = np.unique(fresh, return_index=True)
        for value in values[np.argsort(first)].tolist():
            self._final[value] = len(self.order)
            self.order.append(value)
        return self._final[given].astype(np.uint64)


def join_groups(parts: Sequence[CallGroup]) -> CallGroup:
    """Several groups as one."""
    if len(parts) == 1:
        return parts[0]
    names = CallGroup.__dataclass_fields__
    return CallGroup(*[np.concatenate([getattr(part, name) for part in parts]) for name in names])


def iter_records(
    group: CallGroup, hashes: GroupHashes, directory: Directory, hub: Address
) -> Iterator[CallRow]:
    """The records of a group's calls, one after the other."""
    nodes, routers = _texts(directory.nodes, group.node), _texts(directory.routers, group.router)
    models, forward_hash = directory.models, _strings(hashes.forward)
    receipt_hash, ids = _strings(hashes.receipt), _strings(group.call_id)
    requests, responses, bodies = map(_strings, (group.request_hash, group.response_hash, group.body_hash))
    numbers = [
        getattr(group, name).tolist()
        for name in (
            "model", "price_version", "started_at_ms", "has_receipt", "http_status", "input_tokens",
            "output_tokens", "receipt_started_at_ms", "receipt_finished_at_ms", "status", "credits_micro",
            "vault_micro", "round", "finished_at_ms",
        )
    ]  # fmt: skip
    for row, values in enumerate(zip(*numbers, strict=True)):
        model, version, started, has_receipt, http, tokens_in, tokens_out, began, ended, *rest = values
        forward = Forward(
            ids[row], hub, routers[row], nodes[row], requests[row], models[model].tobytes(), version, started
        )
        receipt = None
        if has_receipt:
            receipt = Receipt(forward_hash[row], responses[row], http, tokens_in, tokens_out, began, ended)
        yield forward, receipt, Delivery(forward_hash[row], receipt_hash[row], bodies[row], *rest)


def _numbers(values: Sequence[int], bits: int = 64) -> U64:
    column = np.array(values, np.uint64)
    if bits < 64 and len(column) and int(column.max()) >> bits:
        raise OverflowError(f"a number of more than {bits} bits")
    return column


def _canonical_bytes(text: str) -> bytes:
    raw = address_bytes(text)
    if address_from_bytes(raw) != text:
        raise ValueError(f"{text} is no canonical address")
    return raw


def _strings(rows: Rows) -> list[bytes]:
    size, data = rows.shape[1], rows.tobytes()
    return [data[at : at + size] for at in range(0, len(data), size)]


def _texts(known: Rows, numbers: U64) -> list[Address]:
    texts = {number: address_from_bytes(known[number].tobytes()) for number in set(numbers.tolist())}
    return [texts[number] for number in numbers.tolist()]
