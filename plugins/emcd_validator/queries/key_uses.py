"""Which API key asked which probe. Keys stand here by hash; a row goes when its key left the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from emcd.ledger import Connection
from emcd.types import Address


class KeyUse(NamedTuple):
    """How often a key was used, and since when."""

    probes: int
    first_at_ms: int


def note_key_use(
    con: Connection,
    instance: Address,
    round_index: int,
    node: Address,
    slot: int,
    key_hash: bytes,
    now_ms: int,
) -> None:
    """Note the key of a probe; in the transaction that takes it for sending."""
    con.execute(
        "INSERT INTO validator_key_uses VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (instance, round_index, node, slot, key_hash, now_ms),
    )


def count_key_uses(con: Connection, instance: Address) -> Mapping[bytes, KeyUse]:
    """The uses of every key, by its hash."""
    rows = con.execute(
        "SELECT key_hash, count(*), min(used_at_ms) FROM validator_key_uses WHERE instance = ?"
        " GROUP BY key_hash",
        (instance,),
    )
    return {bytes(row[0]): KeyUse(row[1], row[2]) for row in rows}


def find_key_hash(
    con: Connection, instance: Address, round_index: int, node: Address, slot: int
) -> bytes | None:
    """The hash of the key that asked a probe."""
    row = con.execute(
        "SELECT key_hash FROM validator_key_uses WHERE instance = ? AND round = ? AND node = ? AND slot = ?",
        (instance, round_index, node, slot),
    ).fetchone()
    return None if row is None else bytes(row[0])


def prune_key_uses(con: Connection, instance: Address, before_round: int, known: Collection[bytes]) -> None:
    """Drop what old rounds say of keys that are gone; a key in the file keeps its count."""
    rows = con.execute("SELECT DISTINCT key_hash FROM validator_key_uses WHERE instance = ?", (instance,))
    gone = [bytes(row[0]) for row in rows.fetchall() if bytes(row[0]) not in known]
    con.executemany(
        "DELETE FROM validator_key_uses WHERE instance = ? AND key_hash = ? AND round < ?",
        [(instance, key_hash, before_round) for key_hash in gone],
    )
