"""Lists of signatures in the order that the contracts ask for. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from emcd.types import Address

Signatures = Mapping[Address, bytes]
"""Signer to its 65 bytes."""


def sort_signatures(signatures: Signatures) -> list[bytes]:
    """Strictly ascending by signer, as a number."""
    return [signatures[signer] for signer in sorted(signatures, key=lambda a: int(a, 16))]
