"""Admin changes that are cancelled while the ledger writes: memory follows the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.clock import SystemClock
from emcd.ledger import Ledger, open_ledger
from emcd_hub.billing.book import AccountBook
from emcd_hub.billing.keys import KeyIndex
from emcd_hub.billing.office import BillingOffice, CreatedKey
from emcd_hub.billing.queries import AccountRow
from emcd_hub.role import SPEC


class Office:
    def __init__(self, ledger: Ledger) -> None:
        self.book, self.keys, self.ledger = AccountBook(), KeyIndex(), ledger
        self.office = BillingOffice(ledger=ledger, clock=SystemClock(), book=self.book, keys=self.keys)

    async def cancelled(self, change: Callable[[], Awaitable[object]]) -> None:
        """Do a change whose request is cancelled at once, and let the ledger finish."""
        with trio.CancelScope() as scope:
            scope.cancel()
            await change()
        await self.ledger.write(lambda con: None)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Office]:
    async with open_ledger(tmp_path / "ledger.db", {"hub": SPEC.migrations}) as ledger:
        yield Office(ledger)


async def test_cancelled_account_is_in_memory(world: Office) -> None:
    await world.cancelled(lambda: world.office.create_account("ada"))
    row = await world.office.find_account_by_name("ada")
    assert row is not None
    assert world.book.find(row.account_id) is not None


async def test_account_that_memory_lacks_is_loaded_when_created_again(world: Office) -> None:
    row = await world.office.create_account("ada")
    await world.office.grant(row.account_id, 7, "k", "")
    later = Office(world.ledger)
    again = await later.office.create_account("ada")
    account = later.book.find(again.account_id)
    assert account is not None
    assert account.balance_micro == 7


async def test_cancelled_grant_is_in_memory(world: Office) -> None:
    row: AccountRow = await world.office.create_account("ada")
    await world.cancelled(lambda: world.office.grant(row.account_id, 7, "k", ""))
    on_disk, account = await world.office.find_account(row.account_id), world.book.find(row.account_id)
    assert on_disk is not None
    assert account is not None
    assert account.granted_micro == on_disk.granted_micro == 7


async def test_cancelled_revocation_is_in_memory(world: Office) -> None:
    row = await world.office.create_account("ada")
    made: Any = await world.office.create_key(row.account_id, "")
    assert isinstance(made, CreatedKey)
    assert world.keys.find(made.secret) is not None
    await world.cancelled(lambda: world.office.revoke_key(made.key.key_id))
    assert world.keys.find(made.secret) is None
