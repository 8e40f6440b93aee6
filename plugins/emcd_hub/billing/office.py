"""Everything that changes accounts beside calls: ledger first, memory after. Keys: `billing.key_office`.

Invariants: what memory holds was committed before; every change is idempotent by its key; nothing
is cancelled between the two.
"""

from __future__ import annotations

import trio

from emcd.clock import Clock
from emcd.ledger import Connection, Ledger
from emcd_hub.billing.book import AccountBook
from emcd_hub.billing.key_office import KeyOffice
from emcd_hub.billing.keys import KeyIndex
from emcd_hub.billing.queries import (
    AccountRow,
    Granted,
    find_account,
    find_account_by_name,
    insert_account,
    insert_grant,
    list_accounts,
)
from emcd_hub.bootstrap import make_account_id

WRITE_TIMEOUT_S = 30.0


class BillingOffice:
    """Accounts of one hub; `keys` are its API keys."""

    def __init__(self, *, ledger: Ledger, clock: Clock, book: AccountBook, keys: KeyIndex) -> None:
        self._ledger = ledger
        self._clock = clock
        self._book = book
        self.keys = KeyOffice(ledger=ledger, clock=clock, book=book, keys=keys)

    async def load(self) -> None:
        """Take all accounts and live keys into memory, at start."""
        for account in await self._ledger.read(list_accounts):
            self._book.load(*account.balances)
        await self.keys.load()

    async def create_account(self, name: str) -> AccountRow:
        """A new account, or the one that has the name."""
        at_ms = self._clock.now_ms()
        wanted = make_account_id()
        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            account = await self._ledger.write(lambda con: insert_account(con, wanted, name, at_ms))
            if self._book.find(account.account_id) is None:
                self._book.load(*account.balances)
        return account

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
