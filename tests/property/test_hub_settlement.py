"""What the ledger keeps of calls: whatever comes in one commit, statements balance and nobody is overdrawn."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from emcd.ledger import IntegrityError, Ledger
from emcd.testing import temporary_ledger
from emcd_hub.billing.queries import find_imbalance, insert_account, insert_grant, list_accounts
from emcd_hub.records.call_row import CallRow, insert_calls
from emcd_hub.schema import MIGRATIONS

CALLS = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, 40), st.integers(0, 5), st.integers(0, 3), st.integers(0, 60)
    ),
    max_size=40,
)


def make_row(seq: int, account: int, granted: int, vault: int, index: int, id_number: int) -> CallRow:
    call_id = id_number.to_bytes(16, "big")
    return CallRow(
        seq, call_id, f"acct_{account}", "0xnode", "m", index, 0, b"f", None, b"d", granted, vault, "", index
    )


@settings(max_examples=25, deadline=None)
@given(CALLS)
def test_any_commit_balances_and_overdrafts_fail_alone(calls: list[tuple[int, int, int, int, int]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with temporary_ledger(Path(folder), {"hub": MIGRATIONS}) as ledger:
                await check(ledger, calls)

    trio.run(run)


async def check(ledger: Ledger, calls: list[tuple[int, int, int, int, int]]) -> None:
    def accounts(con: object) -> None:
        for number in range(2):
            insert_account(con, f"acct_{number}", f"name {number}", 0)  # type: ignore[arg-type]
            insert_grant(con, f"acct_{number}", 100, f"g{number}", "", 0)  # type: ignore[arg-type]

    await ledger.write(accounts)
    kept: list[CallRow] = []

    async def settle(row: CallRow) -> None:
        try:
            await ledger.write_bulk(insert_calls, row)
        except IntegrityError:
            return
        kept.append(row)

    async with trio.open_nursery() as nursery:
        for seq, (account, granted, vault, index, id_number) in enumerate(calls, 1):
            nursery.start_soon(settle, make_row(seq, account, granted, vault, index, id_number))
    assert await ledger.read(find_imbalance) is None
    assert len({row.call_id for row in kept}) == len(kept)
    for held in await ledger.read(list_accounts):
        spent = sum(row.granted_micro for row in kept if row.account_id == held.account_id)
        assert held.granted_micro == 100 - spent >= 0
        assert held.vault_micro == 0
    assert all(row.vault_micro == 0 and row.account_id != "acct_2" for row in kept)
