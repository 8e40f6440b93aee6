"""The JSON form of the protocol's structs: objects by field name, for HTTP between participants.

Pure. bytes are 0x-hex; amounts in wei and micro-credits, and weights, are decimal strings; all
other numbers are JSON numbers. Reading is strict: every field, no other, each in exactly the form
that writing gives, so that one content has one JSON value.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from functools import cache
from typing import Any, NewType, TypeVar, Union, cast, get_args, get_origin

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.address import parse_address
from emcd.proto.eip712 import TypedStruct
from emcd.types import Address, Hash

S = TypeVar("S", bound=msgspec.Struct)

CODE = "EMC-1499"
_WIDE_BYTES = {"weight": 64}
_WEI_BYTES = 32
_AMOUNT = re.compile(r"(^|_)(wei|micro)(_|$)")
_DIGITS = re.compile(r"0|[1-9][0-9]{0,156}")
_HEX = re.compile(r"0x(?:[0-9a-f]{2})*")

_Write = Callable[[Any], Any]
_Read = Callable[[Any], Any]


class _WrongError(Exception):
    """What does not fit, and where; the path grows while it leaves the nested values."""

    def __init__(self, message: str) -> None:
        self.path: list[str] = []
        self.message = message


def to_json(struct: msgspec.Struct) -> dict[str, Any]:
    """The JSON object of a typed struct or a part of the bundle."""
    return {name: write(getattr(struct, name)) for name, write, _ in _compiled(type(struct))}


def from_json(kind: type[S], table: object) -> S:
    """Read the JSON object of a struct. Raises: RemoteProtocolError EMC-1499 naming the field."""
    try:
        return cast("S", _read_struct(kind, table))
    except _WrongError as exc:
        where = "".join(reversed(exc.path)).lstrip(".")
        raise RemoteProtocolError(
            CODE, f"{kind.__name__}{'.' if where else ''}{where}: {exc.message}"
        ) from None


def _read_struct(kind: type[msgspec.Struct], table: object) -> msgspec.Struct:
    if not isinstance(table, dict):
        raise _WrongError("an object is wanted")
    fields = _compiled(kind)
    names = {name for name, _, _ in fields}
    if unknown := table.keys() - names:
        raise _WrongError(f"unknown field {min(map(str, unknown))[:80]!r}")
    if missing := names - table.keys():
        raise _WrongError(f"field {min(missing)!r} is missing")
    return kind(**{name: _at(f".{name}", read, table[name]) for name, _, read in fields})


def _at(step: str, read: _Read, value: Any) -> Any:
    try:
        return read(value)
    except _WrongError as exc:
        exc.path.append(step)
        raise


@cache
def _compiled(kind: type[msgspec.Struct]) -> tuple[tuple[str, _Write, _Read], ...]:
    solidity = kind.eip712 if issubclass(kind, TypedStruct) else ()
    out = []
    for index, field in enumerate(msgspec.structs.fields(kind)):
        write, read = _field(field.type, field.name, solidity[index] if solidity else "")
        out.append((field.name, write, read))
    return tuple(out)


def _field(hint: Any, name: str, solidity: str) -> tuple[_Write, _Read]:
    """Writer and reader of one type. `name` tells amounts, `solidity` the exact range."""
    if hint is Address:
        return str, _read_address
    if isinstance(hint, NewType) and hint is not Hash:
        return _field(hint.__supertype__, name, solidity)
    if hint is bytes or hint is Hash:
        return _bytes(name, 32 if hint is Hash and not solidity else _byte_size(solidity))
    if hint is int:
        return _amount(solidity) if _AMOUNT.search(name) else (int, _int_reader(solidity))
    if hint is bool:
        return bool, _exact(bool, "true or false is wanted")
    if hint is str:
        return str, _exact(str, "a text is wanted")
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return to_json, lambda value: _read_struct(hint, value)
    return _generic(hint, name, solidity)


def _generic(hint: Any, name: str, solidity: str) -> tuple[_Write, _Read]:
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = [item for item in arguments if item is not types.NoneType]
        write, read = _field(inner, name, solidity)
        return (lambda v: None if v is None else write(v)), (lambda v: None if v is None else read(v))
    if get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is ...:
        write, read = _field(arguments[0], name, solidity.removesuffix("[]"))
        return (lambda items: [write(item) for item in items]), _list_reader(read)
    if get_origin(hint) is tuple:
        pairs = [_field(item, "", "") for item in arguments]
        return (
            lambda items: [w(item) for (w, _), item in zip(pairs, items, strict=True)],
            _tuple_reader([read for _, read in pairs]),
        )
    raise TypeError(f"{name}: {hint} has no JSON form")


def _byte_size(solidity: str) -> int | None:
    size = solidity.removeprefix("bytes")
    return int(size) if solidity.startswith("bytes") and size else None


def _bytes(name: str, size: int | None) -> tuple[_Write, _Read]:
    wide = _WIDE_BYTES.get(name) or (_WEI_BYTES if _AMOUNT.search(name) else 0)
    if wide:
        return (lambda v: str(int.from_bytes(v, "big"))), lambda v: _read_amount(v, wide * 8).to_bytes(
            wide, "big"
        )

    def read(value: Any) -> bytes:
        if not isinstance(value, str) or not _HEX.fullmatch(value):
            raise _WrongError("0x and lower-case hex digits are wanted")
        raw = bytes.fromhex(value[2:])
        if size is not None and len(raw) != size:
            raise _WrongError(f"{size} bytes are wanted, {len(raw)} given")
        return raw

    return (lambda v: "0x" + v.hex()), read


def _amount(solidity: str) -> tuple[_Write, _Read]:
    bits = int(solidity.removeprefix("uint") or 64)
    return str, lambda value: _read_amount(value, bits)


def _read_amount(value: Any, bits: int) -> int:
    if not isinstance(value, str) or not _DIGITS.fullmatch(value):
        raise _WrongError("an amount is a text of decimal digits")
    if (number := int(value)) >> bits:
        raise _WrongError(f"the amount does not fit {bits} bits")
    return number


def _int_reader(solidity: str) -> _Read:
    bits = int(solidity.removeprefix("uint")) if solidity.startswith("uint") else None

    def read(value: Any) -> int:
        if type(value) is not int:
            raise _WrongError("an integer is wanted")
        if bits is not None and (value < 0 or value >> bits):
            raise _WrongError(f"the number does not fit uint{bits}")
        return value

    return read


def _read_address(value: Any) -> Address:
    if not isinstance(value, str):
        raise _WrongError("an address is wanted")
    try:
        return parse_address(value)
    except RemoteProtocolError as exc:
        raise _WrongError(exc.detail) from None


def _exact(kind: type, message: str) -> _Read:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise _WrongError(message)
        return value

    return read


def _list_reader(read: _Read) -> _Read:
    def read_list(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _WrongError("a list is wanted")
        return tuple(_at(f"[{index}]", read, item) for index, item in enumerate(value))

    return read_list


def _tuple_reader(readers: list[_Read]) -> _Read:
    def read_tuple(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(readers):
            raise _WrongError(f"a list of {len(readers)} is wanted")
        return tuple(
            _at(f"[{i}]", read, item) for i, (read, item) in enumerate(zip(readers, value, strict=True))
        )

    return read_tuple
