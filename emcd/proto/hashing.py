"""keccak-256 as the EVM has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sha3

from emcd.types import Hash

_keccak_256: Any = sha3.keccak_256
_SMALL_BYTES = 4096


def keccak(data: bytes) -> Hash:
    """Keccak-256 (the original padding, not NIST SHA3-256) of the bytes."""
    digest: Hash = _keccak_256(data).digest()  # Hash(...) would be a call more, eleven times a call
    return digest


def keccak_each(items: Iterable[bytes]) -> list[Hash]:
    """The hash of each."""
    make = _keccak_256
    return [make(item).digest() for item in items]


def keccak_of(head: bytes, body: bytes) -> Hash:
    """keccak(head || body), without a copy of the body."""
    if len(body) < _SMALL_BYTES:
        return keccak(head + body)  # to copy it takes less than another call
    hasher = _keccak_256(head)
    hasher.update(body)
    digest: Hash = hasher.digest()
    return digest
