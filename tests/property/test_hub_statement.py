"""An account's books over random histories: every statement balances, nothing is overdrawn, memory is the disk.

Purchases come, are undone by the chain and come again (in the same block, in another, as somebody
else's); calls are in flight meanwhile; old rounds are archived and their calls deleted. What a key
used is the same on disk and in memory, for every period, whatever was archived.
"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from emcd.proto.params import NetworkParams
from emcd_hub.billing.book import AccountBook, Reservation
from emcd_hub.billing.key_row import insert_api_key
from emcd_hub.billing.key_usage import UNUSED, find_key_imbalance, read_key_use
from emcd_hub.billing.period import Period
from emcd_hub.billing.queries import (
    Granted,
    find_account,
    find_imbalance,
    insert_account,
    insert_grant,
    vault_account,
)
from emcd_hub.billing.statement import NOTHING, Amounts, read_statement
from emcd_hub.bootstrap import make_api_key
from emcd_hub.records.call_row import CallRow, insert_calls
from emcd_hub.rounds.chain_row import (
    Bought,
    credit_deposit,
    insert_deposit_movement,
    list_deposits,
    mark_listed,
    undo_above,
)
from tests.support.payout_ledger import open_tables

AMOUNT = st.integers(1, 1000)
PARAMS = NetworkParams(7200)
ACCOUNTS = ("acct_a", "acct_b")
ROUND_MS = PARAMS.round_s * 1000
PERIODS = (Period.HOUR, Period.DAY, Period.WEEK, Period.MONTH, Period.NONE)


class StatementMachine(RuleBasedStateMachine):
    """Two accounts, one vault, one chain that forks."""

    reservations = Bundle("reservations")

    @initialize(first=st.sampled_from(["granted", "vault"]))
    def begin(self, first: str) -> None:
        self.con = open_tables()
        self.now_ms = PARAMS.genesis_time_s * 1000
        self.book = AccountBook(use_first=first, max_calls=50)  # type: ignore[arg-type]
        self.block = 0
        self.chain: list[tuple[int, Bought]] = []
        self.calls = self.grants = 0
        self.archived = -1
        self.bought = dict.fromkeys(ACCOUNTS, 0)
        self.listed: set[int] = set()
        self.keys = {name: make_api_key(name).key for name in ACCOUNTS}
        for name in ACCOUNTS:
            self.book.load(*insert_account(self.con, name, name, self.now_ms).balances)
            insert_api_key(self.con, self.keys[name], "", self.now_ms)

    @property
    def round(self) -> int:
        return PARAMS.round_at(self.now_ms)

    @rule(minutes=st.integers(1, 300))
    def wait(self, minutes: int) -> None:
        self.now_ms += minutes * 60_000

    @rule(name=st.sampled_from(ACCOUNTS), amount=AMOUNT)
    def grant(self, name: str, amount: int) -> None:
        self.grants += 1
        assert insert_grant(self.con, name, amount, f"g{self.grants}", "", self.now_ms) is Granted.DONE
        assert insert_grant(self.con, name, amount, f"g{self.grants}", "", self.now_ms) is Granted.REPEATED
        self.book.credit(name, amount, 0)

    @rule(name=st.sampled_from((*ACCOUNTS, "stranger")), amount=AMOUNT)
    def buy(self, name: str, amount: int) -> None:
        self.block += 1
        index = len(self.chain)
        tx_hash = self.block.to_bytes(32, "big")
        item = Bought(index, vault_account(name), "0xpayer", amount, amount, self.block, tx_hash)
        self.chain.append((self.block, item))
        self.see(item)
        self.see(item)

    def see(self, item: Bought) -> None:
        """The watcher's event; a second time it changes nothing."""
        account = credit_deposit(self.con, item, self.round, self.now_ms)
        if account is not None:
            insert_deposit_movement(self.con, account, item.index, item.credits_micro, "", self.now_ms)
            self.book.credit(account, 0, item.credits_micro)
            self.bought[account] += item.credits_micro

    @rule(depth=st.integers(1, 4), comes_again=st.booleans(), as_other=st.booleans())
    def reorganise(self, depth: int, comes_again: bool, as_other: bool) -> None:
        """The last blocks are no more; what was bought in them may be mined again, or not."""
        base = max(0, self.block - depth)
        for undone in undo_above(self.con, base, self.now_ms):
            self.book.undo_vault(undone.account_id, undone.credits_micro)
            self.bought[undone.account_id] -= undone.credits_micro
        lost = [item for block, item in self.chain if block > base]
        self.chain = [(block, item) for block, item in self.chain if block <= base]
        self.block = base
        for item in lost if comes_again else ():
            self.buy("stranger" if as_other else _name_of(item), item.credits_micro)

    @rule(target=reservations, name=st.sampled_from(ACCOUNTS), wanted=AMOUNT)
    def reserve(self, name: str, wanted: int) -> Reservation | None:
        free = self.book.find(name).free_micro  # type: ignore[union-attr]
        held = self.book.reserve(self.keys[name], wanted, min(wanted, free) or 1, self.now_ms)
        assert isinstance(held, Reservation) is (free >= 1)
        return held if isinstance(held, Reservation) else None

    @rule(held=consumes(reservations), share=st.floats(0, 1))
    def settle(self, held: Reservation | None, share: float) -> None:
        if held is None or not held.open:
            return
        name = held.account.account_id
        usable, granted = held.account.usable_vault_micro, held.account.granted_micro
        charge = self.book.settle(held, int(held.amount_micro * share), self.now_ms)
        if usable + granted >= charge.total_micro:
            assert charge.vault_micro <= usable, "undone credits were used while others were there"
        self.calls += 1
        row = CallRow(
            self.calls, self.calls.to_bytes(16, "big"), name, "n", "m", self.round, 0, b"", None, b"",
            charge.granted_micro, charge.vault_micro, "", self.now_ms, held.key.key_id,
        )  # fmt: skip
        insert_calls(self.con, [row])

    @rule()
    def close_and_archive(self) -> None:
        """All rounds before the open one are closed, listed and archived."""
        for index in range(self.archived + 1, self.round):
            entries = list_deposits(self.con, index)
            assert not {entry.index for entry in entries} & self.listed, "a purchase is listed twice"
            self.listed |= {entry.index for entry in entries}
            mark_listed(self.con, index, (), [entry.index for entry in entries])
            self.con.execute(
                "INSERT INTO hub_bundles VALUES (?, zeroblob(32), -1, zeroblob(32), zeroblob(32), zeroblob(32),"
                " x'', x'', 0, x'', 0)",
                (index,),
            )
            self.con.execute("INSERT INTO hub_archived_rounds VALUES (?, 0, 1, 0)", (index,))
            self.con.execute("DELETE FROM hub_calls WHERE round <= ?", (index,))
            self.archived = index

    @rule(name=st.sampled_from(ACCOUNTS), first=st.integers(0, 12), count=st.integers(0, 12))
    def read(self, name: str, first: int, count: int) -> None:
        """`read_statement` checks the sum itself; here against the books as a whole."""
        made = read_statement(self.con, name, PARAMS, first, first + count)
        assert made is not None
        whole = read_statement(self.con, name, PARAMS, 0, 10_000)
        assert whole is not None
        assert whole.opening == NOTHING
        assert whole.closing == whole.balance == made.balance
        parts = [
            read_statement(self.con, name, PARAMS, index, index) for index in range(first, first + count + 1)
        ]
        assert made.moved == sum((part.moved for part in parts if part), NOTHING)
        assert made.used == sum((part.used for part in parts if part), NOTHING)
        assert all(a.closing == b.opening for a, b in pairwise(parts) if a and b)

    @invariant()
    def disk_and_memory_are_one_and_nothing_is_overdrawn(self) -> None:
        if not hasattr(self, "con"):
            return
        assert find_imbalance(self.con) is None
        assert find_key_imbalance(self.con) is None
        used = read_key_use(self.con, self.now_ms)
        for key in self.keys.values():
            spent = used.get(key.key_id, UNUSED).spent
            assert spent == tuple(key.meter.spent_micro(period, self.now_ms) for period in PERIODS)
        for name in ACCOUNTS:
            row, account = find_account(self.con, name), self.book.find(name)
            assert row is not None
            assert account is not None
            assert (row.granted_micro, row.vault_micro, row.undone_micro) == (
                account.granted_micro,
                account.vault_micro,
                account.undone_micro,
            )
            assert row.usable_vault_micro >= 0 <= account.free_micro
            made = read_statement(self.con, name, PARAMS, 0, 10_000)
            assert made is not None
            assert made.closing.vault_micro == self.bought[name] - made.used.vault_micro
            assert made.closing == Amounts(row.granted_micro, row.usable_vault_micro - row.debt_micro)


def _name_of(item: Bought) -> str:
    return next((name for name in ACCOUNTS if vault_account(name) == item.vault_account), "stranger")


StatementMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestStatement = StatementMachine.TestCase
