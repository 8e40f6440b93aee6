"""An account's books over some rounds: what it had, what came, what calls took, what is left.

Reads movements and usage, never calls: those of archived rounds are gone, their usage stays.
Invariant, checked whenever a statement is made: opening + movements - usage = closing, for granted
and vault credits apart, to the last micro-credit, where opening and closing are computed each from
its own end of the books. A negative vault balance is a debt (see `billing.book`).
"""

from __future__ import annotations

from dataclasses import dataclass

from emcd.errors import LocalProtocolError
from emcd.ledger import Connection
from emcd.proto.params import NetworkParams

MAX_ROUNDS = 10_000
"""Of one statement: two years and a bit."""


@dataclass(frozen=True)
class Amounts:
    """Micro-credits by where they came from."""

    granted_micro: int
    vault_micro: int

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(self.granted_micro + other.granted_micro, self.vault_micro + other.vault_micro)

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(self.granted_micro - other.granted_micro, self.vault_micro - other.vault_micro)


NOTHING = Amounts(0, 0)


@dataclass(frozen=True)
class Movement:
    """Credits that came (or, undone by the chain, went) without a call. `kind`: grant, deposit, undone."""

    kind: str
    round: int
    at_ms: int
    amounts: Amounts
    note: str


@dataclass(frozen=True)
class RoundUsage:
    """What the calls of a round took. `uncounted_tokens`: of a reasoning that was stated and not shown."""

    round: int
    calls: int
    amounts: Amounts
    uncounted_tokens: int = 0


@dataclass(frozen=True)
class Statement:
    """An account's books from one round through another."""

    account_id: str
    from_round: int
    to_round: int
    opening: Amounts
    movements: tuple[Movement, ...]
    usage: tuple[RoundUsage, ...]
    closing: Amounts
    balance: Amounts

    @property
    def moved(self) -> Amounts:
        return sum((item.amounts for item in self.movements), NOTHING)

    @property
    def used(self) -> Amounts:
        return sum((item.amounts for item in self.usage), NOTHING)


def read_statement(
    con: Connection, account_id: str, params: NetworkParams, from_round: int, to_round: int
) -> Statement | None:
    """The books of some rounds; None for an account that is not here.

    A movement belongs to the round of its time; what came before the first round belongs to it.

    Raises: LocalProtocolError EMC-1792 when the books do not balance: a bug, or a damaged ledger.
    """
    row = con.execute(
        "SELECT granted_micro, vault_micro - undone_micro FROM hub_accounts WHERE account_id = ?",
        (account_id,),
    ).fetchone()
    if row is None:
        return None
    since_ms = params.round_start_ms(from_round) if from_round > 0 else -(2**62)
    until_ms = params.round_end_ms(to_round)
    balance = Amounts(row[0], row[1])
    opening = _sum_moved(con, account_id, -(2**62), since_ms) - _sum_used(con, account_id, 0, from_round)
    after = _sum_moved(con, account_id, until_ms, 2**62) - _sum_used(con, account_id, to_round + 1, 2**62)
    made = Statement(
        account_id,
        from_round,
        to_round,
        opening,
        _list_movements(con, account_id, params, since_ms, until_ms),
        _list_usage(con, account_id, from_round, to_round),
        balance - after,
        balance,
    )
    if made.opening + made.moved - made.used != made.closing:
        raise LocalProtocolError(
            "EMC-1792",
            f"account {account_id}, rounds {from_round} to {to_round}: {made.opening} + {made.moved}"
            f" - {made.used} is not {made.closing}",
        )
    return made


def _sum_moved(con: Connection, account_id: str, since_ms: int, until_ms: int) -> Amounts:
    row = con.execute(
        "SELECT coalesce(sum(granted_micro), 0), coalesce(sum(vault_micro), 0) FROM hub_movements"
        " WHERE account_id = ? AND at_ms >= ? AND at_ms < ?",
        (account_id, since_ms, until_ms),
    ).fetchone()
    return Amounts(*row)


def _sum_used(con: Connection, account_id: str, first: int, below: int) -> Amounts:
    row = con.execute(
        "SELECT coalesce(sum(granted_micro), 0), coalesce(sum(vault_micro), 0) FROM hub_usage"
        " WHERE account_id = ? AND round >= ? AND round < ?",
        (account_id, first, below),
    ).fetchone()
    return Amounts(*row)


def _list_movements(
    con: Connection, account_id: str, params: NetworkParams, since_ms: int, until_ms: int
) -> tuple[Movement, ...]:
    rows = con.execute(
        "SELECT kind, at_ms, granted_micro, vault_micro, note FROM hub_movements"
        " WHERE account_id = ? AND at_ms >= ? AND at_ms < ? ORDER BY movement_id",
        (account_id, since_ms, until_ms),
    )
    return tuple(
        Movement(
            "undone" if row["vault_micro"] < 0 else row["kind"],
            max(0, params.round_at(row["at_ms"])),
            row["at_ms"],
            Amounts(row["granted_micro"], row["vault_micro"]),
            row["note"],
        )
        for row in rows
    )


def _list_usage(con: Connection, account_id: str, first: int, last: int) -> tuple[RoundUsage, ...]:
    rows = con.execute(
        "SELECT round, calls, granted_micro, vault_micro, uncounted_tokens FROM hub_usage"
        " WHERE account_id = ? AND round >= ? AND round <= ? ORDER BY round",
        (account_id, first, last),
    )
    return tuple(RoundUsage(row[0], row[1], Amounts(row[2], row[3]), row[4]) for row in rows)
