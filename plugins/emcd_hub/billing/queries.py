"""SQL of accounts, keys, grants and statements. Every function runs inside the ledger's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from emcd.ledger import Connection, Row
from emcd.money import decode_wei
from emcd.proto.address import hex_hash
from emcd.proto.hashing import keccak


class Granted(Enum):
    """What came of a grant."""

    DONE = "done"
    REPEATED = "repeated"
    CONFLICT = "conflict"
    NO_ACCOUNT = "no account"


@dataclass(frozen=True)
class AccountRow:
    """An account as it stands on disk. `undone_micro`: what of its purchases the chain took back."""

    account_id: str
    name: str
    vault_account: bytes
    granted_micro: int
    vault_micro: int
    created_at_ms: int
    undone_micro: int = 0

    @property
    def balances(self) -> tuple[str, int, int, int]:
        """What the book in memory loads."""
        return self.account_id, self.granted_micro, self.vault_micro, self.undone_micro

    @property
    def usable_vault_micro(self) -> int:
        return max(0, self.vault_micro - self.undone_micro)

    @property
    def debt_micro(self) -> int:
        """Spent of what was undone: the next purchase pays it."""
        return max(0, self.undone_micro - self.vault_micro)


def vault_account(account_id: str) -> bytes:
    """The bytes32 that a buyer names in the credit vault: keccak of the account id's text."""
    return keccak(account_id.encode())


def insert_account(con: Connection, account_id: str, name: str, at_ms: int) -> AccountRow:
    """Create an account; one that has the name already is returned as it is."""
    con.execute(
        "INSERT INTO hub_accounts (account_id, name, vault_account, granted_micro, vault_micro, created_at_ms)"
        " VALUES (?, ?, ?, 0, 0, ?) ON CONFLICT (name) DO NOTHING",
        (account_id, name, vault_account(account_id), at_ms),
    )
    found = find_account_by_name(con, name)
    assert found is not None
    return found


def find_account(con: Connection, account_id: str) -> AccountRow | None:
    return _account(con.execute("SELECT * FROM hub_accounts WHERE account_id = ?", (account_id,)).fetchone())


def find_account_by_name(con: Connection, name: str) -> AccountRow | None:
    return _account(con.execute("SELECT * FROM hub_accounts WHERE name = ?", (name,)).fetchone())


def list_accounts(con: Connection) -> list[AccountRow]:
    rows = con.execute("SELECT * FROM hub_accounts ORDER BY created_at_ms, account_id")
    return [AccountRow(*row) for row in rows]


def insert_grant(
    con: Connection, account_id: str, credits_micro: int, key: str, note: str, at_ms: int
) -> Granted:
    """Give an operator's credits, once per idempotency key."""
    if find_account(con, account_id) is None:
        return Granted.NO_ACCOUNT
    row = con.execute(
        "SELECT account_id, granted_micro FROM hub_movements WHERE idempotency_key = ?", (f"grant:{key}",)
    ).fetchone()
    if row is not None:
        same = row["account_id"] == account_id and row["granted_micro"] == credits_micro
        return Granted.REPEATED if same else Granted.CONFLICT
    con.execute(
        "INSERT INTO hub_movements VALUES (NULL, ?, 'grant', ?, ?, 0, ?, ?)",
        (account_id, f"grant:{key}", credits_micro, note, at_ms),
    )
    con.execute(
        "UPDATE hub_accounts SET granted_micro = granted_micro + ? WHERE account_id = ?",
        (credits_micro, account_id),
    )
    return Granted.DONE


def list_movements(con: Connection, account_id: str, limit: int) -> list[dict[str, Any]]:
    rows = con.execute(
        "SELECT kind, granted_micro, vault_micro, note, at_ms FROM hub_movements"
        " WHERE account_id = ? ORDER BY movement_id DESC LIMIT ?",
        (account_id, limit),
    )
    return [dict(row) for row in rows]


def list_usage(con: Connection, account_id: str, limit: int) -> list[dict[str, Any]]:
    rows = con.execute(
        "SELECT round, calls, granted_micro, vault_micro, uncounted_tokens FROM hub_usage"
        " WHERE account_id = ? ORDER BY round DESC LIMIT ?",
        (account_id, limit),
    )
    return [dict(row) for row in rows]


def list_held_deposits(con: Connection, before: int, limit: int) -> list[dict[str, Any]]:
    """Purchases that no account was credited with, newest first."""
    rows = con.execute(
        "SELECT * FROM hub_deposits WHERE account_id IS NULL AND deposit_index < ?"
        " ORDER BY deposit_index DESC LIMIT ?",
        (before, limit),
    )
    return [
        {
            "index": row["deposit_index"],
            "vault_account": hex_hash(row["vault_account"]),
            "payer": row["payer"],
            "amount_wei": str(decode_wei(row["amount_wei"])),
            "credits_micro": str(row["credits_micro"]),
            "block": row["block"],
            "tx_hash": hex_hash(row["tx_hash"]),
            "undone_at_ms": row["undone_at_ms"],
        }
        for row in rows
    ]


def find_imbalance(con: Connection) -> str | None:
    """The first account whose statement does not add up to its balance, or None. For audits and tests.

    Calls of archived rounds are gone: there the usage stands alone.
    """
    row = con.execute(_IMBALANCE).fetchone()
    return None if row is None else str(row["account_id"])


_IMBALANCE = """
WITH archive AS (
    SELECT coalesce(max(round), -1) AS through FROM hub_archived_rounds
), moved AS (
    SELECT account_id, sum(granted_micro) AS g, sum(vault_micro) AS v FROM hub_movements GROUP BY 1
), used AS (
    SELECT account_id, sum(granted_micro) AS g, sum(vault_micro) AS v FROM hub_usage GROUP BY 1
), kept AS (
    SELECT account_id, sum(granted_micro) AS g, sum(vault_micro) AS v, sum(calls) AS n
    FROM hub_usage WHERE round > (SELECT through FROM archive) GROUP BY 1
), called AS (
    SELECT account_id, sum(granted_micro) AS g, sum(vault_micro) AS v, count(*) AS n
    FROM hub_calls WHERE round > (SELECT through FROM archive) GROUP BY 1
)
SELECT a.account_id FROM hub_accounts a
LEFT JOIN moved USING (account_id) LEFT JOIN used USING (account_id)
LEFT JOIN kept USING (account_id) LEFT JOIN called USING (account_id)
WHERE a.granted_micro != coalesce(moved.g, 0) - coalesce(used.g, 0)
    OR a.vault_micro - a.undone_micro != coalesce(moved.v, 0) - coalesce(used.v, 0)
    OR coalesce(kept.g, 0) != coalesce(called.g, 0)
    OR coalesce(kept.v, 0) != coalesce(called.v, 0)
    OR coalesce(kept.n, 0) != coalesce(called.n, 0)
LIMIT 1
"""


def _account(row: Row | None) -> AccountRow | None:
    return None if row is None else AccountRow(*row)
