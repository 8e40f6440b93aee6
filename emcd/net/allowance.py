"""How many messages somebody may send: so many a second, and a burst. Pure."""

from __future__ import annotations


class Allowance:
    """A token bucket; `now` is a number of seconds that does not fall."""

    __slots__ = ("_at", "_left", "burst", "per_s")

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self.per_s = per_s
        self.burst = burst
        self._left = burst
        self._at = now

    def take(self, now: float) -> float:
        """Count one. Returns: how long to wait until it is within the allowance; 0 when it is."""
        self._left = min(self.burst, self._left + (now - self._at) * self.per_s) - 1
        self._at = now
        return max(0.0, -self._left / self.per_s)
