"""The accounts in memory: what is there, what is reserved by calls in flight. Pure.

The ledger holds the truth; this holds the same balances minus what is being written, so that a
call is admitted without a query. Invariants, for every account at every moment: granted >= 0,
vault >= 0, 0 <= reserved <= granted + vault; for every key with a budget: what it spent in the
period and what its calls hold never grows beyond the budget. Both are taken in one step, with the
key's tokens, or none is. A reservation vanishes with the process: the call's record alone moves
credits. Only the loop's thread may touch it, and nothing here waits.

Who gets credit: a call whose bound is free gets it at once, and is refused at once where the whole
balance (or what is left of the budget) is less than it needs. Between the two lies credit that
calls in flight hold and may not use: such a call stands in line for a moment (`billing.credit_line`)
and is refused only if its credit is not free at the end of it. While somebody stands there, later
calls stand behind them, so that what is given back gathers for the first in line; whoever's moment
is over gets what is free without regard to the line. A stream that can't hold its bound holds only
what it needs to begin, and more as it goes, in small steps: it never takes all that is free, and
its steps do not stand in line, for a call that runs comes before one that has not begun.

A purchase that the chain undid is not taken out of the vault's credits but kept beside them
(`undone`): what is left of the difference can be used, and nothing goes below zero. Where it was
spent before it was undone, the difference is a debt, which the next purchase pays by itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

import msgspec

from emcd.errors import LocalProtocolError
from emcd_hub.billing.bucket import Bucket
from emcd_hub.billing.keys import ApiKey
from emcd_hub.billing.line import Line, Place, join, leave, wake_first

UseFirst = Literal["granted", "vault"]


class Refused(Enum):
    """Why no reservation was made."""

    NO_ACCOUNT = "no account"
    INSUFFICIENT = "insufficient credit"
    TOO_MANY_CALLS = "too many calls"
    OVER_BUDGET = "the key's budget is used up"
    OVER_TOKENS = "the key's tokens of this minute are used up"
    HELD = "calls in flight hold the account's credits"
    HELD_BY_KEY = "calls in flight hold the key's budget"


WORTH_WAITING = frozenset((Refused.HELD, Refused.HELD_BY_KEY))


class Charge(NamedTuple):
    """What a call took, by where it came from."""

    granted_micro: int
    vault_micro: int

    @property
    def total_micro(self) -> int:
        return self.granted_micro + self.vault_micro


NO_CHARGE = Charge(0, 0)


@dataclass(slots=True)
class Account:
    """One account's balances, and who waits for them.

    Attributes:
        calls: that hold credits. waiting: that hold none yet, since they wait for a node or for credits.
    """

    account_id: str
    granted_micro: int
    vault_micro: int
    undone_micro: int = 0
    reserved_micro: int = 0
    calls: int = 0
    waiting: int = 0
    line: Line = field(default_factory=deque)

    @property
    def usable_vault_micro(self) -> int:
        return max(0, self.vault_micro - self.undone_micro)

    @property
    def debt_micro(self) -> int:
        return max(0, self.undone_micro - self.vault_micro)

    @property
    def balance_micro(self) -> int:
        return self.granted_micro + self.usable_vault_micro

    @property
    def free_micro(self) -> int:
        """What a new call may hold; calls in flight may hold more than there is, after an undone purchase."""
        return max(0, self.balance_micro - self.reserved_micro)


class Reservation(msgspec.Struct, eq=False):
    """Credits held for one call until `settle` or `release`, whichever comes first.

    Attributes:
        tokens: what it holds of `bucket`, its key's tokens of a minute, where the key has such a limit.
    """

    account: Account
    key: ApiKey
    amount_micro: int
    open: bool = True
    bucket: Bucket | None = None
    tokens: int = 0


class AccountBook:
    """Every account of the hub."""

    def __init__(self, *, use_first: UseFirst = "granted", max_calls: int = 512) -> None:
        self._accounts: dict[str, Account] = {}
        self._use_first = use_first
        self._max_calls = max_calls

    def load(self, account_id: str, granted_micro: int, vault_micro: int, undone_micro: int = 0) -> Account:
        """Take an account from the ledger. Raises: LocalProtocolError EMC-1790 when it is here already."""
        if account_id in self._accounts:
            raise LocalProtocolError("EMC-1790", f"account {account_id} is loaded twice")
        account = self._accounts[account_id] = Account(account_id, granted_micro, vault_micro, undone_micro)
        return account

    def find(self, account_id: str) -> Account | None:
        return self._accounts.get(account_id)

    def reserve(
        self,
        key: ApiKey,
        wanted_micro: int,
        least_micro: int,
        now_ms: int,
        tokens: int = 0,
        place: Place | None = None,
        last: bool = False,
    ) -> Reservation | Refused:
        """Hold credits of the account, of the key's budget, and tokens of the key's minute: all or none.

        Args:
            wanted_micro, tokens: what the call can cost and use at most.
            least_micro: with less than this it is not begun; with less than all of it, this is held.
            place: where it stands in line, if it does. last: its moment is over, the line does not count.
        """
        account = self._accounts.get(key.account_id)
        if account is None:
            return Refused.NO_ACCOUNT
        balance = account.granted_micro
        if account.vault_micro > account.undone_micro:
            balance += account.vault_micro - account.undone_micro
        free = balance - account.reserved_micro
        if free < least_micro:
            return Refused.INSUFFICIENT if balance < least_micro else Refused.HELD
        if account.calls + account.waiting >= self._max_calls:
            return Refused.TOO_MANY_CALLS
        meter = key.meter
        if key.limits is not None:
            room = self._find_room(key, least_micro, now_ms, tokens)
            if isinstance(room, Refused):
                return room
            if room is not None and room < free:
                free = room
        if (account.line or meter.line) and not last:
            ahead = _find_line_ahead(account, key, place)
            if ahead is not None:
                return ahead
        amount = wanted_micro if wanted_micro <= free else least_micro
        account.reserved_micro += amount
        account.calls += 1
        meter.held_micro += amount
        held = Reservation(account, key, amount)
        if meter.tokens is not None:
            held.bucket, held.tokens = meter.tokens, meter.tokens.fitting(tokens)
            meter.tokens.hold(held.tokens)
        if place is not None:
            leave(place)
        return held

    def _find_room(self, key: ApiKey, least_micro: int, now_ms: int, tokens: int) -> int | Refused | None:
        """What a limited key's call may hold of its budget; None without one."""
        meter, room = key.meter, _find_budget_left(key, now_ms)
        if room is not None and room < least_micro:
            whole = room + meter.held_micro
            return Refused.OVER_BUDGET if whole < least_micro else Refused.HELD_BY_KEY
        bucket = meter.tokens
        if bucket is not None and bucket.wait_ms(bucket.fitting(tokens), now_ms):
            return Refused.OVER_TOKENS
        return room

    def find_bar(self, key: ApiKey) -> Refused | None:
        """Why no call of the account begins now, whatever it costs."""
        account = self._accounts.get(key.account_id)
        if account is None:
            return Refused.NO_ACCOUNT
        if account.balance_micro <= 0:
            return Refused.INSUFFICIENT
        return Refused.TOO_MANY_CALLS if account.calls + account.waiting >= self._max_calls else None

    def begin_wait(self, key: ApiKey) -> Refused | None:
        """Count a call among its account's before it holds anything. Returns: why not; then it was not."""
        account = self._accounts.get(key.account_id)
        if account is None:
            return Refused.NO_ACCOUNT
        if account.calls + account.waiting >= self._max_calls:
            return Refused.TOO_MANY_CALLS
        account.waiting += 1
        return None

    def end_wait(self, key: ApiKey) -> None:
        """It waits no more: what it holds from now on counts."""
        self._accounts[key.account_id].waiting -= 1

    def join(self, place: Place, key: ApiKey, refused: Refused) -> None:
        """Stand in line for what was refused: the account's credits, or the key's budget."""
        join(self._accounts[key.account_id].line if refused is Refused.HELD else key.meter.line, place)

    def extend(self, reservation: Reservation, wanted_micro: int, now_ms: int) -> int:
        """Hold as much more as is free in account and budget, up to `wanted_micro` in all.

        Returns: what is held now.
        """
        _require_open(reservation)
        more = wanted_micro - reservation.amount_micro
        if more <= 0:
            return reservation.amount_micro
        account, key = reservation.account, reservation.key
        more = min(more, account.free_micro)
        if key.limits is not None:
            room = _find_budget_left(key, now_ms)
            more = more if room is None else max(0, min(more, room))
        account.reserved_micro += more
        key.meter.held_micro += more
        reservation.amount_micro += more
        return reservation.amount_micro

    def settle(
        self, reservation: Reservation, charge_micro: int, now_ms: int, tokens: int | None = None
    ) -> Charge:
        """Take a call's charge and free the rest of what was held.

        Args:
            now_ms: when the call ended: the charge counts in that period of the key.
            tokens: how many it used; None where nobody says it: all that it held, if it is charged at all.

        Raises: LocalProtocolError EMC-1790 when the charge is above what was held: a bug.
        """
        _require_open(reservation)
        if not 0 <= charge_micro <= reservation.amount_micro:
            raise LocalProtocolError("EMC-1790", f"charge {charge_micro} of {reservation.amount_micro} held")
        account = reservation.account
        if self._use_first == "granted":
            granted = min(charge_micro, account.granted_micro)
        else:
            rest = charge_micro - min(charge_micro, account.usable_vault_micro)
            granted = min(rest, account.granted_micro)
        charge = Charge(granted, charge_micro - granted)
        account.granted_micro -= granted
        account.vault_micro -= charge.vault_micro
        reservation.key.meter.spend(charge_micro, now_ms)
        if reservation.bucket is not None:
            used = tokens if tokens is not None else reservation.tokens if charge_micro else 0
            reservation.bucket.use(used, now_ms)
        self.release(reservation)
        return charge

    def release(self, reservation: Reservation) -> None:
        """Free what was held; nothing happens when it was settled or released before."""
        if not reservation.open:
            return
        reservation.open = False
        account, meter = reservation.account, reservation.key.meter
        account.reserved_micro -= reservation.amount_micro
        account.calls -= 1
        meter.held_micro -= reservation.amount_micro
        if reservation.bucket is not None:
            reservation.bucket.let_go(reservation.tokens)
        if account.line:
            account.line[0].wake()
        if meter.line:
            meter.line[0].wake()

    def refund(self, reservation: Reservation, charge: Charge, at_ms: int) -> None:
        """Put a charge back whose record the ledger refused. `at_ms`: when it was settled."""
        account = reservation.account
        account.granted_micro += charge.granted_micro
        account.vault_micro += charge.vault_micro
        reservation.key.meter.take_back(charge.total_micro, at_ms)
        wake_first(account.line)
        wake_first(reservation.key.meter.line)

    def credit(self, account_id: str, granted_micro: int, vault_micro: int) -> None:
        """Add what the ledger has already recorded. Raises: LocalProtocolError EMC-1790."""
        account = self._accounts.get(account_id)
        if account is None:
            raise LocalProtocolError("EMC-1790", f"account {account_id} is not loaded")
        account.granted_micro += granted_micro
        account.vault_micro += vault_micro
        wake_first(account.line)

    def undo_vault(self, account_id: str, amount_micro: int) -> None:
        """A purchase was undone by the chain; the ledger has it already."""
        self._accounts[account_id].undone_micro += amount_micro


def _find_line_ahead(account: Account, key: ApiKey, place: Place | None) -> Refused | None:
    """Whether others come first: in the account's line, or the key's."""
    if account.line and place is not account.line[0]:
        return Refused.HELD
    if key.meter.line and place is not key.meter.line[0]:
        return Refused.HELD_BY_KEY
    return None


def _find_budget_left(key: ApiKey, now_ms: int) -> int | None:
    """What nobody spent or holds of a key's budget, below 0 after it was lowered; None without one."""
    limits = key.limits
    if limits is None or limits.budget_micro is None:
        return None
    return limits.budget_micro - key.meter.spent_micro(limits.period, now_ms) - key.meter.held_micro


def _require_open(reservation: Reservation) -> None:
    if not reservation.open:
        raise LocalProtocolError("EMC-1790", "a reservation is used after it was closed")
