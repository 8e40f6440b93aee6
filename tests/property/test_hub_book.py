"""Budgets of accounts and keys hold under any interleaving of calls, aborts, grants, undone purchases,
changed limits and periods that end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from emcd_hub.billing.book import WORTH_WAITING, AccountBook, Charge, Refused, Reservation
from emcd_hub.billing.key_limits import KeyLimits
from emcd_hub.billing.keys import ApiKey
from emcd_hub.billing.line import Place, leave
from emcd_hub.billing.period import HOUR_MS, Period, period_start_ms

AMOUNT = st.integers(0, 1000)
KEY = st.integers(0, 2)
BEGAN_MS = 1_800_000_000_000
LIMITS = st.one_of(
    st.none(),
    st.builds(
        KeyLimits,
        budget_micro=st.one_of(st.none(), st.integers(0, 1500)),
        period=st.sampled_from(Period),
        tokens_per_minute=st.one_of(st.none(), st.integers(1, 500)),
    ),
)


class BookMachine(RuleBasedStateMachine):
    """The book against plain sums: credits in, charges out, nothing else; and every charge with its time."""

    reservations = Bundle("reservations")
    charges = Bundle("charges")

    def __init__(self) -> None:
        super().__init__()
        self.put_in = Charge(0, 0)
        self.undone = 0
        self.charged = Charge(0, 0)
        self.open: list[Reservation] = []
        self.now_ms = BEGAN_MS
        self.spent: list[tuple[ApiKey, int, int]] = []
        self.over: dict[ApiKey, int] = {}

    @initialize(
        granted=AMOUNT, vault=AMOUNT, first=st.sampled_from(["granted", "vault"]), limits=st.lists(LIMITS)
    )
    def begin(self, granted: int, vault: int, first: str, limits: list[KeyLimits | None]) -> None:
        self.book = AccountBook(use_first=first, max_calls=20)  # type: ignore[arg-type]
        self.account = self.book.load("a", granted, vault)
        self.first = first
        self.put_in = Charge(granted, vault)
        self.keys = [ApiKey(f"key_{n}", "a", bytes([n]) * 32, "") for n in range(3)]
        for key, limit in zip(self.keys, [*limits, None, None, None], strict=False):
            self._limit(key, limit)

    def spent_in(self, key: ApiKey, period: Period) -> int:
        """By the list of charges."""
        since_ms = period_start_ms(period, self.now_ms)
        return sum(amount for who, at_ms, amount in self.spent if who is key and at_ms >= since_ms)

    def held_by(self, key: ApiKey) -> int:
        return sum(item.amount_micro for item in self.open if item.key is key)

    def room_of(self, key: ApiKey) -> int:
        """What the key's budget lets a call hold now."""
        if key.limits is None or key.limits.budget_micro is None:
            return 2**62
        return key.limits.budget_micro - self.spent_in(key, key.limits.period) - self.held_by(key)

    def _limit(self, key: ApiKey, limits: KeyLimits | None) -> None:
        key.limits = limits
        key.meter.fit(limits, self.now_ms)
        self.over[key] = max(0, -self.room_of(key))

    @rule(number=KEY, limits=LIMITS)
    def change_limits(self, number: int, limits: KeyLimits | None) -> None:
        self._limit(self.keys[number], limits)

    @rule(passed=st.one_of(st.integers(0, 5000), st.integers(0, 40 * 24).map(lambda hours: hours * HOUR_MS)))
    def pass_time(self, passed: int) -> None:
        self.now_ms += passed

    @rule(target=reservations, wanted=AMOUNT, least=AMOUNT, number=KEY, tokens=AMOUNT, last=st.booleans())
    def reserve(self, wanted: int, least: int, number: int, tokens: int, last: bool) -> Reservation | None:
        least, key = min(wanted, least), self.keys[number]
        free, room, bucket = self.account.free_micro, self.room_of(key), key.meter.tokens
        fits = bucket is None or bucket.wait_ms(bucket.fitting(tokens), self.now_ms) == 0
        held = self.book.reserve(key, wanted, least, self.now_ms, tokens, None, last)
        if isinstance(held, Reservation):
            assert fits
            assert least <= held.amount_micro == (wanted if wanted <= min(free, room) else least)
            self.open.append(held)
            return held
        match held:
            case Refused.TOO_MANY_CALLS:
                assert len(self.open) >= 20
            case Refused.INSUFFICIENT:
                assert self.account.balance_micro < least
            case Refused.HELD:
                assert free < least <= self.account.balance_micro
            case Refused.OVER_BUDGET:
                assert room + self.held_by(key) < least
            case Refused.HELD_BY_KEY:
                assert room < least <= room + self.held_by(key)
            case Refused.OVER_TOKENS:
                assert not fits
            case _:
                raise AssertionError(held)
        return None

    @rule(held=reservations, wanted=AMOUNT)
    def extend(self, held: Reservation | None, wanted: int) -> None:
        if held is not None and held.open:
            before, free, room = held.amount_micro, self.account.free_micro, self.room_of(held.key)
            most = before + max(0, min(free, room))
            assert self.book.extend(held, wanted, self.now_ms) == max(before, min(wanted, most))

    @rule(target=charges, held=consumes(reservations), share=st.floats(0, 1), tokens=st.none() | AMOUNT)
    def settle(
        self, held: Reservation | None, share: float, tokens: int | None
    ) -> tuple[Reservation, Charge, int] | None:
        if held is None or not held.open:
            return None
        granted, usable = self.account.granted_micro, self.account.usable_vault_micro
        wanted = int(held.amount_micro * share)
        charge = self.book.settle(held, wanted, self.now_ms, tokens)
        assert charge.total_micro == wanted
        if self.first == "granted":
            assert charge.vault_micro == 0 or charge.granted_micro == granted
        else:
            assert charge.granted_micro == 0 or charge.vault_micro >= usable
        if granted + usable >= wanted:
            assert charge.vault_micro <= usable
        self._charge(charge, 1)
        self.spent.append((held.key, self.now_ms, wanted))
        self.open.remove(held)
        return held, charge, self.now_ms

    @rule(settled=consumes(charges))
    def refund(self, settled: tuple[Reservation, Charge, int] | None) -> None:
        """The ledger refused the row, perhaps when another period had begun."""
        if settled is None:
            return
        held, charge, at_ms = settled
        self.book.refund(held, charge, at_ms)
        self._charge(charge, -1)
        self.spent.remove((held.key, at_ms, charge.total_micro))

    def _charge(self, charge: Charge, sign: int) -> None:
        self.charged = Charge(
            self.charged.granted_micro + sign * charge.granted_micro,
            self.charged.vault_micro + sign * charge.vault_micro,
        )

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

    @invariant()
    def no_key_is_over_its_budget(self) -> None:
        """But for what it was over when its budget was lowered."""
        if not hasattr(self, "account"):
            return
        for key in self.keys:
            for period in Period:
                assert key.meter.spent_micro(period, self.now_ms) == self.spent_in(key, period)
            assert key.meter.held_micro == self.held_by(key)
            room = self.room_of(key)
            assert room >= -self.over[key]
            self.over[key] = min(self.over[key], max(0, -room))


BookMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestBook = BookMachine.TestCase


class LineMachine(RuleBasedStateMachine):
    """Calls that wait: who is woken can go on, nobody overtakes, nobody is refused while credit is free."""

    def __init__(self) -> None:
        super().__init__()
        self.book = AccountBook(max_calls=1000)
        self.account = self.book.load("a", 1000, 0)
        self.keys = [ApiKey(f"key_{n}", "a", bytes([n]) * 32, "") for n in range(2)]
        self.keys[1].limits = KeyLimits(budget_micro=400)
        self.open: list[Reservation] = []
        self.waiting: list[tuple[Place, ApiKey, int]] = []
        self.woken: list[Place] = []

    @rule(number=st.integers(0, 1), bound=st.integers(1, 1200))
    def arrive(self, number: int, bound: int) -> None:
        self._try(Place(lambda: None), self.keys[number], bound)

    def _try(self, place: Place, key: ApiKey, bound: int, *, last: bool = False) -> None:
        """A call comes, or comes again because it was woken or because its moment is over."""
        place.wake = lambda: self.woken.append(place)
        ahead = {id(line): line[0] for line in (self.account.line, key.meter.line) if line}
        held = self.book.reserve(key, bound, bound, 0, 0, place, last)
        if isinstance(held, Reservation):
            assert last or all(first is place for first in ahead.values())
            assert place.line is None
            self.open.append(held)
        elif held in WORTH_WAITING and not last:
            self.book.join(place, key, held)
            self.waiting.append((place, key, bound))
        else:
            leave(place)
            room = (
                2**62
                if key.limits is None
                else 400 - key.meter.held_micro - key.meter.spent_micro(Period.NONE, 0)
            )
            assert bound > min(self.account.free_micro, room)

    @rule()
    def go_on(self) -> None:
        """Whoever was woken tries again."""
        woken, self.woken = self.woken, []
        for place, key, bound in list(self.waiting):
            if place in woken:
                self.waiting.remove((place, key, bound))
                self._try(place, key, bound)

    @rule(pick=st.integers(0, 100))
    def give_up(self, pick: int) -> None:
        if self.waiting:
            item = self.waiting.pop(pick % len(self.waiting))
            self._try(*item, last=True)

    @rule(pick=st.integers(0, 100))
    def leave_the_line(self, pick: int) -> None:
        if self.waiting:
            leave(self.waiting.pop(pick % len(self.waiting))[0])

    @rule(pick=st.integers(0, 100), share=st.sampled_from([0.0, 0.1, 1.0]))
    def end_a_call(self, pick: int, share: float) -> None:
        if self.open:
            held = self.open.pop(pick % len(self.open))
            self.book.settle(held, int(held.amount_micro * share), 0)

    @invariant()
    def whoever_is_first_and_could_go_was_woken(self) -> None:
        for place, key, bound in self.waiting:
            lines = [line for line in (self.account.line, key.meter.line) if line]
            room = self.account.free_micro
            if key.limits is not None:
                room = min(room, 400 - key.meter.held_micro - key.meter.spent_micro(Period.NONE, 0))
            if bound <= room and all(line[0] is place for line in lines):
                assert place in self.woken
        assert {id(place) for line in self._lines() for place in line} == {
            id(place) for place, _, _ in self.waiting
        }

    def _lines(self) -> list[list[Place]]:
        return [list(self.account.line), *(list(key.meter.line) for key in self.keys)]


LineMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLine = LineMachine.TestCase
