"""Addresses and the 0x-hex of hashes: strict in, canonical out. Source: EIP-55."""

from __future__ import annotations

from functools import lru_cache

from coincurve import PrivateKey

from emcd.errors import RemoteProtocolError
from emcd.proto.hashing import keccak
from emcd.types import Address, Hash

_HEX = frozenset("0123456789abcdefABCDEF")


@lru_cache(maxsize=65536)
def address_from_bytes(raw: bytes) -> Address:
    """The checksummed text of a 20-byte address. Raises: ValueError on another length."""
    if len(raw) != 20:
        raise ValueError(f"an address is 20 bytes, not {len(raw)}")
    text = raw.hex()
    digest = keccak(text.encode()).hex()
    return Address(
        "0x" + "".join(c.upper() if int(d, 16) > 7 else c for c, d in zip(text, digest, strict=False))
    )


@lru_cache(maxsize=65536)
def address_bytes(address: str) -> bytes:
    """The 20 bytes behind a checksummed address of ours. Raises: ValueError when it is none."""
    raw = bytes.fromhex(address[2:])
    if len(raw) != 20 or not address.startswith("0x"):
        raise ValueError(f"{address!r} is not an address")
    return raw


def parse_address(text: str) -> Address:
    """Parse an address from outside; mixed case must carry the right checksum.

    All-lower-case and all-upper-case hex are refused too: a typing error would not be seen.
    Raises: RemoteProtocolError EMC-1490.
    """
    if len(text) != 42 or not text.startswith("0x") or not _HEX.issuperset(text[2:]):
        raise RemoteProtocolError("EMC-1490", f"{text[:80]!r} is not an address of 0x and 40 hex digits")
    address = address_from_bytes(bytes.fromhex(text[2:]))
    if address != text:
        raise RemoteProtocolError("EMC-1491", f"{text} fails the EIP-55 checksum")
    return address


def address_of_public_key(uncompressed: bytes) -> Address:
    """The address of a 65-byte uncompressed secp256k1 public key."""
    return address_from_bytes(keccak(uncompressed[1:])[12:])


def address_of_key(secret: bytes) -> Address:
    """The address of a 32-byte private key."""
    return address_of_public_key(PrivateKey(secret).public_key.format(compressed=False))


def hex_hash(data: bytes) -> str:
    """0x-hex of bytes, lower case."""
    return "0x" + data.hex()


def parse_hash(text: str) -> Hash:
    """Parse a 32-byte hash of 0x and 64 hex digits. Raises: RemoteProtocolError EMC-1492."""
    if len(text) != 66 or not text.startswith("0x") or not _HEX.issuperset(text[2:]):
        raise RemoteProtocolError("EMC-1492", f"{text[:80]!r} is not a hash of 0x and 64 hex digits")
    return Hash(bytes.fromhex(text[2:]))
