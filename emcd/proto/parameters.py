"""The network's parameters as documents that a quorum signs: the codec, and what may follow what.

A document is the canonical JSON of `NetworkParams` and `PriceTable`; its hash, and that of the part
that the contracts enforce, stand in the signed `ParametersChange`. Pure. Invariants: one content has
one document; a price table's version is never used for another table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.eip712 import TypedStruct
from emcd.proto.hashing import keccak
from emcd.proto.parameter_rule import list_faults, list_fixed_changes
from emcd.proto.params import NetworkParams, PriceTable
from emcd.types import Hash

MAX_DOCUMENT_BYTES = 16_384
_WORD = 32
_FIELDS = NetworkParams.__struct_fields__
_AMOUNTS = frozenset(name for name in _FIELDS if name.endswith("_wei"))


@dataclass(frozen=True)
class ParameterSet:
    """What one document says."""

    params: NetworkParams
    prices: PriceTable


class ParametersChange(TypedStruct, frozen=True, array_like=True):
    """A quorum's word for the next version. Domain: the parameters contract."""

    eip712: ClassVar = ("uint64", "uint64", "bytes32", "bytes32")
    version: int
    from_epoch: int
    rules_hash: bytes
    document_hash: bytes


class RoleRule(NamedTuple):
    """The least stake of a role and the lock it takes (compute: chosen from the table)."""

    minimum_wei: int
    lock_days: int


class Rules(NamedTuple):
    """The part that the contracts enforce, as the struct `Rules` of the parameters contract."""

    set_size: int
    roles: tuple[RoleRule, ...]
    """Compute, router, validator, hub."""
    compute_locks: tuple[tuple[int, int], ...]
    """Days and multiplier in basis points, ascending."""


# ---------------------------------------------------------------------- the document


def write_params(params: NetworkParams) -> dict[str, Any]:
    """The JSON object of the parameters: by field name, amounts in wei as decimal text."""
    return {name: _write_value(name, getattr(params, name)) for name in _FIELDS}


def read_params(table: Mapping[str, Any]) -> NetworkParams:
    """The inverse, with the defaults for what is missing. Raises: ValueError naming the field."""
    if unknown := set(table) - set(_FIELDS):
        raise ValueError(f"unknown parameter {min(map(str, unknown))[:80]}")
    values = {name: _read_value(name, value) for name, value in table.items()}
    try:
        params = NetworkParams(**values)
        return msgspec.convert(msgspec.to_builtins(params, builtin_types=(bytes,)), NetworkParams)
    except (msgspec.MsgspecError, TypeError) as exc:
        raise ValueError(str(exc)) from exc


def encode_document(params: NetworkParams, prices: PriceTable) -> str:
    """The document: keys sorted, no spaces, ASCII."""
    return _canonical({"params": write_params(params), "prices": msgspec.to_builtins(prices)})


def decode_document(text: str | bytes) -> ParameterSet:
    """Read a document strictly.

    Raises: RemoteProtocolError EMC-1470 (no document of this program's fields), EMC-1471 (not in the
        canonical form, or longer than a contract takes), EMC-1472 (numbers that no network can run on).
    """
    raw = text.encode() if isinstance(text, str) else text
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise RemoteProtocolError("EMC-1471", f"the document has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        table = msgspec.json.decode(raw, type=dict[str, Any])
        if set(table) != {"params", "prices"}:
            raise ValueError("a document has exactly the keys params and prices")
        if missing := set(_FIELDS) - set(table["params"]):
            raise ValueError(f"parameter {min(missing)} is missing")
        params = read_params(table["params"])
        prices = msgspec.convert(table["prices"], PriceTable)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1470", str(exc)[:300]) from exc
    if encode_document(params, prices).encode() != raw:
        raise RemoteProtocolError("EMC-1471", "the document is not in canonical form")
    if faults := list_faults(params, prices):
        raise RemoteProtocolError("EMC-1472", "; ".join(faults)[:600])
    return ParameterSet(params, prices)


def _write_value(name: str, value: Any) -> Any:
    if name in _AMOUNTS:
        return str(int.from_bytes(value, "big"))
    return [list(row) for row in value] if isinstance(value, tuple) else value


def _read_value(name: str, value: Any) -> Any:
    if name in _AMOUNTS:
        if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 78:
            raise ValueError(f"{name}: an amount is a text of decimal digits")
        if (amount := int(value)) >> 256:
            raise ValueError(f"{name}: more than 2**256 - 1 wei")
        return amount.to_bytes(32, "big")
    return tuple(map(tuple, value)) if isinstance(value, list) else value


def _canonical(table: Any) -> str:
    return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


# ---------------------------------------------------------------------- what is signed


def rules_of(params: NetworkParams) -> Rules:
    """What of the parameters the contracts enforce."""
    amounts = (
        params.compute_minimum_wei,
        params.router_minimum_wei,
        params.validator_minimum_wei,
        params.hub_minimum_wei,
    )
    locks = (0, params.router_lock_days, params.validator_lock_days, params.hub_lock_days)
    return Rules(
        params.validator_set_size,
        tuple(RoleRule(int.from_bytes(wei, "big"), days) for wei, days in zip(amounts, locks, strict=True)),
        params.compute_locks,
    )


def rules_hash(rules: Rules) -> Hash:
    """keccak256(abi.encode(rules)). Source: Solidity ABI; one dynamic tuple, its arrays at the end."""
    head_words = 1 + 2 * len(rules.roles) + 2
    words = [_WORD, rules.set_size, *(number for role in rules.roles for number in role)]
    days_at = head_words * _WORD
    words += [days_at, days_at + _WORD * (1 + len(rules.compute_locks))]
    for column in (0, 1):
        words += [len(rules.compute_locks), *(row[column] for row in rules.compute_locks)]
    return keccak(b"".join(word.to_bytes(_WORD, "big") for word in words))


def document_hash(text: str | bytes) -> Hash:
    """keccak256(bytes(document))."""
    return keccak(text.encode() if isinstance(text, str) else text)


def make_change(number: int, from_epoch: int, text: str) -> ParametersChange:
    """What the validators sign for a document. Raises: as `decode_document`."""
    return ParametersChange(
        number, from_epoch, rules_hash(rules_of(decode_document(text).params)), document_hash(text)
    )


# ---------------------------------------------------------------------- from version to version


@dataclass(frozen=True)
class ChangeFault:
    """Why a document can't follow another."""

    code: str
    detail: str

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


def next_set(
    before: ParameterSet,
    params: NetworkParams | None = None,
    prices: PriceTable | None = None,
    number: int = 0,
) -> ParameterSet:
    """The set after `before` with these contents, and the version numbers that it must have.

    Args: `number` is the contract's version; without it the one after `before`.
    """
    number = number or before.params.version + 1
    table = before.prices if prices is None else prices
    is_same = msgspec.structs.replace(table, version=before.prices.version) == before.prices
    return ParameterSet(
        msgspec.structs.replace(before.params if params is None else params, version=number),
        before.prices if is_same else msgspec.structs.replace(table, version=number),
    )


def list_change_faults(before: ParameterSet, after: ParameterSet, number: int = 0) -> tuple[ChangeFault, ...]:
    """Everything that keeps `after` from following `before`: EMC-1472, EMC-1473, EMC-1474.

    Args: `number` as in `next_set`.
    """
    found = [ChangeFault("EMC-1472", text) for text in list_faults(after.params, after.prices)]
    found += [ChangeFault("EMC-1473", text) for text in list_fixed_changes(before.params, after.params)]
    wanted = next_set(before, after.params, after.prices, number)
    if after.params.version != wanted.params.version:
        found.append(
            ChangeFault("EMC-1474", f"it is version {after.params.version}, not {wanted.params.version}")
        )
    if after.prices.version != wanted.prices.version:
        detail = f"its price table is version {after.prices.version}, it must be {wanted.prices.version}"
        found.append(ChangeFault("EMC-1474", detail))
    return tuple(found)


def require_change(before: ParameterSet, after: ParameterSet, number: int = 0) -> None:
    """May `after` follow `before`, as version `number`?

    Raises: RemoteProtocolError EMC-1472 (numbers that no network can run on), EMC-1473 (it changes what
        never changes), EMC-1474 (a version number other than the next).
    """
    for fault in list_change_faults(before, after, number):
        raise RemoteProtocolError(fault.code, fault.detail)
