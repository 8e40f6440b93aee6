"""Tokens that were counted again, and what they come to by node and model: SQL and nothing else.

A row names a call by its id, whose signed records prove what the node claimed; the numbers are the hub's
word. Rows are kept for a time, sums as long as the node is heard of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from emcd.ledger import Connection, Migration
from emcd.types import Address

TOKEN_COUNTS = Migration(
    11,
    "tokens counted again, by call, and by node and model",
    """
    CREATE TABLE hub_token_counts (
        call_id BLOB PRIMARY KEY CHECK (length(call_id) = 16),
        at_ms INTEGER NOT NULL,
        node TEXT NOT NULL,
        model_hash BLOB NOT NULL CHECK (length(model_hash) = 32),
        why TEXT NOT NULL CHECK (why IN ('share', 'odd')),
        claimed_prompt INTEGER NOT NULL,
        claimed INTEGER NOT NULL,
        named_prompt INTEGER,
        named INTEGER,
        counted_prompt INTEGER,
        counted INTEGER,
        pieces INTEGER NOT NULL,
        spelled INTEGER CHECK (spelled IN (0, 1))
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX hub_token_counts_by_node ON hub_token_counts (node, at_ms);
    CREATE INDEX hub_token_counts_by_time ON hub_token_counts (at_ms);
    CREATE TABLE hub_token_drifts (
        node TEXT NOT NULL,
        model_hash BLOB NOT NULL CHECK (length(model_hash) = 32),
        calls INTEGER NOT NULL,
        odd INTEGER NOT NULL,
        compared INTEGER NOT NULL,
        claimed_prompt INTEGER NOT NULL,
        counted_prompt INTEGER NOT NULL,
        claimed INTEGER NOT NULL,
        counted INTEGER NOT NULL,
        prompts_over INTEGER NOT NULL,
        answers_over INTEGER NOT NULL,
        unspelled INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (node, model_hash)
    ) STRICT, WITHOUT ROWID;
    """,
)
KEPT_MS = 30 * 86_400_000
_PRUNED_AT_ONCE = 1000
_MAX_LOADED = 65_536


class CountRow(NamedTuple):
    """What one call claimed, named and held.

    Attributes:
        why: "share": drawn; "odd": its numbers did not fit together.
        claimed_prompt, claimed: the receipt's tokens.
        named_prompt, named: by the ids in the answer; None: it names none.
        counted_prompt, counted: by the hub's own tokenizer; None: it has none for the model, or can't count this.
        pieces: events with text, of a stream; 1 for a whole answer.
        spelled: whether the ids spell the text; None: not known.
    """

    call_id: bytes
    at_ms: int
    node: Address
    model_hash: bytes
    why: str
    claimed_prompt: int
    claimed: int
    named_prompt: int | None
    named: int | None
    counted_prompt: int | None
    counted: int | None
    pieces: int
    spelled: bool | None


class DriftRow(NamedTuple):
    """The sums of a node's calls of a model. `compared`: calls whose tokens the hub could count itself."""

    node: Address
    model_hash: bytes
    calls: int = 0
    odd: int = 0
    compared: int = 0
    claimed_prompt: int = 0
    counted_prompt: int = 0
    claimed: int = 0
    counted: int = 0
    prompts_over: int = 0
    answers_over: int = 0
    unspelled: int = 0
    at_ms: int = 0


_COUNT_PLACES = ",".join("?" * len(CountRow._fields))
_DRIFT_PLACES = ",".join("?" * len(DriftRow._fields))


def write_counts(con: Connection, rows: Sequence[CountRow], drifts: Sequence[DriftRow], now_ms: int) -> None:
    """Keep rows and the sums that they lead to; drop what is old. Idempotent: sums are whole."""
    con.executemany(f"INSERT INTO hub_token_counts VALUES ({_COUNT_PLACES}) ON CONFLICT DO NOTHING", rows)
    con.executemany(f"INSERT OR REPLACE INTO hub_token_drifts VALUES ({_DRIFT_PLACES})", drifts)
    con.execute(
        "DELETE FROM hub_token_counts WHERE call_id IN"
        " (SELECT call_id FROM hub_token_counts WHERE at_ms < ? ORDER BY at_ms LIMIT ?)",
        (now_ms - KEPT_MS, _PRUNED_AT_ONCE),
    )
    con.execute("DELETE FROM hub_token_drifts WHERE at_ms < ?", (now_ms - KEPT_MS,))


def load_drifts(con: Connection) -> list[DriftRow]:
    """All sums, the newest first."""
    rows = con.execute("SELECT * FROM hub_token_drifts ORDER BY at_ms DESC LIMIT ?", (_MAX_LOADED,))
    return [DriftRow(*row) for row in rows]


def list_counts(con: Connection, node: Address, limit: int) -> list[CountRow]:
    """A node's calls that were counted again, newest first."""
    rows = con.execute(
        "SELECT * FROM hub_token_counts WHERE node = ? ORDER BY at_ms DESC, call_id LIMIT ?", (node, limit)
    )
    found = (CountRow(*row) for row in rows)
    return [row._replace(spelled=None if row.spelled is None else bool(row.spelled)) for row in found]
