"""Names for the plain values that travel everywhere. Standard library only.

Addresses are EIP-55 checksummed text, hashes are 32 bytes, amounts are integers in the unit
that the type names. `emcd.proto.address` parses and prints addresses.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NewType

Address = NewType("Address", str)
"""EIP-55 checksummed, "0x" and 40 hex digits."""

Hash = NewType("Hash", bytes)
"""Exactly 32 bytes."""

Wei = NewType("Wei", int)
Micro = NewType("Micro", int)
"""Micro-credits: 1 credit is 1,000,000 of them."""

Round = NewType("Round", int)
"""Round index k, counted from 0 at the genesis time."""

Epoch = NewType("Epoch", int)

ZERO_HASH = Hash(bytes(32))
ZERO_ADDRESS = Address("0x" + "0" * 40)


class ParticipantRole(IntEnum):
    """What a bound key does in the network; the numbers are those of the staking contract."""

    COMPUTE = 1
    ROUTER = 2
    VALIDATOR = 3
    HUB = 4
