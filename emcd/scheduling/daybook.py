"""A day in quarters of an hour: how long something was up, what was done, what failed.

Time that nobody watched counts as down. Pure: times are UTC in ms. Bounded: a day's slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

SLOT_MS = 900_000
SLOTS = 96
DAY_MS = SLOT_MS * SLOTS
LONGEST_TICK_MS = 5_000
"""A longer gap between two looks was not watched."""


class SlotRow(NamedTuple):
    """A slot as it is kept; `slot` counts quarters of an hour from 1970."""

    slot: int
    up_ms: int
    calls: int
    faults: int


@dataclass(slots=True)
class _Slot:
    up_ms: int = 0
    calls: int = 0
    faults: int = 0


class DayBook:
    """The last day of one thing."""

    def __init__(self, now_ms: int, rows: Iterable[SlotRow] = ()) -> None:
        oldest = now_ms // SLOT_MS - SLOTS
        self._slots = {row.slot: _Slot(row.up_ms, row.calls, row.faults) for row in rows if row.slot > oldest}
        self._since_ms = min((slot * SLOT_MS for slot in self._slots), default=now_ms)
        self._looked_at_ms = now_ms
        self._changed: set[int] = set()

    def look(self, now_ms: int, *, is_up: bool) -> None:
        """Say how things stand; to be called every second or so."""
        passed = now_ms - self._looked_at_ms
        self._looked_at_ms = now_ms
        if is_up and 0 < passed <= LONGEST_TICK_MS:
            self._slot(now_ms).up_ms += passed

    def count(self, now_ms: int, calls: int, faults: int) -> None:
        """Count what was done, `faults` of it badly."""
        if calls:
            slot = self._slot(now_ms)
            slot.calls += calls
            slot.faults += faults

    def is_empty(self, now_ms: int) -> bool:
        """Whether nothing of the last day is left to tell."""
        return all(number <= now_ms // SLOT_MS - SLOTS for number in self._slots)

    def since_ms(self, now_ms: int) -> int:
        """When what is told began: a day ago, or when this was first seen."""
        return max(self._since_ms, now_ms - DAY_MS)

    def uptime(self, now_ms: int) -> float:
        """The share of the last day, as far as it is known, in which it was up."""
        span = now_ms - self.since_ms(now_ms)
        oldest = now_ms // SLOT_MS - SLOTS
        up_ms = sum(slot.up_ms for number, slot in self._slots.items() if number > oldest)
        return min(1.0, up_ms / span) if span > 0 else float(up_ms > 0)

    @property
    def calls(self) -> int:
        return sum(slot.calls for slot in self._slots.values())

    @property
    def faults(self) -> int:
        return sum(slot.faults for slot in self._slots.values())

    def take_changes(self) -> list[SlotRow]:
        """What is to be kept anew since the last time."""
        rows = [
            SlotRow(number, slot.up_ms, slot.calls, slot.faults)
            for number in sorted(self._changed)
            if (slot := self._slots.get(number)) is not None
        ]
        self._changed.clear()
        return rows

    def _slot(self, now_ms: int) -> _Slot:
        number = now_ms // SLOT_MS
        self._changed.add(number)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = _Slot()
            for old in [item for item in self._slots if item <= number - SLOTS]:
                del self._slots[old]
                self._changed.discard(old)
        return slot
