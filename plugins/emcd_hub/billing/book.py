"""The accounts in memory: what is there, what is reserved by calls in flight. Pure.

The ledger holds the truth; this holds the same balances minus what is being written, so that a
call is admitted without a query. Invariants, for every account at every moment: granted >= 0,
vault >= 0, 0 <= reserved <= granted + vault. A reservation vanishes with the process: the call's
record alone moves credits. Only the loop's thread may touch it, and nothing here waits.

A purchase that the chain undid is not taken out of the vault's credits but kept beside them
(`undone`): what is left of the difference can be used, and nothing goes below zero. Where it was
spent before it was undone, the difference is a debt, which the next purchase pays by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from emcd.errors import LocalProtocolError

UseFirst = Literal["granted", "vault"]


class Refused(Enum):
    """Why no reservation was made."""

    NO_ACCOUNT = "no account"
    INSUFFICIENT = "insufficient credit"
    TOO_MANY_CALLS = "too many calls"


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
    """One account's balances."""

    account_id: str
    granted_micro: int
    vault_micro: int
    undone_micro: int = 0
    reserved_micro: int = 0
    calls: int = 0

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


@dataclass(slots=True, eq=False)
class Reservation:
    """Credits held for one call until `settle` or `release`, whichever comes first."""

    account: Account
    amount_micro: int
    open: bool = True


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

    def reserve(self, account_id: str, wanted_micro: int, least_micro: int) -> Reservation | Refused:
        """Hold credits for a call.

        Args:
            wanted_micro: what the call can cost at most.
            least_micro: with less than this it is not begun; between the two, what is there is held.
        """
        account = self._accounts.get(account_id)
        if account is None:
            return Refused.NO_ACCOUNT
        free = account.free_micro
        if free < least_micro:
            return Refused.INSUFFICIENT
        if account.calls >= self._max_calls:
            return Refused.TOO_MANY_CALLS
        amount = min(wanted_micro, free)
        account.reserved_micro += amount
        account.calls += 1
        return Reservation(account, amount)

    def extend(self, reservation: Reservation, wanted_micro: int) -> int:
        """Hold as much more as is free, up to `wanted_micro` in all. Returns: what is held now."""
        _require_open(reservation)
        account = reservation.account
        more = min(max(wanted_micro - reservation.amount_micro, 0), account.free_micro)
        account.reserved_micro += more
        reservation.amount_micro += more
        return reservation.amount_micro

    def settle(self, reservation: Reservation, charge_micro: int) -> Charge:
        """Take a call's charge and free the rest of what was held.

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
        account.granted_micro -= charge.granted_micro
        account.vault_micro -= charge.vault_micro
        self.release(reservation)
        return charge

    def release(self, reservation: Reservation) -> None:
        """Free what was held; nothing happens when it was settled or released before."""
        if not reservation.open:
            return
        reservation.open = False
        reservation.account.reserved_micro -= reservation.amount_micro
        reservation.account.calls -= 1

    def refund(self, account: Account, charge: Charge) -> None:
        """Put a charge back whose record the ledger refused."""
        account.granted_micro += charge.granted_micro
        account.vault_micro += charge.vault_micro

    def credit(self, account_id: str, granted_micro: int, vault_micro: int) -> None:
        """Add what the ledger has already recorded. Raises: LocalProtocolError EMC-1790."""
        account = self._accounts.get(account_id)
        if account is None:
            raise LocalProtocolError("EMC-1790", f"account {account_id} is not loaded")
        account.granted_micro += granted_micro
        account.vault_micro += vault_micro

    def undo_vault(self, account_id: str, amount_micro: int) -> None:
        """A purchase was undone by the chain; the ledger has it already."""
        self._accounts[account_id].undone_micro += amount_micro


def _require_open(reservation: Reservation) -> None:
    if not reservation.open:
        raise LocalProtocolError("EMC-1790", "a reservation is used after it was closed")
