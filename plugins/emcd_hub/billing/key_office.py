"""Everything that changes API keys: ledger first, memory after.

Invariants: what memory holds was committed before; two changes of keys come one after the other, so
that memory ends with what the ledger ends with; nothing is cancelled between the two; a change holds
for the next call and for no call in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import trio

from emcd.clock import Clock
from emcd.ledger import Connection, Ledger
from emcd_hub.billing.book import AccountBook
from emcd_hub.billing.key_limits import NO_LIMITS, KeyLimits
from emcd_hub.billing.key_row import (
    KeyRow,
    find_api_key,
    insert_api_key,
    list_api_keys,
    revoke_api_key,
    update_api_key,
)
from emcd_hub.billing.key_usage import UNUSED, KeyUse, read_key_use
from emcd_hub.billing.keys import ApiKey, KeyIndex
from emcd_hub.billing.line import wake_first
from emcd_hub.bootstrap import make_api_key

WRITE_TIMEOUT_S = 30.0


class NoSuch(Enum):
    """What was named does not exist."""

    ACCOUNT = "account"
    KEY = "key"


@dataclass(frozen=True)
class CreatedKey:
    """A new key; `secret` is shown to its owner once."""

    key: ApiKey
    secret: str


@dataclass(frozen=True)
class KeyChange:
    """What a key's settings become, of what they are. Raises what the caller's function raises."""

    limits: Callable[[KeyLimits], KeyLimits]
    label: str | None = None


@dataclass(frozen=True)
class KeyView:
    """A key with what it used; `live` is the one in memory, None once it is revoked."""

    row: KeyRow
    use: KeyUse
    live: ApiKey | None


class KeyOffice:
    """The API keys of one hub."""

    def __init__(self, *, ledger: Ledger, clock: Clock, book: AccountBook, keys: KeyIndex) -> None:
        self._ledger = ledger
        self._clock = clock
        self._book = book
        self._keys = keys
        self._changing = trio.Lock()

    async def load(self) -> None:
        """Take all live keys into memory with what they spent, at start."""
        now_ms = self._clock.now_ms()
        rows, uses = await self._ledger.read(
            lambda con: (list_api_keys(con), read_key_use(con, now_ms)), timeout_s=120
        )
        for row in rows:
            if row.revoked_at_ms is None:
                key, use = row.make_key(), uses.get(row.key_id, UNUSED)
                key.meter.load(use.spent, use.last_at_ms, now_ms)
                key.meter.fit(key.limits, now_ms)
                self._keys.add(key)

    async def create_key(
        self, account_id: str, label: str, limits: KeyLimits = NO_LIMITS
    ) -> CreatedKey | NoSuch:
        """A new API key for an account."""
        if self._book.find(account_id) is None:
            return NoSuch.ACCOUNT
        made = make_api_key(account_id)
        at_ms = self._clock.now_ms()
        _set_limits(made.key, limits, at_ms)
        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            await self._ledger.write(lambda con: insert_api_key(con, made.key, label, at_ms))
            self._keys.add(made.key)
        return CreatedKey(made.key, made.secret)

    async def change_key(self, key_id: str, change: KeyChange) -> NoSuch | None:
        """Set limits and label of a key that is not revoked. Raises: what `change.limits` raises."""

        def write(con: Connection) -> KeyLimits | None:
            row = find_api_key(con, key_id)
            if row is None or row.revoked_at_ms is not None:
                return None
            limits = change.limits(row.limits)
            update_api_key(con, key_id, limits, row.label if change.label is None else change.label)
            return limits

        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            async with self._changing:
                limits = await self._ledger.write(write)
                key = self._keys.find_by_id(key_id)
                if limits is None or key is None:
                    return NoSuch.KEY
                _set_limits(key, limits, self._clock.now_ms())
                wake_first(key.meter.line)
        return None

    async def revoke_key(self, key_id: str) -> NoSuch | None:
        """From now on the key is unknown; calls in flight end as they would."""
        at_ms = self._clock.now_ms()
        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            async with self._changing:
                if not await self._ledger.write(lambda con: revoke_api_key(con, key_id, at_ms)):
                    return NoSuch.KEY
                self._keys.remove(key_id)
        return None

    async def list_keys(self) -> list[KeyView]:
        """Every key there ever was, oldest first."""
        now_ms = self._clock.now_ms()
        rows, uses = await self._ledger.read(lambda con: (list_api_keys(con), read_key_use(con, now_ms)))
        return [KeyView(row, uses.get(row.key_id, UNUSED), self._keys.find_by_id(row.key_id)) for row in rows]

    async def find_key(self, key_id: str) -> KeyView | None:
        """One key, by its id."""
        now_ms = self._clock.now_ms()
        row, uses = await self._ledger.read(
            lambda con: (find_api_key(con, key_id), read_key_use(con, now_ms, key_id))
        )
        if row is None:
            return None
        return KeyView(row, uses.get(key_id, UNUSED), self._keys.find_by_id(key_id))


def _set_limits(key: ApiKey, limits: KeyLimits, now_ms: int) -> None:
    key.limits = None if limits == NO_LIMITS else limits
    key.meter.fit(key.limits, now_ms)
