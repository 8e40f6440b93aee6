"""Making accounts, keys and grants on an open ledger: what the admin listener and a devnet share.

Invariant: a secret is returned once and kept as its hash only.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

from emcd.clock import Clock, SystemClock
from emcd.ledger import Connection, Ledger
from emcd_hub.billing.key_row import insert_api_key
from emcd_hub.billing.keys import ApiKey
from emcd_hub.billing.queries import (
    AccountRow,
    Granted,
    find_account,
    insert_account,
    insert_grant,
)
from emcd_hub.billing.secret import API_KEY_PREFIX, hash_secret, make_secret, public_part


class NewKey(NamedTuple):
    """A key just made; `secret` exists nowhere else."""

    key: ApiKey
    secret: str


def make_api_key(account_id: str) -> NewKey:
    """A new key for an account, not yet stored."""
    secret = make_secret(API_KEY_PREFIX, secrets.token_bytes)
    key_id = "key_" + secrets.token_hex(8)
    return NewKey(ApiKey(key_id, account_id, hash_secret(secret), public_part(secret)), secret)


def make_account_id() -> str:
    return "acct_" + secrets.token_hex(16)


async def create_account(
    ledger: Ledger, name: str, granted_micro: int = 0, *, clock: Clock | None = None
) -> tuple[AccountRow, str]:
    """Ensure an account of this name with this first grant, and make a new key for it.

    For a hub that is not running: it loads accounts and keys when it starts.
    Returns: the account and the key's secret.
    """
    at_ms = (clock or SystemClock()).now_ms()

    def create(con: Connection) -> tuple[AccountRow, str]:
        account = insert_account(con, make_account_id(), name, at_ms)
        if granted_micro:
            outcome = insert_grant(
                con, account.account_id, granted_micro, f"first:{account.account_id}", "first grant", at_ms
            )
            if outcome is Granted.CONFLICT:
                raise ValueError(f"account {name} has another first grant already")
        made = make_api_key(account.account_id)
        insert_api_key(con, made.key, "first key", at_ms)
        found = find_account(con, account.account_id)
        assert found is not None
        return found, made.secret

    return await ledger.write(create)
