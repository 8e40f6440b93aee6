"""SQL of API keys: a key, its label, its limits. Every function runs inside the ledger's transaction."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from emcd.ledger import Connection, Row
from emcd_hub.billing.key_limits import NO_LIMITS, KeyLimits
from emcd_hub.billing.keys import ApiKey
from emcd_hub.billing.period import Period

_COLUMNS = (
    "models, expires_at_ms, requests_per_minute, tokens_per_minute, parallel_calls, budget_micro, period"
)
_KEY = f"SELECT key_id, account_id, key_hash, shown, label, created_at_ms, revoked_at_ms, {_COLUMNS} FROM hub_api_keys"
_encode = msgspec.json.Encoder().encode
_decode_models = msgspec.json.Decoder(tuple[str, ...]).decode


@dataclass(frozen=True)
class KeyRow:
    """A key as it stands on disk."""

    key_id: str
    account_id: str
    key_hash: bytes
    shown: str
    label: str
    created_at_ms: int
    revoked_at_ms: int | None
    limits: KeyLimits

    def make_key(self) -> ApiKey:
        """The key in memory, unused."""
        limits = None if self.limits == NO_LIMITS else self.limits
        return ApiKey(self.key_id, self.account_id, self.key_hash, self.shown, limits)


def insert_api_key(con: Connection, key: ApiKey, label: str, at_ms: int) -> None:
    con.execute(
        "INSERT INTO hub_api_keys (key_id, account_id, key_hash, shown, label, created_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (key.key_id, key.account_id, key.key_hash, key.shown, label, at_ms),
    )
    if key.limits is not None:
        _update_limits(con, key.key_id, key.limits)


def update_api_key(con: Connection, key_id: str, limits: KeyLimits, label: str) -> None:
    """Set a key's limits and label."""
    con.execute("UPDATE hub_api_keys SET label = ? WHERE key_id = ?", (label, key_id))
    _update_limits(con, key_id, limits)


def revoke_api_key(con: Connection, key_id: str, at_ms: int) -> bool:
    """Returns: whether there was such a key, revoked before or not."""
    con.execute(
        "UPDATE hub_api_keys SET revoked_at_ms = ? WHERE key_id = ? AND revoked_at_ms IS NULL",
        (at_ms, key_id),
    )
    return con.execute("SELECT 1 FROM hub_api_keys WHERE key_id = ?", (key_id,)).fetchone() is not None


def list_api_keys(con: Connection) -> list[KeyRow]:
    """Every key, revoked ones included, oldest first."""
    return [_row(row) for row in con.execute(f"{_KEY} ORDER BY created_at_ms, key_id")]


def find_api_key(con: Connection, key_id: str) -> KeyRow | None:
    row = con.execute(f"{_KEY} WHERE key_id = ?", (key_id,)).fetchone()
    return None if row is None else _row(row)


def _update_limits(con: Connection, key_id: str, limits: KeyLimits) -> None:
    con.execute(
        f"UPDATE hub_api_keys SET ({_COLUMNS}) = (?, ?, ?, ?, ?, ?, ?) WHERE key_id = ?",
        (
            _encode(limits.models).decode(),
            limits.expires_at_ms,
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.parallel_calls,
            limits.budget_micro,
            limits.period.value,
            key_id,
        ),
    )


def _row(row: Row) -> KeyRow:
    limits = KeyLimits(
        _decode_models(row["models"]),
        row["expires_at_ms"],
        row["requests_per_minute"],
        row["tokens_per_minute"],
        row["parallel_calls"],
        row["budget_micro"],
        Period(row["period"]),
    )
    return KeyRow(row[0], row[1], row[2], row[3], row[4], row[5], row[6], limits)
