"""A call's row: what is committed before its client sees the end. SQL and nothing else.

One statement writes every call of a commit; a trigger of the schema settles the accounts and the
usage in the same statement, so that no code path can write a call without its charge.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import msgspec

from emcd.ledger import Connection, Cursor
from emcd.proto.records import Delivery, Forward, Receipt
from emcd.types import Address
from emcd_hub.billing.key_usage import add_key_usage


class CallRow(NamedTuple):
    """The columns of hub_calls, in their order. Records are msgpack.

    sqlite3 looks for an adapter of whatever is no plain int, str or bytearray, bytes included: so
    rows of calls hold bytearrays and plain ints, and are bound a fifth quicker.
    """

    call_seq: int
    call_id: bytes
    account_id: str
    node: str
    model: str
    round: int
    status: int
    forward: bytes | bytearray
    receipt: bytes | bytearray | None
    delivery: bytes | bytearray
    granted_micro: int
    vault_micro: int
    fault: str
    finished_at_ms: int
    key_id: str | None = None
    withheld: int = 0
    seed: int | None = None
    uncounted_tokens: int = 0


class StoredCall(NamedTuple):
    """A call as it was recorded. The last three: see `records.withheld`."""

    call_seq: int
    account_id: str
    model: str
    fault: str
    forward: Forward
    receipt: Receipt | None
    delivery: Delivery
    withheld: int
    seed: int | None
    uncounted_tokens: int


class SettledCall(NamedTuple):
    """What a round is closed with of a call."""

    call_seq: int
    forward: Forward
    receipt: Receipt | None
    delivery: Delivery


class CallKey(NamedTuple):
    """Where a call stands: its id, its row, the round of its delivery."""

    call_id: bytes
    call_seq: int
    round: int


class ReceiptKey(NamedTuple):
    """A receipt that came with a call: whose batch must hold it, and since when."""

    receipt_hash: bytes
    node: Address
    finished_at_ms: int


_PLACES = "(" + ",".join("?" * len(CallRow._fields)) + ")"
_RECEIPTS = "SELECT delivery, node, finished_at_ms FROM hub_calls"
_KEYS = "SELECT call_id, call_seq, round FROM hub_calls"
_PORTION = 4096
CALL_ID_BYTES = 16
_SELECT = (
    "SELECT call_seq, account_id, model, fault, forward, receipt, delivery, withheld, seed, uncounted_tokens"
    " FROM hub_calls"
)
_forward = msgspec.msgpack.Decoder(Forward).decode
_receipt = msgspec.msgpack.Decoder(Receipt).decode
_delivery = msgspec.msgpack.Decoder(Delivery).decode


@lru_cache(maxsize=1024)
def _insert_sql(count: int) -> str:
    return "INSERT INTO hub_calls VALUES " + ",".join([_PLACES] * count)


def insert_calls(con: Connection, rows: Sequence[CallRow]) -> None:
    """Record calls and settle their accounts. Raises: IntegrityError (an id twice, a balance below zero)."""
    con.execute(_insert_sql(len(rows)), list(chain.from_iterable(rows)))
    add_key_usage(con, rows)


def find_call(con: Connection, call_id: bytes) -> StoredCall | None:
    row = con.execute(f"{_SELECT} WHERE call_id = ?", (call_id,)).fetchone()
    return None if row is None else _stored(row)


def count_calls_between(con: Connection, from_ms: int, to_ms: int) -> int:
    sql = "SELECT count(*) FROM hub_calls WHERE finished_at_ms >= ? AND finished_at_ms < ?"
    return int(con.execute(sql, (from_ms, to_ms)).fetchone()[0])


def iter_call_keys(con: Connection, from_ms: int, to_ms: int) -> Iterator[list[CallKey]]:
    """Calls that finished at or after one time and before another, in portions, in no order."""
    yield from _iter_keys(
        _plain(con).execute(f"{_KEYS} WHERE finished_at_ms >= ? AND finished_at_ms < ?", (from_ms, to_ms))
    )


def iter_carried_keys(con: Connection) -> Iterator[list[CallKey]]:
    """Calls of closed rounds that stand in no bundle yet."""
    yield from _iter_keys(
        _plain(con).execute(f"{_KEYS} WHERE call_seq IN (SELECT call_seq FROM hub_carried_calls)")
    )


def iter_call_keys_in(con: Connection, call_ids: bytes) -> Iterator[list[CallKey]]:
    """Those calls of a list of ids (joined, ascending) that are here, ascending, in portions."""
    step = _PORTION * CALL_ID_BYTES
    for start in range(0, len(call_ids), step):
        part = call_ids[start : start + step]
        asked = {part[i : i + CALL_ID_BYTES] for i in range(0, len(part), CALL_ID_BYTES)}
        rows = con.execute(
            f"{_KEYS} WHERE call_id BETWEEN ? AND ? ORDER BY call_id",
            (part[:CALL_ID_BYTES], part[-CALL_ID_BYTES:]),
        )
        yield [CallKey(*row) for row in rows if row[0] in asked]


def fetch_calls(con: Connection, call_seqs: Sequence[int]) -> list[SettledCall]:
    """The records of these calls, in this order."""
    rows = _plain(con).execute(
        "SELECT call_seq, forward, receipt, delivery"
        " FROM json_each(?) AS asked CROSS JOIN hub_calls ON call_seq = asked.value",
        (json.dumps(call_seqs),),
    )
    return [
        SettledCall(row[0], _forward(row[1]), None if row[2] is None else _receipt(row[2]), _delivery(row[3]))
        for row in rows
    ]


def find_times(con: Connection, since_ms: int) -> tuple[int, int]:
    """When the first call ended at or after a time, and when the last one; (0, -1) for none."""
    row = con.execute(
        "SELECT min(finished_at_ms), max(finished_at_ms) FROM hub_calls WHERE finished_at_ms >= ?",
        (since_ms,),
    ).fetchone()
    return (0, -1) if row[0] is None else (row[0], row[1])


def find_first_finish(con: Connection, since_ms: int) -> int | None:
    """When the first call ended at or after a time."""
    row = con.execute("SELECT min(finished_at_ms) FROM hub_calls WHERE finished_at_ms >= ?", (since_ms,))
    first_ms: int | None = row.fetchone()[0]
    return first_ms


def list_receipts_between(con: Connection, from_ms: int, to_ms: int) -> list[ReceiptKey]:
    """The receipts of calls that finished at or after one time and before another."""
    rows = _plain(con).execute(
        f"{_RECEIPTS} WHERE finished_at_ms >= ? AND finished_at_ms < ? AND receipt IS NOT NULL",
        (from_ms, to_ms),
    )
    return [ReceiptKey(_delivery(row[0]).receipt_hash, row[1], row[2]) for row in rows]


def iter_waiting_receipts(con: Connection) -> Iterator[ReceiptKey]:
    """The receipts of calls of closed rounds that wait for their node's batch."""
    rows = con.execute(
        f"{_RECEIPTS} WHERE call_seq IN (SELECT call_seq FROM hub_carried_calls) AND receipt IS NOT NULL"
    )
    for row in rows:
        yield ReceiptKey(_delivery(row[0]).receipt_hash, row[1], row[2])


def list_owners(con: Connection, call_ids: bytes) -> list[tuple[bytes, int, str]]:
    """(call_id, call_seq, account_id) of those calls of a list of ids (joined, ascending) that are here."""
    rows = con.execute(
        "SELECT call_id, call_seq, account_id FROM hub_calls WHERE call_id BETWEEN ? AND ? ORDER BY call_id",
        (call_ids[:CALL_ID_BYTES], call_ids[-CALL_ID_BYTES:]),
    )
    asked = {call_ids[i : i + CALL_ID_BYTES] for i in range(0, len(call_ids), CALL_ID_BYTES)}
    return [(bytes(row[0]), row[1], row[2]) for row in rows if row[0] in asked]


def delete_calls(con: Connection, call_seqs: Sequence[int]) -> int:
    """Let calls of archived rounds go. Returns: how many were here. Raises: IntegrityError for others."""
    cursor = con.execute(
        "DELETE FROM hub_calls WHERE call_seq IN (SELECT value FROM json_each(?))", (json.dumps(call_seqs),)
    )
    return cursor.rowcount


def _plain(con: Connection) -> Cursor:
    """A cursor whose rows are tuples: a third quicker, where there are millions."""
    cursor = con.cursor()
    cursor.row_factory = None
    return cursor


def _iter_keys(rows: Cursor) -> Iterator[list[CallKey]]:
    while part := rows.fetchmany(_PORTION):
        yield part


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
    seq, account_id, model, fault, forward, receipt, delivery, *more = row
    return StoredCall(
        seq,  # type: ignore[arg-type]
        account_id,  # type: ignore[arg-type]
        model,  # type: ignore[arg-type]
        fault,  # type: ignore[arg-type]
        _forward(forward),  # type: ignore[arg-type]
        None if receipt is None else _receipt(receipt),  # type: ignore[arg-type]
        _delivery(delivery),  # type: ignore[arg-type]
        *more,  # type: ignore[arg-type]
    )
