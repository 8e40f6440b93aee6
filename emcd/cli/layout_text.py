"""Text for people: columns that line up, ether, times. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

GWEI = 10**9
LAST_TIME_S = 253_402_300_800
"""The end of the year 9999: a calendar knows no later time."""


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: int = 2) -> list[str]:
    """Lines with every column as wide as its widest cell; the columns in `right` end flush."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * gap).join(cells).rstrip())
    return lines


def format_ether_ceil(wei: int) -> str:
    """Ether with six decimals, rounded up: a cost is never shown smaller than it is."""
    units = -(-wei // 10**12)
    return f"{units // 10**6:,}.{units % 10**6:06d}"


def format_gwei(wei: int) -> str:
    """A price of gas."""
    return f"{wei // GWEI:,}.{wei % GWEI // 10**6:03d}"


def format_time(time_s: int) -> str:
    """UTC to the minute, with seconds where they are not 0."""
    if not 0 <= time_s < LAST_TIME_S:
        return f"{time_s} s after 1970"
    moment = datetime.fromtimestamp(time_s, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC" if moment.second else "%Y-%m-%d %H:%M UTC")


def format_span(seconds: int) -> str:
    """A duration in its two largest units: "3 d 4 h", "2 min 5 s"."""
    parts = []
    rest = abs(seconds)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def format_when(time_s: int, now_s: int) -> str:
    """A time and how far it is from now."""
    off = time_s - now_s
    where = f"in {format_span(off)}" if off > 0 else f"{format_span(off)} ago"
    return f"{format_time(time_s)}, {where}"
