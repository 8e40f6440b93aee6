"""keccak-256 as the EVM has it."""

from __future__ import annotations

import sha3

from emcd.types import Hash


def keccak(data: bytes) -> Hash:
    """Keccak-256 (the original padding, not NIST SHA3-256) of the bytes."""
    return Hash(sha3.keccak_256(data).digest())
