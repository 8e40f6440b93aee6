"""EIP-712 typed structs: one class per message, hashed the way wallets and contracts hash it.

A message is a frozen `TypedStruct` whose `eip712` names the Solidity type of every field, in
order; field names are snake_case here and camelCase in the type string. Supported: address, bool,
uint8..uint256, bytes1..bytes32, bytes, string, and arrays of address, uint or bytes32.

Every call of the network hashes three of these, so the hash of a class is compiled at its first use,
as dataclasses compile their methods: one `struct.pack` lays out every word, checks every number.
Source: EIP-712.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import msgspec

from emcd.errors import LocalProtocolError
from emcd.proto.address import address_bytes, hex_hash
from emcd.proto.hashing import keccak
from emcd.types import Address, Hash

_Encode = Callable[[Any], bytes]
_DOMAIN_TYPE = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"


class Domain(msgspec.Struct, frozen=True):
    """Where a signature counts: one chain, one contract."""

    chain_id: int
    verifying_contract: Address

    def separator(self) -> Hash:
        return _separator(self.chain_id, self.verifying_contract)


class TypedStruct(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of everything that is hashed or signed; on the wire an array of its fields."""

    eip712: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def type_string(cls) -> str:
        fields = ",".join(f"{kind} {name}" for kind, name in _members(cls))
        return f"{cls.__name__}({fields})"

    def struct_hash(self) -> Hash:
        """hashStruct of EIP-712. Raises: LocalProtocolError EMC-1493 on a value its type can't hold."""
        cls = type(self)
        lay_out = _LAYOUTS.get(cls) or _compile_layout(cls)
        try:
            return keccak(lay_out(self))
        except (OverflowError, ValueError, TypeError, AttributeError, struct.error) as exc:
            raise LocalProtocolError("EMC-1493", f"{cls.__name__}: {exc}") from exc


def digest(domain: Domain, struct: TypedStruct) -> Hash:
    """The 32 bytes that are signed."""
    return keccak(b"\x19\x01" + domain.separator() + struct.struct_hash())


def typed_data(domain: Domain, struct: TypedStruct) -> dict[str, Any]:
    """The JSON form (`eth_signTypedData_v4`) that wallets, viem and eth-account take."""
    members = _members(type(struct))
    values = {
        name: _json_value(kind, getattr(struct, field))
        for (kind, name), field in zip(members, struct.__struct_fields__, strict=True)
    }
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            type(struct).__name__: [{"name": name, "type": kind} for kind, name in members],
        },
        "primaryType": type(struct).__name__,
        "domain": {
            "name": "emcd",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": domain.verifying_contract,
        },
        "message": values,
    }


def _json_value(kind: str, value: Any) -> Any:
    if kind.endswith("[]"):
        return [_json_value(kind[:-2], item) for item in value]
    if isinstance(value, bytes):
        return hex_hash(value)
    if kind.startswith("uint"):
        return str(int(value))
    return value


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _members(cls: type[TypedStruct]) -> list[tuple[str, str]]:
    return [(kind, _camel(name)) for kind, name in zip(cls.eip712, cls.__struct_fields__, strict=True)]


@lru_cache(maxsize=256)
def _separator(chain_id: int, contract: Address) -> Hash:
    return keccak(
        keccak(_DOMAIN_TYPE.encode())
        + keccak(b"emcd")
        + keccak(b"1")
        + chain_id.to_bytes(32, "big")
        + bytes(12)
        + address_bytes(contract)
    )


_LAYOUTS: dict[type[TypedStruct], Callable[[Any], bytes]] = {}
_PACKED_UINTS = {8: "31xB", 16: "30xH", 32: "28xI", 64: "24xQ"}


def _compile_layout(cls: type[TypedStruct]) -> Callable[[Any], bytes]:
    """A function from a struct of the class to the bytes that are hashed: type hash, then a word a field."""
    layout, checks, words = ">32s", [], []
    names: dict[str, Any] = {"prefix": keccak(cls.type_string().encode())}
    for index, (field, kind) in enumerate(zip(cls.__struct_fields__, cls.eip712, strict=True)):
        value = f"s.{field}"
        if kind == "address":
            layout += "12x20s"
            value = f"address_bytes({value})"
        elif kind.startswith("uint") and int(kind[4:]) in _PACKED_UINTS:
            layout += _PACKED_UINTS[int(kind[4:])]
        elif kind.startswith("bytes") and kind != "bytes" and not kind.endswith("[]"):
            size = int(kind[5:])
            layout += f"{size}s{32 - size}x"
            checks.append(f"len({value}) != {size}")  # pack would cut or pad it
        else:
            layout += "32s"
            names[f"encode_{index}"] = _encoder(kind)
            value = f"encode_{index}({value})"
        words.append(value)
    names.update(pack=struct.Struct(layout).pack, address_bytes=address_bytes)
    refuse = (
        f" if {' or '.join(checks)}:\n  raise ValueError('a value of fixed size has another')\n"
        if checks
        else ""
    )
    source = f"def lay_out(s):\n{refuse} return pack(prefix, {', '.join(words)})"
    exec(source, names)  # noqa: S102 -- made of field names and types of our own classes alone
    lay_out: Callable[[Any], bytes] = names["lay_out"]
    _LAYOUTS[cls] = lay_out
    return lay_out


def _encoder(kind: str) -> _Encode:
    if kind.endswith("[]"):
        inner = _encoder(kind[:-2])
        return lambda items: keccak(b"".join([inner(item) for item in items]))
    if kind == "address":
        return lambda value: bytes(12) + address_bytes(value)
    if kind == "string":
        return lambda value: keccak(value.encode())
    if kind == "bytes":
        return keccak
    if kind == "bool":
        return lambda value: int(value).to_bytes(32, "big")
    if kind.startswith("uint"):
        return _uint_encoder(int(kind[4:]))
    if kind.startswith("bytes"):
        return _fixed_bytes_encoder(int(kind[5:]))
    raise LocalProtocolError("EMC-1493", f"EIP-712 type {kind} is not supported")


def _uint_encoder(bits: int) -> _Encode:
    size, padding = bits // 8, bytes(32 - bits // 8)
    return lambda value: padding + int(value).to_bytes(size, "big")


def _fixed_bytes_encoder(size: int) -> _Encode:
    padding = bytes(32 - size)

    def encode(value: bytes) -> bytes:
        if len(value) != size:
            raise ValueError(f"{size} bytes wanted, {len(value)} given")
        return value + padding

    return encode
