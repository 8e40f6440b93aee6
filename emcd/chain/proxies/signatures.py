"""Lists of signatures in the order that the contracts ask for. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from emcd.types import Address

Signatures = Mapping[Address, bytes]
"""Signer to its 65 bytes."""


def pack_signatures(signatures: Signatures) -> bytes:
    """One after the other, strictly ascending by signer as a number."""
    return b"".join(signatures[signer] for signer in sorted(signatures, key=lambda a: int(a, 16)))
