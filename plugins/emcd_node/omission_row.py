"""What the hub delivered, and how far each of these calls is on its way into a bundle. SQL and nothing else.

A call with a receipt that the hub took goes expected > carried, or expected > missing > filed >
carried, or ends lost when no bundle may carry it any more. `unpaid` are failed calls and those of
which the hub says that this node gave no receipt: nothing is expected of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from emcd.ledger import Connection
from emcd.types import Address


class CallState(Enum):
    EXPECTED = "expected"
    MISSING = "missing"
    FILED = "filed"
    CARRIED = "carried"
    LOST = "lost"
    UNPAID = "unpaid"


class DeliveryRow(NamedTuple):
    """A delivery as the hub signed it; `delivery` is its wire bytes."""

    instance: Address
    forward_hash: bytes
    delivery_hash: bytes
    receipt_hash: bytes
    delivery: bytes
    round: int
    vault_micro: int
    earns: bool


class ExpectedCall(NamedTuple):
    """A call that must stand in a bundle; `batch_sent_at_ms` None: its batch never went out."""

    forward_hash: bytes
    call_id: bytes
    round: int
    vault_micro: int
    state: CallState
    batch_sent_at_ms: int | None


class Claim(NamedTuple):
    """The wire bytes of all that proves a call; a proof is None where the hub's never came."""

    forward_hash: bytes
    call_id: bytes
    forward: bytes
    receipt: bytes
    delivery: bytes
    forward_proof: bytes | None
    delivery_proof: bytes | None
    filed_with: int


class Listed(NamedTuple):
    """A call for people to see."""

    call_id: bytes
    round: int
    vault_micro: int
    state: str
    filed_with: int
    carried_in: int | None


_OPEN = "('expected', 'missing', 'filed')"


def insert_deliveries(con: Connection, rows: Iterable[DeliveryRow]) -> None:
    """Keep deliveries; one that came before stays. Only a receipt of this node makes a call expected."""
    con.executemany(
        "INSERT INTO node_deliveries (instance, forward_hash, delivery_hash, call_id, delivery, round,"
        " vault_micro, state) SELECT d.instance, d.forward_hash, d.delivery_hash, r.call_id, d.delivery,"
        " d.round, d.vault_micro, iif(d.earns AND r.call_id IS NOT NULL, 'expected', 'unpaid') FROM"
        " (SELECT ? AS instance, ? AS forward_hash, ? AS delivery_hash, ? AS receipt_hash, ? AS delivery,"
        " ? AS round, ? AS vault_micro, ? AS earns) d LEFT JOIN node_receipts r ON r.instance = d.instance"
        " AND r.receipt_hash = d.receipt_hash AND r.forward_hash = d.forward_hash WHERE true"
        " ON CONFLICT DO NOTHING",
        rows,
    )


def list_expected(con: Connection, instance: Address, through_round: int) -> list[ExpectedCall]:
    """The calls of these rounds that must stand in a bundle and stand in none yet."""
    rows = con.execute(
        "SELECT d.forward_hash, d.call_id, d.round, d.vault_micro, d.state,"
        " (SELECT b.sent_at_ms FROM node_receipts r JOIN node_batches b ON b.instance = r.instance"
        "  AND b.root = r.batch_root WHERE r.instance = d.instance AND r.call_id = d.call_id)"
        f" FROM node_deliveries d WHERE d.instance = ? AND d.state IN {_OPEN} AND d.round <= ?"
        " ORDER BY d.round, d.call_id",
        (instance, through_round),
    )
    return [
        ExpectedCall(bytes(row[0]), bytes(row[1]), row[2], row[3], CallState(row[4]), row[5]) for row in rows
    ]


def set_carried(con: Connection, instance: Address, forward_hashes: Iterable[bytes], index: int) -> None:
    """These stand in the bundle of a round."""
    con.executemany(
        "UPDATE node_deliveries SET state = 'carried', carried_in = ? WHERE instance = ? AND forward_hash = ?",
        [(index, instance, item) for item in forward_hashes],
    )


def set_missing(con: Connection, instance: Address, forward_hashes: Iterable[bytes]) -> None:
    """These stand in no bundle although they should; what is filed stays filed."""
    con.executemany(
        "UPDATE node_deliveries SET state = 'missing'"
        " WHERE instance = ? AND forward_hash = ? AND state = 'expected'",
        [(instance, item) for item in forward_hashes],
    )


def set_filed(con: Connection, instance: Address, forward_hash: bytes, count: int) -> None:
    """So many validators have it."""
    con.execute(
        "UPDATE node_deliveries SET state = 'filed', filed_with = ?"
        " WHERE instance = ? AND forward_hash = ? AND state IN ('missing', 'filed')",
        (count, instance, forward_hash),
    )


def reset_skipped(con: Connection, instance: Address, previous_round: int, index: int) -> int:
    """A bundle builds on `previous_round`: those between came to nothing, and what they carried is open."""
    done = con.execute(
        "UPDATE node_deliveries SET state = iif(filed_with > 0, 'filed', 'expected'), carried_in = NULL"
        " WHERE instance = ? AND state = 'carried' AND carried_in > ? AND carried_in < ?",
        (instance, previous_round, index),
    )
    return done.rowcount


def set_lost(con: Connection, instance: Address, before_round: int) -> int:
    """No bundle may carry calls of these rounds any more."""
    done = con.execute(
        f"UPDATE node_deliveries SET state = 'lost' WHERE instance = ? AND state IN {_OPEN} AND round < ?",
        (instance, before_round),
    )
    return done.rowcount


def list_claims(con: Connection, instance: Address, limit: int) -> list[Claim]:
    """What is filed, or to be filed, the dearest first."""
    rows = con.execute(
        "SELECT d.forward_hash, d.call_id, r.forward, r.receipt, d.delivery, f.proof, p.proof, d.filed_with"
        " FROM node_deliveries d JOIN node_receipts r ON r.instance = d.instance AND r.call_id = d.call_id"
        " LEFT JOIN node_proofs f ON f.instance = d.instance AND f.record_hash = d.forward_hash"
        " LEFT JOIN node_proofs p ON p.instance = d.instance AND p.record_hash = d.delivery_hash"
        " WHERE d.instance = ? AND d.state IN ('missing', 'filed')"
        " ORDER BY d.vault_micro DESC, d.call_id LIMIT ?",
        (instance, limit),
    )
    return [Claim(*row) for row in rows]


def count_states(con: Connection, instance: Address) -> dict[CallState, int]:
    rows = con.execute(
        "SELECT state, count(*) FROM node_deliveries WHERE instance = ? GROUP BY state", (instance,)
    )
    return {CallState(row[0]): row[1] for row in rows}


def list_omissions(con: Connection, instance: Address, limit: int) -> list[Listed]:
    """Calls that were missing from a bundle, newest round first."""
    rows = con.execute(
        "SELECT call_id, round, vault_micro, state, filed_with, carried_in FROM node_deliveries"
        " WHERE instance = ? AND (state IN ('missing', 'filed', 'lost')"
        " OR state = 'carried' AND filed_with > 0) ORDER BY round DESC, call_id LIMIT ?",
        (instance, limit),
    )
    return [Listed(*row) for row in rows]


def find_oldest_open(con: Connection, instance: Address) -> int | None:
    """The oldest round of which something is expected, or was carried and may still come to nothing."""
    row = con.execute(
        "SELECT min(round) FROM node_deliveries WHERE instance = ? AND state IN"
        " ('expected', 'missing', 'filed', 'carried')",
        (instance,),
    ).fetchone()
    return None if row[0] is None else int(row[0])


def insert_checked(
    con: Connection, instance: Address, index: int, bundle_hash: bytes | None, previous_round: int | None
) -> None:
    """The bundle of a round was looked at; None: there is none to be expected any more."""
    con.execute(
        "INSERT INTO node_checked_rounds VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (instance, index, bundle_hash, previous_round),
    )


def find_last_checked(con: Connection, instance: Address) -> int | None:
    row = con.execute("SELECT max(round) FROM node_checked_rounds WHERE instance = ?", (instance,)).fetchone()
    return None if row[0] is None else int(row[0])


def list_instances(con: Connection) -> Sequence[Address]:
    """The nodes that keep anything in this ledger."""
    rows = con.execute("SELECT DISTINCT instance FROM node_deliveries ORDER BY instance")
    return [Address(row[0]) for row in rows]
