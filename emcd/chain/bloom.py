"""The bloom filter of a block's logs: what surely is not in the block. Pure.

Source: the Yellow Paper, section 4.3.1: 2048 bits, three of them for each address and topic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from emcd.chain.call import Log
from emcd.proto.address import address_bytes
from emcd.proto.hashing import keccak
from emcd.types import Address

BITS = 2048
TELLING_BITS = 1_200
"""With more bits set than that, one guess in six at an address and one of ten topics passes."""


@dataclass(frozen=True)
class Bloom:
    """A filter's bits, as one number."""

    bits: int

    @classmethod
    def from_hex(cls, text: str) -> Bloom:
        """Raises: ValueError, TypeError when it is no filter."""
        raw = bytes.fromhex(text.removeprefix("0x"))
        if len(raw) != BITS // 8:
            raise ValueError(f"a bloom filter of {len(raw)} bytes")
        return cls(int.from_bytes(raw, "big"))

    @classmethod
    def of(cls, logs: Iterable[Log]) -> Bloom:
        """The filter that these logs, and no others, give."""
        bits = 0
        for log in logs:
            bits |= item_bits(address_bytes(log.address))
            for topic in log.topics:
                bits |= item_bits(topic)
        return cls(bits)

    @property
    def is_telling(self) -> bool:
        """Whether it is empty enough for "may be" to mean something."""
        return self.bits.bit_count() <= TELLING_BITS

    def covers(self, other: Bloom) -> bool:
        """Whether everything in the other may be in this."""
        return self.bits & other.bits == other.bits

    def may_hold(self, address: Address, topics: Iterable[bytes]) -> bool:
        """Whether a log of the address with one of the topics may be in the block."""
        if not self._has(address_bytes(address)):
            return False
        return any(self._has(topic) for topic in topics)

    def _has(self, item: bytes) -> bool:
        bits = item_bits(item)
        return self.bits & bits == bits


def item_bits(item: bytes) -> int:
    """The three bits of an address or a topic."""
    digest = keccak(item)
    bits = 0
    for start in (0, 2, 4):
        bits |= 1 << (int.from_bytes(digest[start : start + 2], "big") % BITS)
    return bits
