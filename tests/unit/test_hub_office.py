"""Admin changes, cancelled while the ledger writes or made at once: memory follows the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.clock import SystemClock
from emcd.ledger import Connection, IntegrityError, Ledger, open_ledger
from emcd_hub.billing.book import AccountBook, Refused, Reservation
from emcd_hub.billing.key_limits import NO_LIMITS, KeyLimits
from emcd_hub.billing.key_office import CreatedKey, KeyChange, NoSuch
from emcd_hub.billing.key_row import find_api_key
from emcd_hub.billing.key_usage import find_key_imbalance, read_key_use
from emcd_hub.billing.keys import ApiKey, KeyIndex
from emcd_hub.billing.line import Place
from emcd_hub.billing.office import BillingOffice
from emcd_hub.billing.period import Period, period_start_ms
from emcd_hub.billing.queries import AccountRow
from emcd_hub.records.call_row import CallRow, find_last_seq, insert_calls
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
    made: Any = await world.office.keys.create_key(row.account_id, "")
    assert isinstance(made, CreatedKey)
    assert world.keys.find(made.secret.encode()) is not None
    await world.cancelled(lambda: world.office.keys.revoke_key(made.key.key_id))
    assert world.keys.find(made.secret.encode()) is None


LIMITS = KeyLimits(("m*",), 2_000_000_000_000, 60, 1000, 8, 50_000_000, Period.MONTH)


async def make_key(world: Office, limits: KeyLimits = NO_LIMITS) -> ApiKey:
    row = await world.office.create_account("ada")
    made = await world.office.keys.create_key(row.account_id, "label", limits)
    assert isinstance(made, CreatedKey)
    return made.key


async def reload(world: Office) -> Office:
    """Another process on the same ledger."""
    later = Office(world.ledger)
    await later.office.load()
    return later


def write_calls(con: Connection, key: ApiKey, calls: list[tuple[int, int, int]]) -> None:
    """Calls of a key: (finished_at_ms, granted, vault)."""
    first = find_last_seq(con) + 1
    insert_calls(
        con,
        [
            CallRow(
                seq, seq.to_bytes(16, "big"), key.account_id, "n", "m", 0, 0, b"", None, b"", granted, vault,
                "", at_ms, key.key_id,
            )
            for seq, (at_ms, granted, vault) in enumerate(calls, first)
        ],
    )  # fmt: skip


async def test_limits_stand_after_a_restart(world: Office) -> None:
    key, free = await make_key(world, LIMITS), await make_key(world)
    keys = (await reload(world)).keys
    found, also = keys.find_by_id(key.key_id), keys.find_by_id(free.key_id)
    assert found is not None
    assert also is not None
    assert found.limits == key.limits == LIMITS
    assert found.meter.requests is not None
    assert also.limits is None


async def test_spent_of_a_period_stands_after_a_restart_and_after_its_calls_are_gone(world: Office) -> None:
    key = await make_key(world, LIMITS)
    await world.office.grant(key.account_id, 1000, "k", "")
    now_ms = SystemClock().now_ms()
    old_ms = period_start_ms(Period.MONTH, now_ms) - 1
    await world.ledger.write(lambda con: write_calls(con, key, [(now_ms, 30, 0), (old_ms, 100, 0)]))
    await world.ledger.write(lambda con: write_calls(con, key, [(now_ms, 7, 0), (now_ms, 5, 0)]))

    def archive(con: Connection) -> None:
        con.execute("INSERT INTO hub_archived_rounds VALUES (0, 4, 1, 0)")
        con.execute("DELETE FROM hub_calls")

    assert await world.ledger.read(find_key_imbalance) is None
    await world.ledger.write(archive)
    assert await world.ledger.read(find_key_imbalance) is None
    found = (await reload(world)).keys.find_by_id(key.key_id)
    assert found is not None
    assert found.meter.spent_micro(Period.MONTH, now_ms) == 42
    assert found.meter.spent_micro(Period.NONE, now_ms) == 142
    assert found.meter.last_used_at_ms == now_ms


async def test_call_whose_row_is_refused_leaves_no_trace_in_the_keys_sums(world: Office) -> None:
    key = await make_key(world)
    await world.office.grant(key.account_id, 10, "k", "")
    now_ms = SystemClock().now_ms()
    with pytest.raises(IntegrityError):
        await world.ledger.write(lambda con: write_calls(con, key, [(now_ms, 6, 0), (now_ms, 6, 0)]))
    assert await world.ledger.read(lambda con: read_key_use(con, now_ms)) == {}


async def test_changes_at_once_end_alike_in_memory_and_on_disk(world: Office) -> None:
    key = await make_key(world, LIMITS)
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for number in range(1, 6):
                change = KeyChange(partial(replace, requests_per_minute=number))
                nursery.start_soon(world.office.keys.change_key, key.key_id, change)
        row = await world.ledger.read(lambda con: find_api_key(con, key.key_id))
        assert row is not None
        assert key.limits == row.limits
        assert row.label == "label"


async def test_cancelled_change_is_in_memory(world: Office) -> None:
    key = await make_key(world, LIMITS)
    await world.cancelled(
        lambda: world.office.keys.change_key(key.key_id, KeyChange(lambda _: NO_LIMITS, "other"))
    )
    assert key.limits is None
    view = await world.office.keys.find_key(key.key_id)
    assert view is not None
    assert (view.row.limits, view.row.label) == (NO_LIMITS, "other")


async def test_unknown_and_revoked_keys_are_not_changed(world: Office) -> None:
    key = await make_key(world)
    change = KeyChange(lambda limits: limits)
    assert await world.office.keys.change_key("key_none", change) is NoSuch.KEY
    assert await world.office.keys.revoke_key(key.key_id) is None
    assert await world.office.keys.change_key(key.key_id, change) is NoSuch.KEY
    assert await world.office.keys.find_key("key_none") is None
    view = await world.office.keys.find_key(key.key_id)
    assert view is not None
    assert view.live is None


async def test_raised_budget_wakes_the_call_that_waits_for_it(world: Office) -> None:
    key = await make_key(world, KeyLimits(budget_micro=10))
    await world.office.grant(key.account_id, 100, "k", "")
    woken: list[bool] = []
    held = world.book.reserve(key, 10, 10, 0)
    assert isinstance(held, Reservation)
    assert world.book.reserve(key, 1, 1, 0) is Refused.HELD_BY_KEY
    world.book.join(Place(lambda: woken.append(True)), key, Refused.HELD_BY_KEY)
    await world.office.keys.change_key(key.key_id, KeyChange(lambda _: KeyLimits(budget_micro=11)))
    assert woken == [True]
