"""JSON-RPC values in and out: quantities, byte strings, addresses. Strict where it matters.

Source: the Ethereum execution API specification.
"""

from __future__ import annotations

from typing import Any

from eth_typing import Address

from emcd.proto.address import address_from_bytes
from emcd_devchain.fault import INVALID_PARAMS, RpcFault


def quantity(value: int) -> str:
    return hex(value)


def data(value: bytes) -> str:
    return "0x" + value.hex()


def show_address(value: bytes) -> str:
    return address_from_bytes(value)


def invalid(what: str) -> RpcFault:
    return RpcFault(INVALID_PARAMS, f"invalid argument: {what}")


def read_quantity(value: Any, name: str) -> int:
    """A hex quantity below 2**256. Raises: RpcFault."""
    if not isinstance(value, str) or not value.startswith("0x") or not 3 <= len(value) <= 66:
        raise invalid(f"{name} is not a hex quantity")
    try:
        return int(value, 16)
    except ValueError:
        raise invalid(f"{name} is not a hex quantity") from None


def read_data(value: Any, name: str, length: int | None = None) -> bytes:
    """A 0x byte string, of a certain length where given. Raises: RpcFault."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise invalid(f"{name} is not a hex string")
    try:
        raw = bytes.fromhex(value[2:])
    except ValueError:
        raise invalid(f"{name} is not a hex string") from None
    if length is not None and len(raw) != length:
        raise invalid(f"{name} is not {length} bytes long")
    return raw


def read_address(value: Any, name: str = "address") -> Address:
    return Address(read_data(value, name, 20))


def read_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"{name} is not an object")
    return value
