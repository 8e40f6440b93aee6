"""Receipts that are challenged: what the node signed, what it was asked, and what it showed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from emcd.ledger import Connection, Row
from emcd.types import Address

MAX_CHALLENGES = 2_048
MAX_PER_NODE = 64
"""That wait for a node at a time."""


@dataclass(frozen=True)
class ChallengeRow:
    """A challenge; `request` is what was shown of the call, as bytes that were hashed with its path."""

    call_id: bytes
    round: int
    node: Address
    response_hash: bytes
    knowledge: bytes
    signature: bytes
    validator: Address
    expires_at_ms: int
    response: bytes | None = None
    opened_at_ms: int | None = None


class Filed(Enum):
    """What came of filing a challenge."""

    NEW = "new"
    KNOWN = "known"
    FULL = "full"


_COLUMNS = "call_id, round, node, response_hash, knowledge, signature, validator, expires_at_ms, response, opened_at_ms"


def file_challenge(con: Connection, instance: Address, row: ChallengeRow, now_ms: int) -> Filed:
    """Keep a challenge, once a call; bounded per node and in all."""
    total, waiting, known = con.execute(
        "SELECT count(*), total(node = ? AND opened_at_ms IS NULL AND expires_at_ms > ?), total(call_id = ?)"
        " FROM validator_challenges WHERE instance = ?",
        (row.node, now_ms, row.call_id, instance),
    ).fetchone()
    if known:
        return Filed.KNOWN
    if total >= MAX_CHALLENGES or waiting >= MAX_PER_NODE:
        return Filed.FULL
    con.execute(
        "INSERT INTO validator_challenges VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
        (
            instance,
            row.call_id,
            row.round,
            row.node,
            row.response_hash,
            row.knowledge,
            row.signature,
            row.validator,
            row.expires_at_ms,
        ),
    )
    return Filed.NEW


def find_challenge(con: Connection, instance: Address, call_id: bytes) -> ChallengeRow | None:
    row = con.execute(
        f"SELECT {_COLUMNS} FROM validator_challenges WHERE instance = ? AND call_id = ?", (instance, call_id)
    ).fetchone()
    return None if row is None else _row(row)


def list_waiting(con: Connection, instance: Address, node: Address, now_ms: int) -> list[ChallengeRow]:
    """What a node still has time to open, the most urgent first."""
    rows = con.execute(
        f"SELECT {_COLUMNS} FROM validator_challenges"
        " WHERE instance = ? AND node = ? AND opened_at_ms IS NULL AND expires_at_ms > ?"
        " ORDER BY expires_at_ms, call_id LIMIT ?",
        (instance, node, now_ms, MAX_PER_NODE),
    )
    return [_row(row) for row in rows]


def set_opening(con: Connection, instance: Address, call_id: bytes, response: bytes, now_ms: int) -> None:
    """Keep what the node showed; the first opening stays."""
    con.execute(
        "UPDATE validator_challenges SET response = ?, opened_at_ms = ?"
        " WHERE instance = ? AND call_id = ? AND opened_at_ms IS NULL",
        (response, now_ms, instance, call_id),
    )


def list_expired(con: Connection, instance: Address, since_ms: int, now_ms: int) -> list[ChallengeRow]:
    """What was not opened, and whose time ran out within these times."""
    rows = con.execute(
        f"SELECT {_COLUMNS} FROM validator_challenges WHERE instance = ? AND opened_at_ms IS NULL"
        " AND expires_at_ms > ? AND expires_at_ms <= ? ORDER BY expires_at_ms, call_id",
        (instance, since_ms, now_ms),
    )
    return [_row(row) for row in rows]


def prune_challenges(con: Connection, instance: Address, before_round: int) -> None:
    con.execute("DELETE FROM validator_challenges WHERE instance = ? AND round < ?", (instance, before_round))


def _row(row: Row) -> ChallengeRow:
    return ChallengeRow(
        bytes(row[0]), row[1], Address(row[2]), bytes(row[3]), bytes(row[4]), bytes(row[5]), Address(row[6]),
        row[7], None if row[8] is None else bytes(row[8]), row[9],
    )  # fmt: skip
