"""When a node that fails is left alone, and how it comes back.

closed: it gets calls. A row of faults, or half of the last twenty, opens it. open: no calls for a
while, twice as long each time, up to a minute. half open: one call at a time is tried; the first
that is well done closes it, a fault opens it again. What counts as a fault is the caller's to say:
faults of the node, timeouts and streams that broke, never errors of the client. A soft fault, such
as a node's "full", may be honest: it counts in the row, but not among the last twenty.

Pure: `now` is seconds of any steady clock, jitter a fraction from 0 to 1. Invariant: an open breaker
is not extended by the faults of calls that began before it opened.
"""

from __future__ import annotations

from enum import Enum

ROW = 5
"""So many faults in a row open it."""
WINDOW = 20
HALF = WINDOW // 2
FIRST_S = 1.0
LONGEST_S = 60.0
JITTER = 0.25
"""A pause is longer by up to this part, so that not all nodes come back at one moment."""
_WINDOW_BITS = (1 << WINDOW) - 1
_MAX_TRIPS = 16


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


_CLOSED = BreakerState.CLOSED  # to read a member of an Enum costs four times as much


class Breaker:
    """One node's breaker."""

    __slots__ = ("_good", "_history", "_row", "_trips", "reopens_at", "state")

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.reopens_at = 0.0
        """When an open one is tried again."""
        self._history = 0
        self._row = 0
        self._good = 0
        self._trips = 0

    def success(self) -> bool:
        """A call was well done. Returns: whether the state changed."""
        if self.state is _CLOSED:
            self._row = 0
            if self._history:
                self._history = self._history << 1 & _WINDOW_BITS
            if self._trips:
                self._good += 1
                if self._good >= WINDOW:
                    self._trips = 0
            return False
        if self.state is BreakerState.OPEN:
            return False
        self.state = BreakerState.CLOSED
        self._history = self._row = self._good = 0
        return True

    def fault(self, now: float, jitter: float, *, soft: bool = False) -> bool:
        """The node failed a call. Returns: whether the state changed."""
        if self.state is BreakerState.OPEN:
            return False
        self._good = 0
        self._row += 1
        if not soft:
            self._history = (self._history << 1 | 1) & _WINDOW_BITS
        if self.state is BreakerState.CLOSED and not self._is_too_much():
            return False
        pause = min(LONGEST_S, FIRST_S * 2**self._trips) * (1 + JITTER * jitter)
        self._trips = min(_MAX_TRIPS, self._trips + 1)
        self._history = self._row = 0
        self.state, self.reopens_at = BreakerState.OPEN, now + pause
        return True

    def poll(self, now: float) -> bool:
        """Go from open to half open when it is time. Returns: whether the state changed."""
        if self.state is not BreakerState.OPEN or now < self.reopens_at:
            return False
        self.state = BreakerState.HALF_OPEN
        return True

    def _is_too_much(self) -> bool:
        return self._row >= ROW or self._history.bit_count() >= HALF
