"""How often a source may fail before it is not listened to: a bounded table of token buckets.

Pure: the time is an argument. Only failures cost; who never fails is never in the table.
Invariant: at most `sources` entries; when full, the one that failed longest ago is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address


class FailureLimiter:
    """Buckets of `failures` that refill within `window_s`, one per source."""

    def __init__(self, failures: int = 10, window_s: float = 60.0, sources: int = 4096) -> None:
        self._failures = float(failures)
        self._per_s = failures / window_s
        self._sources = sources
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._spent)

    def check_allowed(self, source: str, now_s: float) -> bool:
        """Whether the source may try again."""
        return self._find_spent(source_key(source), now_s) <= self._failures - 1

    def add_failure(self, source: str, now_s: float) -> None:
        """Count a failed attempt."""
        key = source_key(source)
        spent = min(self._failures, self._find_spent(key, now_s) + 1)
        self._spent[key] = (spent, now_s)
        self._spent.move_to_end(key)
        if len(self._spent) > self._sources:
            self._spent.popitem(last=False)

    def _find_spent(self, key: str, now_s: float) -> float:
        entry = self._spent.get(key)
        if entry is None:
            return 0.0
        spent, at_s = entry
        left = spent - (now_s - at_s) * self._per_s
        if left <= 0:
            del self._spent[key]
            return 0.0
        return left


def source_key(address: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
