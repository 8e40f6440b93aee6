"""So many things a minute: a leaky bucket of whole numbers. Pure.

It holds a minute's worth at most and leaks evenly, so over any time of T minutes no more than
limit * (T + 1) go through, and a client that used all of it waits for the next one only, not for
the minute to end. A sliding window would bound each minute alone, but must remember every call of
it, and lets what a wrong bound took of the window go only a minute later.

What calls in flight may still use is held apart from what was used: it does not leak, and is
replaced by the true number at the end. Invariant: used + held grows only while it stays within the
bucket, whatever ends or leaks meanwhile; only a call that used more than it held (a stream without
a bound) may leave more in it, which those after it wait for.
"""

from __future__ import annotations

MINUTE_MS = 60_000


class Bucket:
    """One limit. Amounts inside are in 1/60,000: a limit of n a minute leaks n of them a millisecond."""

    __slots__ = ("_at_ms", "_held", "_used", "per_minute")

    def __init__(self, per_minute: int, now_ms: int) -> None:
        self.per_minute = per_minute
        self._used = 0
        self._held = 0
        self._at_ms = now_ms

    def fitting(self, count: int) -> int:
        """What is held for a call that may need so many: one that needs more than fits at all takes all."""
        return min(count, self.per_minute)

    def wait_ms(self, count: int, now_ms: int) -> int:
        """How long until so many fit, if nothing else is taken; 0: now. Held ones may end at any time."""
        self._leak(now_ms)
        over = self._used + self._held + (count - self.per_minute) * MINUTE_MS
        if over <= 0:
            return 0
        return max(1, -(-min(over, self._used) // self.per_minute))

    def use(self, count: int, now_ms: int) -> None:
        """Count so many as used."""
        self._leak(now_ms)
        self._used += count * MINUTE_MS

    def hold(self, count: int) -> None:
        """Keep room for so many."""
        self._held += count * MINUTE_MS

    def let_go(self, count: int) -> None:
        """Give back what was held."""
        self._held -= count * MINUTE_MS

    def left_floor(self, now_ms: int) -> int:
        """How many fit now."""
        self._leak(now_ms)
        return max(0, self.per_minute - -(-(self._used + self._held) // MINUTE_MS))

    def empty_in_ms(self, now_ms: int) -> int:
        """How long until all of the limit is there again, if every held one is used."""
        self._leak(now_ms)
        return -(-(self._used + self._held) // self.per_minute)

    def set_limit(self, per_minute: int, now_ms: int) -> None:
        """Change the limit; what was used and held stays."""
        self._leak(now_ms)
        self.per_minute = per_minute

    def _leak(self, now_ms: int) -> None:
        """A clock that was set back lets nothing out, and stops nothing for long."""
        passed = now_ms - self._at_ms
        if passed > 0 and self._used:
            self._used = max(0, self._used - passed * self.per_minute)
        self._at_ms = now_ms
