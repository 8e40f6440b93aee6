"""Requests that are to be done once (Idempotency-Key), as the ledger keeps them. SQL and nothing else.

Invariant: what is remembered of a key is committed in one transaction with the call that was charged for
it, never before and never after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from emcd.errors import LocalProtocolError
from emcd.ledger import Connection, Migration
from emcd.proto.openai_shape import Once
from emcd_hub.records.call_row import CallRow, insert_calls

ONCE = Migration(
    9,
    "requests that are done once",
    """
    CREATE TABLE hub_once (
        key_hash BLOB PRIMARY KEY CHECK (length(key_hash) = 32),
        request_hash BLOB NOT NULL CHECK (length(request_hash) = 32),
        call_id BLOB NOT NULL CHECK (length(call_id) = 16),
        at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX hub_once_by_time ON hub_once (at_ms);
    """,
)


REMEMBERED_MS = 24 * 3_600_000
"""How long a key stands for its request."""


class OnceFact(NamedTuple):
    """What became of a key: the call that was done for it, and what was asked."""

    request_hash: bytes
    call_id: bytes
    at_ms: int


def insert_calls_once(con: Connection, items: Sequence[tuple[CallRow, Once]]) -> None:
    """`insert_calls`, with what is remembered of each call's key.

    Raises: LocalProtocolError EMC-1790 when a key is used up already: nobody pays for it twice.
    """
    insert_calls(con, [row for row, _ in items])
    written = con.executemany(
        "INSERT INTO hub_once VALUES (?, ?, ?, ?) ON CONFLICT (key_hash) DO UPDATE SET"
        " request_hash = excluded.request_hash, call_id = excluded.call_id, at_ms = excluded.at_ms"
        f" WHERE at_ms < excluded.at_ms - {REMEMBERED_MS}",
        [(once.key_hash, once.request_hash, row.call_id, row.finished_at_ms) for row, once in items],
    ).rowcount
    if written != len(items):
        raise LocalProtocolError("EMC-1790", "a call was done for an idempotency key that is used up")


def find_once(con: Connection, key_hash: bytes, since_ms: int) -> OnceFact | None:
    """What became of a key since then."""
    sql = "SELECT request_hash, call_id, at_ms FROM hub_once WHERE key_hash = ? AND at_ms >= ?"
    row = con.execute(sql, (key_hash, since_ms)).fetchone()
    return None if row is None else OnceFact(*row)


def delete_once(con: Connection, before_ms: int, most: int) -> int:
    """Forget old keys, some at a time. Returns: how many."""
    sql = (
        "DELETE FROM hub_once WHERE key_hash IN"
        " (SELECT key_hash FROM hub_once WHERE at_ms < ? ORDER BY at_ms LIMIT ?)"
    )
    return int(con.execute(sql, (before_ms, most)).rowcount)
