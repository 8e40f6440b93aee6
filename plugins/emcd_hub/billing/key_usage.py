"""What keys spent, by the hour: SQL alone. It outlives the calls, which go when their round is archived.

A row is moved in the transaction that records its calls, so a key's spent is never behind or ahead
of them. An hour is that of a call's end in UTC; every period of a budget is made of whole hours.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

from emcd.ledger import Connection
from emcd_hub.billing.key_meter import Spent
from emcd_hub.billing.period import HOUR_MS, Period, period_start_ms

_ADD = (
    "INSERT INTO hub_key_usage VALUES %s ON CONFLICT (key_id, hour) DO UPDATE SET"
    " calls = calls + excluded.calls, granted_micro = granted_micro + excluded.granted_micro,"
    " vault_micro = vault_micro + excluded.vault_micro, last_at_ms = max(last_at_ms, excluded.last_at_ms)"
)
_SPENT = """
SELECT key_id, sum(calls), max(last_at_ms),
    sum(CASE WHEN hour >= ? THEN granted_micro + vault_micro ELSE 0 END),
    sum(CASE WHEN hour >= ? THEN granted_micro + vault_micro ELSE 0 END),
    sum(CASE WHEN hour >= ? THEN granted_micro + vault_micro ELSE 0 END),
    sum(CASE WHEN hour >= ? THEN granted_micro + vault_micro ELSE 0 END),
    sum(granted_micro + vault_micro)
FROM hub_key_usage WHERE key_id = ? OR ? GROUP BY key_id
"""
_IMBALANCE = """
WITH used AS (
    SELECT key_id, sum(calls) AS n, sum(granted_micro) AS g, sum(vault_micro) AS v
    FROM hub_key_usage GROUP BY 1
), called AS (
    SELECT key_id, count(*) AS n, sum(granted_micro) AS g, sum(vault_micro) AS v
    FROM hub_calls WHERE key_id IS NOT NULL GROUP BY 1
), whole AS (
    SELECT NOT EXISTS (SELECT 1 FROM hub_archived_rounds) AS all_here
)
SELECT called.key_id FROM called JOIN whole LEFT JOIN used USING (key_id)
WHERE coalesce(used.n, 0) < called.n OR coalesce(used.g, 0) < called.g OR coalesce(used.v, 0) < called.v
    OR (all_here AND (used.n != called.n OR used.g != called.g OR used.v != called.v))
LIMIT 1
"""


class KeyedCall(Protocol):
    """What counts of a call's row."""

    @property
    def key_id(self) -> str | None: ...
    @property
    def finished_at_ms(self) -> int: ...
    @property
    def granted_micro(self) -> int: ...
    @property
    def vault_micro(self) -> int: ...


class KeyUse(NamedTuple):
    """A key's sums."""

    calls: int
    last_at_ms: int
    spent: Spent


UNUSED = KeyUse(0, 0, Spent())


def add_key_usage(con: Connection, rows: Iterable[KeyedCall]) -> None:
    """Count the calls of a commit, all by one statement: each costs more than its row."""
    sums: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        key_id, at_ms = row.key_id, row.finished_at_ms
        if key_id is None:
            continue
        key = (key_id, at_ms // HOUR_MS)
        found = sums.get(key)
        if found is None:
            sums[key] = [1, row.granted_micro, row.vault_micro, at_ms]
            continue
        found[0] += 1
        found[1] += row.granted_micro
        found[2] += row.vault_micro
        if at_ms > found[3]:
            found[3] = at_ms
    if sums:
        values = [value for key, found in sums.items() for value in (*key, *found)]
        con.execute(_add_sql(len(sums)), values)


@lru_cache(maxsize=1024)
def _add_sql(count: int) -> str:
    return _ADD % ",".join(["(?, ?, ?, ?, ?, ?)"] * count)


def read_key_use(con: Connection, now_ms: int, key_id: str | None = None) -> dict[str, KeyUse]:
    """What keys, or one, spent in the periods in which a time lies; keys never used are not there."""
    since = [
        period_start_ms(period, now_ms) // HOUR_MS
        for period in (Period.HOUR, Period.DAY, Period.WEEK, Period.MONTH)
    ]
    rows = con.execute(_SPENT, (*since, key_id, key_id is None))
    return {row[0]: KeyUse(row[1], row[2], Spent(*row[3:])) for row in rows}


def find_key_imbalance(con: Connection) -> str | None:
    """The first key whose sums are not those of its calls, or None. For audits and tests.

    Calls of archived rounds are gone: then there may be less calls than the sums say, but never more.
    """
    row = con.execute(_IMBALANCE).fetchone()
    return None if row is None else str(row[0])
