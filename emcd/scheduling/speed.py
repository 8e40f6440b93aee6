"""How fast a node answers, as measured: exponentially weighted, so that a few numbers are the window."""

from __future__ import annotations

WEIGHT = 0.1
"""Of the newest call: what is measured is about the last twenty calls."""
USUAL_TOKENS = 128
"""The answer that `slowness` is about."""


class Speed:
    """One node's speed with one model."""

    __slots__ = ("calls", "first_s", "tokens_per_s")

    def __init__(self) -> None:
        self.calls = 0
        self.first_s: float | None = None
        """Seconds to the first token; of streams only, since others do not show it."""
        self.tokens_per_s: float | None = None

    def add(self, seconds: float, first_s: float | None, tokens: int) -> None:
        """A call is finished.

        Args:
            seconds: from when the node got it to its end.
            first_s: to the first token of a stream; None for others.
            tokens: put out, or read where nothing is put out.
        """
        self.calls += 1
        if first_s is not None:
            before = self.first_s
            self.first_s = first_s if before is None else before + WEIGHT * (first_s - before)
            seconds -= first_s
            tokens -= 1
        if tokens > 0 and seconds > 0:
            rate = tokens / seconds
            old = self.tokens_per_s
            self.tokens_per_s = rate if old is None else old + WEIGHT * (rate - old)

    @property
    def slowness(self) -> float:
        """Seconds that a usual call takes; 0: not known."""
        rate = self.tokens_per_s
        if rate is None:
            return self.first_s or 0.0
        return (self.first_s or 0.0) + USUAL_TOKENS / rate
