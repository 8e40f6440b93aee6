"""What every field of a bundle may hold: lengths, ranges, canonical addresses.

msgspec checks the types, this the rest; a struct that passes hashes without an error. Owns the
table of kinds of the bundle's own structs; those of typed structs are their EIP-712 types.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.address import address_bytes, address_from_bytes
from emcd.proto.bundle import (
    BatchEntry,
    BundleHeader,
    CallEntry,
    CommitmentEntry,
    DepositEntry,
    ProbeResult,
    RecordRef,
    ResultEntry,
    RevealEntry,
    SnapshotEntry,
    StatusEntry,
    Total,
    ValidatorPower,
    VoteEntry,
)
from emcd.proto.eip712 import TypedStruct
from emcd.proto.params import ModelPrice, ModelStanding, NetworkParams, PriceTable

_Check = Callable[[Any], bool]

_NAMED_STANDINGS = (ModelStanding.ENFORCED, ModelStanding.DELISTED)
_PARAMETER_SHAPES = {"compute_locks": "locks", "models": "catalogue"}

_SHAPES: dict[type[msgspec.Struct], str] = {
    BundleHeader: "uint32 uint63 address uint63 address address struct structs uint63[] uint63 bytes32 uint63 bytes32"
    " previous bytes32 bytes32 bytes32 bytes32",
    NetworkParams: " ".join(
        _PARAMETER_SHAPES.get(name, "bytes32" if name.endswith("_wei") else "uint63")
        for name in NetworkParams.__struct_fields__
    ),
    PriceTable: "uint32 struct prices",
    ModelPrice: "uint63 uint63 uint63",
    SnapshotEntry: "address address uint8 bytes32 uint32 uint63",
    ValidatorPower: "address bytes32",
    Total: "address bytes32",
    BatchEntry: "address uint8 uint16 uint64 bytes65 others",
    RecordRef: "uint32 uint16",
    CallEntry: "struct optional struct optional optional optional",
    StatusEntry: "struct bytes65",
    CommitmentEntry: "struct bytes65",
    ProbeResult: "address uint8 uint63 bytes16 bytes32 bytes32 uint8 uint64",
    RevealEntry: "struct bytes65 structs",
    VoteEntry: "struct bytes65",
    DepositEntry: "uint63 bytes32 bytes32 uint63 uint63 bytes32",
    ResultEntry: "address uint63 bytes64 bytes32 string",
}


def require_shape(struct: msgspec.Struct) -> None:
    """Raises: RemoteProtocolError EMC-1902 naming the first field that holds what it may not."""
    for name, kind, check in _compiled(type(struct)):
        value = getattr(struct, name)
        if not check(value):
            if isinstance(value, msgspec.Struct):
                require_shape(value)
            shown = "0x" + value.hex() if isinstance(value, bytes) else repr(value)
            raise RemoteProtocolError(
                "EMC-1902", f"{type(struct).__name__}.{name}: {shown[:90]} is no {kind}"
            )


def _is_well_formed(struct: msgspec.Struct) -> bool:
    return all(check(getattr(struct, name)) for name, _, check in _compiled(type(struct)))


@cache
def _compiled(kind: type[msgspec.Struct]) -> tuple[tuple[str, str, _Check], ...]:
    kinds = kind.eip712 if issubclass(kind, TypedStruct) else tuple(_SHAPES[kind].split())
    return tuple(
        (name, shape, _check(shape)) for name, shape in zip(kind.__struct_fields__, kinds, strict=True)
    )


def _check(shape: str) -> _Check:
    if shape.endswith("[]"):
        inner = _check(shape[:-2])
        return lambda items: all(map(inner, items))
    if shape.startswith("uint"):
        bound = 1 << int(shape[4:])
        return lambda value: 0 <= value < bound
    if shape.startswith("bytes"):
        size = int(shape[5:])
        return lambda value: len(value) == size
    return _NAMED[shape]


def _is_address(text: str) -> bool:
    try:
        return address_from_bytes(address_bytes(text)) == text
    except ValueError:
        return False


def _is_price_rows(rows: tuple[tuple[str, ModelPrice], ...]) -> bool:
    names = [name for name, _ in rows]
    return names == sorted(set(names)) and all(_is_well_formed(price) for _, price in rows)


def _is_locks(rows: tuple[tuple[int, int], ...]) -> bool:
    days = [item for item, _ in rows]
    return (
        days == sorted(set(days))
        and days[:1] == [0]
        and all(0 <= number < 1 << 32 for row in rows for number in row)
    )


def _is_catalogue(rows: tuple[tuple[str, int], ...]) -> bool:
    names = [name for name, _ in rows]
    return names == sorted(set(names)) and all(
        len(name) == 66 and standing in _NAMED_STANDINGS for name, standing in rows
    )


def _is_other_records(others: tuple[tuple[int, bytes], ...]) -> bool:
    indexes = [index for index, _ in others]
    return (
        indexes == sorted(set(indexes))
        and all(0 <= index < 256 for index in indexes)
        and all(len(item) == 32 for _, item in others)
    )


_NAMED: dict[str, _Check] = {
    "address": _is_address,
    "string": lambda text: len(text) <= 4096,
    "bool": lambda value: isinstance(value, bool),
    "struct": _is_well_formed,
    "structs": lambda items: all(map(_is_well_formed, items)),
    "optional": lambda item: item is None or _is_well_formed(item),
    "previous": lambda value: -1 <= value < 1 << 63,
    "prices": _is_price_rows,
    "others": _is_other_records,
    "locks": _is_locks,
    "catalogue": _is_catalogue,
}
