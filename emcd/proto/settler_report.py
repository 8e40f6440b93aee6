"""What a settler tells a hub of a claim: shown to the wallet as that settler's word, and no more.

A hub takes it from an address that published a root on chain. Domain: staking, since no contract
checks it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from emcd.proto.eip712 import TypedStruct
from emcd.types import Address

MAX_TEXT = 300
"""Characters of a report's text."""


class ReportKind(IntEnum):
    """What happened to the claim."""

    HELD = 1
    """Not sent for now, `text` says why."""
    SUBMITTED = 2
    """Sent as the transaction `tx_hash`."""
    FAILED = 3
    """What was sent came to nothing, `text` says why."""


class SettlerReport(TypedStruct, frozen=True, array_like=True):
    """One settler's word on one extraction request; the newest counts."""

    eip712: ClassVar = ("address", "address", "uint256", "uint8", "string", "bytes32", "uint64")
    settler: Address
    wallet: Address
    nonce: int
    kind: int
    text: str
    tx_hash: bytes
    reported_at_ms: int
