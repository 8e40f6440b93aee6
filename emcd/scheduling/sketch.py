"""Quantiles of a stream of numbers in fixed memory.

Counts by buckets whose bounds grow by a ninth: a quantile is right to 6 %. When there are many
counts all are halved, so that what is told is about the newest few thousand numbers.
"""

from __future__ import annotations

from math import log

GROWTH = 1.12
LEAST = 0.0001
BUCKETS = 192
"""To 280,000: seconds of a slow call, tokens a second of a fast node."""
HALVE_AT = 4096
_SCALE = 1 / log(GROWTH)


class QuantileSketch:
    """A distribution."""

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.total = 0

    def add(self, value: float) -> None:
        """Count a number; what is below or beyond the range counts as its end."""
        at = int(log(value / LEAST) * _SCALE) if value > LEAST else 0
        self._counts[at if at < BUCKETS else BUCKETS - 1] += 1
        self.total += 1
        if self.total >= HALVE_AT:
            self._counts = [count >> 1 for count in self._counts]
            self.total = sum(self._counts)

    def quantile(self, share: float) -> float | None:
        """The number that this share of all is not above; None without any."""
        if not self.total:
            return None
        wanted = share * self.total
        seen = 0
        for at, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return LEAST * float(GROWTH ** (at + 0.5))
        return None
