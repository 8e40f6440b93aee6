"""The node's statements: plain functions for `Ledger.write` and `Ledger.read`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from emcd.ledger import Connection
from emcd.types import Address, Hash
from emcd_node.batch_plan import Batched

_BY_ROUND = (
    "node_receipts",
    "node_batches",
    "node_proofs",
    "node_deliveries",
    "node_checked_rounds",
    "node_consolidated_rounds",
)


class ReceiptRow(NamedTuple):
    """A receipt that was given; `forward` and `receipt` are their wire bytes."""

    instance: Address
    call_id: bytes
    forward_hash: Hash
    receipt_hash: Hash
    forward: bytes
    receipt: bytes
    round: int


class BatchRow(NamedTuple):
    """A batch over receipts; `record_hashes` are joined, 32 bytes each, in order."""

    instance: Address
    root: Hash
    batch: bytes
    record_hashes: bytes
    round: int


class ProofRow(NamedTuple):
    """A hub's proof for a forward or delivery record."""

    instance: Address
    record_hash: bytes
    kind: int
    proof: bytes
    round: int


def insert_receipts(con: Connection, rows: Sequence[ReceiptRow]) -> None:
    """Raises: IntegrityError when a call has a receipt already: one call, one receipt."""
    marks = ",".join(["(?,?,?,?,?,?,?)"] * len(rows))
    values = [value for row in rows for value in row]
    con.execute(
        "INSERT INTO node_receipts (instance, call_id, forward_hash, receipt_hash, forward, receipt, round) "
        f"VALUES {marks}",
        values,
    )


def find_receipt(con: Connection, instance: Address, call_id: bytes) -> ReceiptRow | None:
    """The receipt of a call."""
    row = con.execute(
        "SELECT instance, call_id, forward_hash, receipt_hash, forward, receipt, round FROM node_receipts "
        "WHERE instance = ? AND call_id = ?",
        (instance, call_id),
    ).fetchone()
    return None if row is None else ReceiptRow(*row)


def list_unbatched(con: Connection, instance: Address) -> list[Hash]:
    """Receipts that a crash kept out of a batch."""
    rows = con.execute(
        "SELECT receipt_hash FROM node_receipts WHERE instance = ? AND batch_root IS NULL", (instance,)
    )
    return [Hash(row[0]) for row in rows]


def insert_batch(con: Connection, row: BatchRow) -> None:
    """Record a batch and mark its receipts."""
    con.execute(
        "INSERT INTO node_batches (instance, root, batch, record_hashes, round) VALUES (?,?,?,?,?)", row
    )
    hashes = split_hashes(row.record_hashes)
    marks = ",".join("?" * len(hashes))
    con.execute(
        f"UPDATE node_receipts SET batch_root = ? WHERE instance = ? AND receipt_hash IN ({marks})",
        (row.root, row.instance, *hashes),
    )


def split_hashes(joined: bytes) -> list[bytes]:
    """The hashes of `BatchRow.record_hashes`."""
    return [joined[at : at + 32] for at in range(0, len(joined), 32)]


def mark_batch_sent(con: Connection, instance: Address, root: bytes, at_ms: int) -> None:
    """Remember when a batch went out last."""
    con.execute(
        "UPDATE node_batches SET sent_at_ms = ? WHERE instance = ? AND root = ?", (at_ms, instance, root)
    )


def list_batches_to_send(con: Connection, instance: Address, sent_after_ms: int) -> list[BatchRow]:
    """Batches never sent, and those sent so lately that the hub may not have them; oldest round first."""
    rows = con.execute(
        "SELECT instance, root, batch, record_hashes, round FROM node_batches "
        "WHERE instance = ? AND (sent_at_ms IS NULL OR sent_at_ms > ?) ORDER BY round, root",
        (instance, sent_after_ms),
    )
    return [BatchRow(*row) for row in rows]


def find_last_sent_ms(con: Connection, instance: Address) -> int:
    """When a batch was sent last; 0 if never."""
    row = con.execute("SELECT max(sent_at_ms) FROM node_batches WHERE instance = ?", (instance,)).fetchone()
    return int(row[0] or 0)


def insert_proofs(con: Connection, rows: Sequence[ProofRow]) -> None:
    """Keep the hub's proofs; one that came before stays."""
    con.executemany(
        "INSERT INTO node_proofs (instance, record_hash, kind, proof, round) VALUES (?,?,?,?,?) "
        "ON CONFLICT DO NOTHING",
        rows,
    )


def find_proof(con: Connection, instance: Address, record_hash: bytes) -> bytes | None:
    """The wire bytes of the hub's proof for a record."""
    row = con.execute(
        "SELECT proof FROM node_proofs WHERE instance = ? AND record_hash = ?", (instance, record_hash)
    ).fetchone()
    return None if row is None else bytes(row[0])


def list_batched(con: Connection, instance: Address, round_index: int) -> list[Batched]:
    """The receipts of a round that the hub took, by call id, with their first batches."""
    rows = con.execute(
        "SELECT r.receipt_hash, b.root, length(b.record_hashes) / 32 FROM node_receipts r"
        " JOIN node_batches b ON b.instance = r.instance AND b.root = r.batch_root"
        " JOIN node_deliveries d ON d.instance = r.instance AND d.call_id = r.call_id"
        " WHERE r.instance = ? AND r.round = ? ORDER BY r.call_id",
        (instance, round_index),
    )
    return [Batched(*row) for row in rows]


def insert_consolidated(
    con: Connection, instance: Address, round_index: int, rows: Sequence[BatchRow]
) -> bool:
    """Record a round's larger batches, once. Returns: whether they were not there yet."""
    done = con.execute(
        "INSERT INTO node_consolidated_rounds VALUES (?, ?) ON CONFLICT DO NOTHING", (instance, round_index)
    )
    if done.rowcount:
        con.executemany(
            "INSERT INTO node_batches (instance, root, batch, record_hashes, round) VALUES (?,?,?,?,?)"
            " ON CONFLICT DO NOTHING",
            rows,
        )
    return done.rowcount > 0


def is_consolidated(con: Connection, instance: Address, round_index: int) -> bool:
    row = con.execute(
        "SELECT 1 FROM node_consolidated_rounds WHERE instance = ? AND round = ?", (instance, round_index)
    ).fetchone()
    return row is not None


def delete_before(con: Connection, instance: Address, round_index: int) -> int:
    """Forget what is older than a round, whatever became of it. Returns: how many rows went."""
    return sum(
        con.execute(f"DELETE FROM {table} WHERE instance = ? AND round < ?", (instance, round_index)).rowcount
        for table in _BY_ROUND
    )


def delete_settled(con: Connection, instance: Address, carried_before: int) -> int:
    """Forget calls that bundles of rounds before this one carried. Returns: how many rows went.

    A batch goes when no receipt of its round is left; of a proof the record goes with its call.
    """
    settled = (
        "SELECT {column} FROM node_deliveries WHERE instance = ?1 AND state = 'carried' AND carried_in < ?2"
    )
    gone = 0
    for column in ("forward_hash", "delivery_hash"):
        gone += con.execute(
            "DELETE FROM node_proofs WHERE instance = ?1 AND record_hash IN"
            f" ({settled.format(column=column)})",
            (instance, carried_before),
        ).rowcount
    gone += con.execute(
        f"DELETE FROM node_receipts WHERE instance = ?1 AND call_id IN ({settled.format(column='call_id')})",
        (instance, carried_before),
    ).rowcount
    gone += con.execute(
        "DELETE FROM node_deliveries WHERE instance = ? AND state = 'carried' AND carried_in < ?",
        (instance, carried_before),
    ).rowcount
    gone += con.execute(
        "DELETE FROM node_batches WHERE instance = ?1 AND round < coalesce((SELECT min(round) FROM"
        " node_receipts WHERE instance = ?1), ?2) AND round < ?2 AND sent_at_ms IS NOT NULL",
        (instance, carried_before),
    ).rowcount
    return gone
