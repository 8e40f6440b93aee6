"""What a key has used: by hour, day, week, month and ever, this minute, and at this moment. Pure.

Every key has one, with limits or without: limits that are set while calls run know of them. Spent
credits are kept for all periods, so that a changed period counts what was spent before. It costs a
call one comparison and two additions: only the hour's sum moves, the others stand for what was
spent before that hour, and are moved when it is over.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from emcd_hub.billing.bucket import Bucket
from emcd_hub.billing.key_limits import NO_LIMITS, KeyLimits
from emcd_hub.billing.line import Line
from emcd_hub.billing.period import HOUR_MS, Period, period_start_ms

_LONGER = (Period.DAY, Period.WEEK, Period.MONTH, Period.NONE)


class Spent(NamedTuple):
    """Micro-credits of the hour, day, week and month in which a time lies, and of all time."""

    hour: int = 0
    day: int = 0
    week: int = 0
    month: int = 0
    ever: int = 0


class KeyMeter:
    """One key's numbers.

    Attributes:
        held_micro: what its calls in flight may still cost. calls: how many there are, waiting ones too.
        line: its calls that wait for its budget (`billing.book`).
    """

    __slots__ = (
        "_before",
        "_hour_ends_ms",
        "_hour_micro",
        "calls",
        "held_micro",
        "last_used_at_ms",
        "line",
        "requests",
        "tokens",
    )

    def __init__(self) -> None:
        self.calls = 0
        self.held_micro = 0
        self.last_used_at_ms = 0
        self.line: Line = deque()
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self._hour_micro = 0
        self._hour_ends_ms = 0
        self._before = dict.fromkeys(_LONGER, 0)

    def load(self, spent: Spent, last_used_at_ms: int, now_ms: int) -> None:
        """Take what the ledger knows of the periods in which `now_ms` lies."""
        self.last_used_at_ms = last_used_at_ms
        self._hour_micro = spent.hour
        self._hour_ends_ms = period_start_ms(Period.HOUR, now_ms) + HOUR_MS
        rest = (spent.day, spent.week, spent.month, spent.ever)
        self._before = {period: sum_ - spent.hour for period, sum_ in zip(_LONGER, rest, strict=True)}

    def fit(self, limits: KeyLimits | None, now_ms: int) -> None:
        """Take new limits; what was used in this minute stays used."""
        limits = limits or NO_LIMITS
        self.requests = _fit_bucket(self.requests, limits.requests_per_minute, now_ms)
        self.tokens = _fit_bucket(self.tokens, limits.tokens_per_minute, now_ms)

    def spent_micro(self, period: Period, now_ms: int) -> int:
        """What was spent in the period of this time."""
        if now_ms >= self._hour_ends_ms:
            self._turn(now_ms)
        return self._hour_micro + self._before.get(period, 0)

    def spend(self, amount_micro: int, at_ms: int) -> None:
        """Count a charge."""
        if at_ms >= self._hour_ends_ms:
            self._turn(at_ms)
        self._hour_micro += amount_micro
        self.last_used_at_ms = at_ms

    def take_back(self, amount_micro: int, at_ms: int) -> None:
        """Undo a charge of that time, which may lie in a period that is over."""
        now_ms = self._hour_ends_ms - 1
        if at_ms >= period_start_ms(Period.HOUR, now_ms):
            self._hour_micro -= amount_micro
            return
        for period in _LONGER:
            if at_ms >= period_start_ms(period, now_ms):
                self._before[period] -= amount_micro

    def _turn(self, now_ms: int) -> None:
        """Another hour, and perhaps another day, week, month."""
        last_ms = self._hour_ends_ms - 1
        for period in _LONGER:
            same = period_start_ms(period, now_ms) == period_start_ms(period, last_ms)
            self._before[period] = self._before[period] + self._hour_micro if same else 0
        self._hour_micro = 0
        self._hour_ends_ms = period_start_ms(Period.HOUR, now_ms) + HOUR_MS


def _fit_bucket(bucket: Bucket | None, per_minute: int | None, now_ms: int) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now_ms)
    bucket.set_limit(per_minute, now_ms)
    return bucket
