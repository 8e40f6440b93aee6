"""Which waiting texts run together: a plain data structure, without IO, tasks or time.

Invariants: texts of one batch differ by at most `padding_tokens` in length, since a run by itself
costs about as much as that many tokens: padding a text by more is dearer than another run; calls
take turns to lead a batch, so that a large call delays a small one by one batch, not by all of
its own; a call's longest text leads, so no text waits for ever.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of one batch; `tokens` counts padding."""

    texts: int = 32
    tokens: int = 512
    padding_tokens: int = 8


@dataclass(eq=False)
class PendingCall:
    """One caller's texts; `waiting` holds those that are in no batch yet, the longest first."""

    texts: Sequence[Sequence[int]]
    waiting: dict[int, WaitingText] = field(default_factory=dict)


class WaitingText(NamedTuple):
    """Sorts by length, then by arrival; `number` is unique, so nothing after it is compared."""

    tokens: int
    number: int
    call: PendingCall
    position: int


class BatchQueue:
    """Waiting texts sorted by length, and the order in which calls lead."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._sorted: list[WaitingText] = []
        self._turns: deque[PendingCall] = deque()
        self._next_number = 0
        self.waiting_tokens = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, call: PendingCall) -> None:
        """Take in all texts of a call."""
        for index in sorted(range(len(call.texts)), key=lambda i: -len(call.texts[i])):
            text = WaitingText(len(call.texts[index]), self._next_number, call, index)
            self._next_number += 1
            call.waiting[text.number] = text
            insort(self._sorted, text)
            self.waiting_tokens += text.tokens
        self._turns.append(call)

    def take(self) -> list[WaitingText]:
        """Remove and return the next batch, shortest first; empty when nothing waits."""
        leader = self._next_leader()
        if leader is None:
            return []
        low = bisect_left(self._sorted, leader)
        high = low + 1
        while (wider := self._widen(low, high)) is not None:
            low, high = wider
        batch = self._sorted[low:high]
        del self._sorted[low:high]
        for text in batch:
            del text.call.waiting[text.number]
            self.waiting_tokens -= text.tokens
        return batch

    def drop(self, call: PendingCall) -> None:
        """Forget what of a call still waits."""
        for text in call.waiting.values():
            del self._sorted[bisect_left(self._sorted, text)]
            self.waiting_tokens -= text.tokens
        call.waiting.clear()

    def _next_leader(self) -> WaitingText | None:
        while self._turns:
            call = self._turns.popleft()
            if call.waiting:
                self._turns.append(call)
                return next(iter(call.waiting.values()))
        return None

    def _widen(self, low: int, high: int) -> tuple[int, int] | None:
        """The window with its nearer neighbour, or None when no neighbour fits."""
        shortest, longest = self._sorted[low].tokens, self._sorted[high - 1].tokens
        options = []
        if low > 0:
            options.append((shortest - self._sorted[low - 1].tokens, low - 1, high))
        if high < len(self._sorted):
            options.append((self._sorted[high].tokens - longest, low, high + 1))
        for _, start, end in sorted(options):
            if self._fits(start, end):
                return start, end
        return None

    def _fits(self, low: int, high: int) -> bool:
        count, longest = high - low, self._sorted[high - 1].tokens
        return (
            count <= self._limits.texts
            and count * longest <= self._limits.tokens
            and longest - self._sorted[low].tokens <= self._limits.padding_tokens
        )
