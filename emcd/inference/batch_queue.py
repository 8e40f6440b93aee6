"""Which waiting texts run together: a plain data structure, without IO, tasks or time.

A run costs as many tokens as it has places for, rows times the longest, and `run_tokens` more for being
a run at all. So a batch grows by the text next to it in length as long as the share of its cost that is
tokens of texts grows with it, and the text would cost more in a run of its own.

Invariants: calls take turns to lead a batch, so that a large call delays a small one by one batch, not by
all of its own; a call's longest text leads, so no text waits for ever.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of one batch; `tokens` counts padding.

    Args:
        run_tokens: what a run costs beside its tokens, in tokens (measured: 1.8 ms, as 8 tokens take).
    """

    texts: int = 32
    tokens: int = 512
    run_tokens: int = 8


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


class _Window(NamedTuple):
    """Texts `low` to `high` of the sorted ones: the share of a run's cost that is of use, and of what."""

    share: float
    useful: int
    places: int
    low: int
    high: int


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
        low, high = self._choose_window(bisect_left(self._sorted, leader))
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

    def _choose_window(self, at: int) -> tuple[int, int]:
        """The texts around one that are best run with it."""
        window = self._weigh(at, at + 1, self._sorted[at].tokens)
        while True:
            options = []
            if window.high < len(self._sorted):
                options.append(self._widen(window, window.low, window.high + 1, window.high))
            if window.low > 0:
                options.append(self._widen(window, window.low - 1, window.high, window.low - 1))
            best = max(filter(None, options), default=window)
            if best.share <= window.share:
                return window.low, window.high
            window = best

    def _widen(self, window: _Window, low: int, high: int, added: int) -> _Window | None:
        """A window with one text more; None if it is too large, or the text is cheaper in another run."""
        tokens = self._sorted[added].tokens
        wider = self._weigh(low, high, window.useful + tokens)
        fits = high - low <= self._limits.texts and wider.places <= self._limits.tokens
        is_cheaper = wider.places - window.places <= tokens + self._limits.run_tokens
        return wider if fits and is_cheaper else None

    def _weigh(self, low: int, high: int, useful: int) -> _Window:
        places = (high - low) * self._sorted[high - 1].tokens
        return _Window(useful / (self._limits.run_tokens + places), useful, places, low, high)
