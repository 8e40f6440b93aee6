"""Signing and recovering typed structs on secp256k1; 65 bytes r || s || v, v 27 or 28.

Only the low half of s is accepted, so that one message and key have one signature.
"""

from __future__ import annotations

from typing import Protocol

from coincurve import PrivateKey, PublicKey

from emcd.errors import RemoteProtocolError
from emcd.proto.address import address_of_public_key
from emcd.proto.eip712 import Domain, TypedStruct, digest
from emcd.types import Address

SIGNATURE_BYTES = 65
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class Signer(Protocol):
    """A key that signs; its secret stays inside."""

    @property
    def address(self) -> Address: ...

    def sign(self, domain: Domain, struct: TypedStruct) -> bytes: ...


def sign(domain: Domain, struct: TypedStruct, secret: bytes) -> bytes:
    """Sign a struct with a 32-byte private key."""
    return sign_digest(digest(domain, struct), secret)


def sign_digest(message_digest: bytes, secret: bytes) -> bytes:
    """Sign 32 bytes that are already a digest."""
    raw = PrivateKey(secret).sign_recoverable(message_digest, hasher=None)
    return raw[:64] + bytes([raw[64] + 27])


def recover(domain: Domain, struct: TypedStruct, signature: bytes) -> Address:
    """Who signed it. Raises: RemoteProtocolError EMC-1494 when it is no canonical signature."""
    return recover_digest(digest(domain, struct), signature)


def recover_digest(message_digest: bytes, signature: bytes) -> Address:
    """Who signed these 32 bytes. Raises: RemoteProtocolError EMC-1494."""
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        raise RemoteProtocolError("EMC-1494", "a signature is 65 bytes r, s, v with v 27 or 28", 401)
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        raise RemoteProtocolError("EMC-1494", "the signature's s is in the upper half of the order", 401)
    try:
        key = PublicKey.from_signature_and_message(
            signature[:64] + bytes([signature[64] - 27]), message_digest, hasher=None
        )
    except Exception as exc:
        raise RemoteProtocolError("EMC-1494", "the signature recovers no key", 401) from exc
    return address_of_public_key(key.format(compressed=False))


def require_signer(domain: Domain, struct: TypedStruct, signature: bytes, expected: Address) -> None:
    """Raises: RemoteProtocolError EMC-1494 (no signature) or EMC-1495 (somebody else's)."""
    actual = recover(domain, struct, signature)
    if actual != expected:
        raise RemoteProtocolError(
            "EMC-1495", f"{type(struct).__name__} is signed by {actual}, not by {expected}", 401
        )
