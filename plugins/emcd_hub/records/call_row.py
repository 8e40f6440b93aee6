"""A call's row: what is committed before its client sees the end. SQL and nothing else.

One statement writes every call of a commit; a trigger of the schema settles the accounts and the
usage in the same statement, so that no code path can write a call without its charge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from emcd.ledger import Connection
from emcd.proto.records import Delivery, Forward, Receipt
from emcd.types import Address


class CallRow(NamedTuple):
    """The columns of hub_calls, in their order. Records are msgpack."""

    call_seq: int
    call_id: bytes
    account_id: str
    node: str
    model: str
    round: int
    status: int
    forward: bytes
    receipt: bytes | None
    delivery: bytes
    granted_micro: int
    vault_micro: int
    fault: str
    finished_at_ms: int


class StoredCall(NamedTuple):
    """A call as it was recorded."""

    call_seq: int
    account_id: str
    model: str
    fault: str
    forward: Forward
    receipt: Receipt | None
    delivery: Delivery


_PLACES = "(" + ",".join("?" * len(CallRow._fields)) + ")"
_SELECT = "SELECT call_seq, account_id, model, fault, forward, receipt, delivery FROM hub_calls"
_forward = msgspec.msgpack.Decoder(Forward).decode
_receipt = msgspec.msgpack.Decoder(Receipt).decode
_delivery = msgspec.msgpack.Decoder(Delivery).decode


@lru_cache(maxsize=1024)
def _insert_sql(count: int) -> str:
    return "INSERT INTO hub_calls VALUES " + ",".join([_PLACES] * count)


def insert_calls(con: Connection, rows: Sequence[CallRow]) -> None:
    """Record calls and settle their accounts. Raises: IntegrityError (an id twice, a balance below zero)."""
    con.execute(_insert_sql(len(rows)), [value for row in rows for value in row])


def find_call(con: Connection, call_id: bytes) -> StoredCall | None:
    row = con.execute(f"{_SELECT} WHERE call_id = ?", (call_id,)).fetchone()
    return None if row is None else _stored(row)


def iter_calls_between(con: Connection, from_ms: int, to_ms: int) -> Iterator[StoredCall]:
    """Calls that finished at or after one time and before another: those of a round."""
    rows = con.execute(f"{_SELECT} WHERE finished_at_ms >= ? AND finished_at_ms < ?", (from_ms, to_ms))
    for row in rows:
        yield _stored(row)


def count_calls_between(con: Connection, from_ms: int, to_ms: int) -> int:
    sql = "SELECT count(*) FROM hub_calls WHERE finished_at_ms >= ? AND finished_at_ms < ?"
    return int(con.execute(sql, (from_ms, to_ms)).fetchone()[0])


def iter_carried_calls(con: Connection) -> Iterator[StoredCall]:
    """Calls of closed rounds that stand in no bundle yet."""
    for row in con.execute(f"{_SELECT} WHERE call_seq IN (SELECT call_seq FROM hub_carried_calls)"):
        yield _stored(row)


def iter_calls_since(con: Connection, since_ms: int) -> Iterator[StoredCall]:
    """Calls that finished at or after a time, oldest first."""
    for row in con.execute(f"{_SELECT} WHERE finished_at_ms >= ? ORDER BY call_seq", (since_ms,)):
        yield _stored(row)


def sum_by_node(con: Connection, from_ms: int, to_ms: int) -> list[tuple[Address, int, int]]:
    """(node, successful calls with a receipt, what they took from the vault) of a time."""
    rows = con.execute(
        "SELECT node, count(*), sum(vault_micro) FROM hub_calls"
        " WHERE finished_at_ms >= ? AND finished_at_ms < ?"
        " AND receipt IS NOT NULL AND status IN (0, 3, 4) GROUP BY node",
        (from_ms, to_ms),
    )
    return [(row[0], row[1], row[2]) for row in rows]


def find_last_seq(con: Connection) -> int:
    """The largest call number in use; 0 for none."""
    return int(con.execute("SELECT coalesce(max(call_seq), 0) FROM hub_calls").fetchone()[0])


def _stored(row: Sequence[object]) -> StoredCall:
    seq, account_id, model, fault, forward, receipt, delivery = row
    return StoredCall(
        seq,  # type: ignore[arg-type]
        account_id,  # type: ignore[arg-type]
        model,  # type: ignore[arg-type]
        fault,  # type: ignore[arg-type]
        _forward(forward),  # type: ignore[arg-type]
        None if receipt is None else _receipt(receipt),  # type: ignore[arg-type]
        _delivery(delivery),  # type: ignore[arg-type]
    )
