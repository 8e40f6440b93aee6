"""Budgets hold under any interleaving of calls, aborts, grants and undone purchases."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from emcd_hub.billing.book import AccountBook, Charge, Refused, Reservation

AMOUNT = st.integers(0, 1000)


class BookMachine(RuleBasedStateMachine):
    """The book against a plain sum: credits in, charges out, nothing else."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.put_in = Charge(0, 0)
        self.undone = 0
        self.charged = Charge(0, 0)
        self.open: list[Reservation] = []

    @initialize(granted=AMOUNT, vault=AMOUNT, first=st.sampled_from(["granted", "vault"]))
    def begin(self, granted: int, vault: int, first: str) -> None:
        self.book = AccountBook(use_first=first, max_calls=20)  # type: ignore[arg-type]
        self.account = self.book.load("a", granted, vault)
        self.first = first
        self.put_in = Charge(granted, vault)

    @rule(target=reservations, wanted=AMOUNT, least=AMOUNT)
    def reserve(self, wanted: int, least: int) -> Reservation | None:
        least = min(wanted, least)
        free = self.account.free_micro
        held = self.book.reserve("a", wanted, least)
        if isinstance(held, Reservation):
            assert least <= held.amount_micro == min(wanted, free)
            self.open.append(held)
            return held
        assert held is Refused.TOO_MANY_CALLS or free < least
        return None

    @rule(held=reservations, wanted=AMOUNT)
    def extend(self, held: Reservation | None, wanted: int) -> None:
        if held is not None and held.open:
            before = held.amount_micro
            assert before <= self.book.extend(held, wanted) <= max(before, wanted)

    @rule(held=consumes(reservations), share=st.floats(0, 1))
    def settle(self, held: Reservation | None, share: float) -> None:
        if held is None or not held.open:
            return
        granted, usable = self.account.granted_micro, self.account.usable_vault_micro
        wanted = int(held.amount_micro * share)
        charge = self.book.settle(held, wanted)
        assert charge.total_micro == wanted
        if self.first == "granted":
            assert charge.vault_micro == 0 or charge.granted_micro == granted
        else:
            assert charge.granted_micro == 0 or charge.vault_micro >= usable
        if granted + usable >= wanted:
            assert charge.vault_micro <= usable
        self.charged = Charge(
            self.charged.granted_micro + charge.granted_micro, self.charged.vault_micro + charge.vault_micro
        )
        self.open.remove(held)

    @rule(held=consumes(reservations))
    def abort(self, held: Reservation | None) -> None:
        if held is not None and held.open:
            self.book.release(held)
            self.book.release(held)
            self.open.remove(held)

    @rule(granted=AMOUNT, vault=AMOUNT)
    def credit(self, granted: int, vault: int) -> None:
        self.book.credit("a", granted, vault)
        self.put_in = Charge(self.put_in.granted_micro + granted, self.put_in.vault_micro + vault)

    @rule(amount=AMOUNT)
    def undo_purchase(self, amount: int) -> None:
        self.book.undo_vault("a", amount)
        self.undone += amount

    @invariant()
    def nothing_is_overdrawn_and_nothing_is_lost(self) -> None:
        if not hasattr(self, "account"):
            return
        account = self.account
        assert account.granted_micro >= 0
        assert account.vault_micro >= 0
        assert (
            0
            <= account.reserved_micro
            == sum(item.amount_micro for item in self.open)
            <= account.granted_micro + account.vault_micro
        )
        assert account.calls == len(self.open)
        assert account.granted_micro == self.put_in.granted_micro - self.charged.granted_micro
        net_micro = self.put_in.vault_micro - self.undone - self.charged.vault_micro
        assert account.usable_vault_micro - account.debt_micro == net_micro
        assert account.free_micro == max(
            0, account.granted_micro + max(0, net_micro) - account.reserved_micro
        )


BookMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBook = BookMachine.TestCase
