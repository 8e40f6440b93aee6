"""When a budget begins anew: hours, days, weeks (from Monday) and months of UTC. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
_MONDAY_MS = 4 * DAY_MS
"""1970 began on a Thursday; this was its first Monday."""


class Period(Enum):
    """How long a budget is for. NONE: for ever."""

    NONE = "none"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


def period_start_ms(period: Period, at_ms: int) -> int:
    """When the period began in which a time lies; for ever began with 1970."""
    match period:
        case Period.NONE:
            return 0
        case Period.HOUR:
            return at_ms - at_ms % HOUR_MS
        case Period.DAY:
            return at_ms - at_ms % DAY_MS
        case Period.WEEK:
            return at_ms - (at_ms - _MONDAY_MS) % WEEK_MS
        case Period.MONTH:
            return _month_ms(at_ms, 0)


def period_end_ms(period: Period, at_ms: int) -> int | None:
    """When the next period begins; None for a budget without one."""
    match period:
        case Period.NONE:
            return None
        case Period.HOUR:
            return period_start_ms(period, at_ms) + HOUR_MS
        case Period.DAY:
            return period_start_ms(period, at_ms) + DAY_MS
        case Period.WEEK:
            return period_start_ms(period, at_ms) + WEEK_MS
        case Period.MONTH:
            return _month_ms(at_ms, 1)


def _month_ms(at_ms: int, later: int) -> int:
    """When the month of a time began, or one `later` months after it."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    years, month = divmod(at.month - 1 + later, 12)
    return int(datetime(at.year + years, month + 1, 1, tzinfo=UTC).timestamp()) * 1000
