"""Tasks that this validator gave to its peers, and what came of them. Those received stand as own statements."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.ledger import Connection, Row
from emcd.types import Address


@dataclass(frozen=True)
class TaskRow:
    """A task; `transcript` is its wire form, `verdict` what the receiver signed, if it did."""

    round: int
    receiver: Address
    task_hash: bytes
    transcript: bytes
    is_decoy: bool
    given_at_ms: int
    verdict: int | None = None


_COLUMNS = "round, receiver, task_hash, transcript, is_decoy, given_at_ms, verdict"


def insert_task(con: Connection, instance: Address, row: TaskRow) -> bool:
    """Keep the task of a receiver and round, once. Returns: False when there is one already."""
    known = con.execute(
        "SELECT 1 FROM validator_tasks WHERE instance = ? AND round = ? AND receiver = ?",
        (instance, row.round, row.receiver),
    ).fetchone()
    if known is not None:
        return False
    con.execute(
        "INSERT INTO validator_tasks VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
        (
            instance,
            row.round,
            row.receiver,
            row.task_hash,
            row.transcript,
            int(row.is_decoy),
            row.given_at_ms,
        ),
    )
    return True


def list_tasks(
    con: Connection, instance: Address, round_index: int, receiver: Address | None = None
) -> list[TaskRow]:
    """The tasks of a round, in an order that says nothing."""
    rows = con.execute(
        f"SELECT {_COLUMNS} FROM validator_tasks WHERE instance = ? AND round = ?"
        " AND (? IS NULL OR receiver = ?) ORDER BY receiver, task_hash",
        (instance, round_index, receiver, receiver),
    )
    return [_row(row) for row in rows]


def list_passed_decoys(
    con: Connection, instance: Address, first_round: int, passed: int
) -> list[tuple[TaskRow, bytes, bytes]]:
    """Decoys of these rounds that a peer answered with this verdict: task, its statement, its signature."""
    columns = ", ".join(f"t.{name.strip()}" for name in _COLUMNS.split(","))
    rows = con.execute(
        f"SELECT {columns}, i.data, i.signature FROM validator_tasks t JOIN validator_items i"
        " ON i.instance = t.instance AND i.round = t.round AND i.kind = 'task_result'"
        " AND i.author = t.receiver AND i.key = t.task_hash"
        " WHERE t.instance = ? AND t.round >= ? AND t.is_decoy AND t.verdict = ? AND t.transcript != x''"
        " ORDER BY t.round, t.receiver, t.task_hash",
        (instance, first_round, passed),
    )
    return [(_row(row), bytes(row[7]), bytes(row[8])) for row in rows]


def set_task_verdict(
    con: Connection, instance: Address, row: TaskRow, verdict: int, *, keep_transcript: bool
) -> None:
    """What the receiver signed; the transcript goes where it proves nothing any more."""
    con.execute(
        "UPDATE validator_tasks SET verdict = ?, transcript = CASE WHEN ? THEN transcript ELSE x'' END"
        " WHERE instance = ? AND round = ? AND receiver = ? AND task_hash = ?",
        (verdict, keep_transcript, instance, row.round, row.receiver, row.task_hash),
    )


def _row(row: Row) -> TaskRow:
    return TaskRow(row[0], Address(row[1]), bytes(row[2]), bytes(row[3]), bool(row[4]), row[5], row[6])


def prune_tasks(con: Connection, instance: Address, before_round: int) -> None:
    con.execute("DELETE FROM validator_tasks WHERE instance = ? AND round < ?", (instance, before_round))
