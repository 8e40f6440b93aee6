"""Everything that changes accounts and keys beside calls: ledger first, memory after.

Invariants: what memory holds was committed before; every change is idempotent by its key; nothing
is cancelled between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import trio

from emcd.clock import Clock
from emcd.ledger import Connection, Ledger
from emcd_hub.billing.book import AccountBook
from emcd_hub.billing.keys import ApiKey, KeyIndex
from emcd_hub.billing.queries import (
    AccountRow,
    Granted,
    find_account,
    find_account_by_name,
    insert_account,
    insert_api_key,
    insert_grant,
    list_accounts,
    list_live_keys,
    revoke_api_key,
)
from emcd_hub.bootstrap import make_account_id, make_api_key

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


class BillingOffice:
    """Accounts and keys of one hub."""

    def __init__(self, *, ledger: Ledger, clock: Clock, book: AccountBook, keys: KeyIndex) -> None:
        self._ledger = ledger
        self._clock = clock
        self._book = book
        self._keys = keys

    async def load(self) -> None:
        """Take all accounts and live keys into memory, at start."""
        accounts, keys = await self._ledger.read(lambda con: (list_accounts(con), list_live_keys(con)))
        for account in accounts:
            self._book.load(*account.balances)
        for key in keys:
            self._keys.add(key)

    async def create_account(self, name: str) -> AccountRow:
        """A new account, or the one that has the name."""
        at_ms = self._clock.now_ms()
        wanted = make_account_id()
        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            account = await self._ledger.write(lambda con: insert_account(con, wanted, name, at_ms))
            if self._book.find(account.account_id) is None:
                self._book.load(*account.balances)
        return account

    async def create_key(self, account_id: str, label: str) -> CreatedKey | NoSuch:
        """A new API key for an account."""
        if self._book.find(account_id) is None:
            return NoSuch.ACCOUNT
        made = make_api_key(account_id)
        at_ms = self._clock.now_ms()
        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            await self._ledger.write(lambda con: insert_api_key(con, made.key, label, at_ms))
            self._keys.add(made.key)
        return CreatedKey(made.key, made.secret)

    async def revoke_key(self, key_id: str) -> NoSuch | None:
        """From now on the key is unknown; calls in flight end as they would."""
        at_ms = self._clock.now_ms()
        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            if not await self._ledger.write(lambda con: revoke_api_key(con, key_id, at_ms)):
                return NoSuch.KEY
            self._keys.remove(key_id)
        return None

    async def grant(self, account_id: str, credits_micro: int, key: str, note: str) -> Granted:
        """Give credits that work for calls and weigh nothing; once per `key`."""
        at_ms = self._clock.now_ms()

        def write(con: Connection) -> Granted:
            return insert_grant(con, account_id, credits_micro, key, note, at_ms)

        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            outcome = await self._ledger.write(write)
            if outcome is Granted.DONE:
                self._book.credit(account_id, credits_micro, 0)
        return outcome

    async def find_account(self, account_id: str) -> AccountRow | None:
        return await self._ledger.read(lambda con: find_account(con, account_id))

    async def find_account_by_name(self, name: str) -> AccountRow | None:
        return await self._ledger.read(lambda con: find_account_by_name(con, name))
