"""The contracts' interfaces: calls, results, events and errors to bytes and back, by eth-abi.

Values out: address as EIP-55 text, bytesN
and bytes as bytes, uintN as int, tuples as dicts by component name. No network, no web3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_abi.exceptions import DecodingError, EncodingError

from emcd.chain.contracts import load_artifact
from emcd.errors import LocalProtocolError
from emcd.proto.address import address_from_bytes
from emcd.proto.hashing import keccak


class DecodeError(Exception):
    """Bytes that do not have the shape the interface says."""


@dataclass(frozen=True)
class Param:
    """One input or output; `type` is canonical ("(address,uint256)[]" for tuples)."""

    name: str
    type: str
    indexed: bool = False
    components: tuple[Param, ...] = ()


@dataclass(frozen=True)
class FunctionAbi:
    name: str
    selector: bytes
    inputs: tuple[Param, ...]
    outputs: tuple[Param, ...]

    def encode(self, args: Sequence[Any]) -> bytes:
        """Calldata. Raises: LocalProtocolError EMC-1508 when an argument does not fit."""
        return self.selector + encode_params(self.inputs, args, self.name)

    def decode(self, data: bytes) -> tuple[Any, ...]:
        """The results. Raises: DecodeError."""
        return decode_params(self.outputs, data)


@dataclass(frozen=True)
class EventAbi:
    name: str
    topic: bytes
    inputs: tuple[Param, ...]

    def decode(self, topics: Sequence[bytes], data: bytes) -> dict[str, Any]:
        """The event's arguments by name. Raises: DecodeError."""
        indexed = [p for p in self.inputs if p.indexed]
        plain = [p for p in self.inputs if not p.indexed]
        if len(topics) != len(indexed) + 1 or topics[0] != self.topic:
            raise DecodeError(f"{self.name}: {len(topics)} topics")
        values = dict(zip((p.name for p in plain), decode_params(plain, data), strict=True))
        for param, topic in zip(indexed, topics[1:], strict=True):
            hashed = param.components or param.type in ("string", "bytes") or param.type.endswith("]")
            values[param.name] = topic if hashed else decode_params([param], topic)[0]
        return {p.name: values[p.name] for p in self.inputs}


@dataclass(frozen=True)
class ErrorAbi:
    name: str
    inputs: tuple[Param, ...]

    def decode(self, data: bytes) -> dict[str, Any]:
        """The error's arguments by name. Raises: DecodeError."""
        return dict(zip((p.name for p in self.inputs), decode_params(self.inputs, data), strict=True))


@dataclass(frozen=True)
class ContractAbi:
    """One contract's artifact."""

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes
    functions: Mapping[str, FunctionAbi]
    events: Mapping[bytes, EventAbi]
    errors: Mapping[bytes, ErrorAbi]
    constructor: tuple[Param, ...]

    def event(self, name: str) -> EventAbi:
        return next(event for event in self.events.values() if event.name == name)


@cache
def load_contract(name: str) -> ContractAbi:
    """One of our contracts. Raises: FatalError EMC-1590 when the installation lacks its artifact."""
    artifact = load_artifact(name)
    return parse_contract(name, artifact.abi, artifact.creation_code)


def parse_contract(name: str, abi: list[dict[str, Any]], bytecode: bytes = b"") -> ContractAbi:
    """Index a Solidity ABI; overloaded functions are kept under "name(types)" only."""
    functions: dict[str, FunctionAbi] = {}
    overloaded: set[str] = set()
    events: dict[bytes, EventAbi] = {}
    errors: dict[bytes, ErrorAbi] = {}
    constructor: tuple[Param, ...] = ()
    for entry in abi:
        inputs = tuple(_param(p) for p in entry.get("inputs", ()))
        signature = f"{entry.get('name', '')}({','.join(p.type for p in inputs)})"
        topic = bytes(keccak(signature.encode()))
        match entry["type"]:
            case "function":
                function = FunctionAbi(
                    entry["name"], topic[:4], inputs, tuple(_param(p) for p in entry["outputs"])
                )
                if entry["name"] in functions:
                    overloaded.add(entry["name"])
                functions[entry["name"]] = functions[signature] = function
            case "event":
                events[topic] = EventAbi(entry["name"], topic, inputs)
            case "error":
                errors[topic[:4]] = ErrorAbi(entry["name"], inputs)
            case "constructor":
                constructor = inputs
    for ambiguous in overloaded:
        del functions[ambiguous]
    return ContractAbi(name, abi, bytecode, functions, events, errors, constructor)


def encode_params(params: Sequence[Param], args: Sequence[Any], what: str) -> bytes:
    """Raises: LocalProtocolError EMC-1508."""
    try:
        return abi_encode([p.type for p in params], list(args))
    except (EncodingError, ValueError, TypeError, OverflowError) as exc:
        raise LocalProtocolError("EMC-1508", f"{what}: {exc}") from exc


def decode_params(params: Sequence[Param], data: bytes) -> tuple[Any, ...]:
    """Raises: DecodeError."""
    values = decode_values([p.type for p in params], data)
    return tuple(_plain(param, value) for param, value in zip(params, values, strict=True))


def decode_values(types: Sequence[str], data: bytes) -> tuple[Any, ...]:
    """Raises: DecodeError."""
    try:
        return abi_decode(list(types), data)
    except (DecodingError, ValueError, OverflowError) as exc:
        raise DecodeError(f"{len(data)} bytes are not ({','.join(types)})") from exc


def _plain(param: Param, value: Any) -> Any:
    if param.type.endswith("]"):
        inner = Param("", param.type[: param.type.rindex("[")], components=param.components)
        return tuple(_plain(inner, entry) for entry in value)
    if param.components:
        return {c.name: _plain(c, v) for c, v in zip(param.components, value, strict=True)}
    if param.type == "address":
        return address_from_bytes(bytes.fromhex(value[2:]))
    return value


def _param(raw: Mapping[str, Any]) -> Param:
    components = tuple(_param(c) for c in raw.get("components", ()))
    kind = raw["type"]
    if kind.startswith("tuple"):
        kind = f"({','.join(c.type for c in components)}){kind.removeprefix('tuple')}"
    return Param(raw.get("name", ""), kind, raw.get("indexed", False), components)
