"""Nodes as routing sees them, made up."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.testing import make_key
from emcd.types import Address


@dataclass(eq=False)
class StubCandidate:
    """A node with so much room."""

    address: Address
    capacity: int = 8
    in_flight: int = 0
    last_used: int = 0
    well: bool = True
    slowness: float = 0.0

    @property
    def room(self) -> int:
        return self.capacity - self.in_flight if self.well else 0

    @property
    def spare(self) -> int:
        return self.capacity - self.in_flight


def stub(name: str, capacity: int = 8, in_flight: int = 0, **rest: object) -> StubCandidate:
    return StubCandidate(make_key(name).address, capacity, in_flight, **rest)  # type: ignore[arg-type]


def many_stubs(number: int, capacity: int = 8) -> list[StubCandidate]:
    """Nodes with plain numbers for addresses: cheap to make."""
    return [StubCandidate(Address(f"0x{i:040x}"), capacity) for i in range(number)]
