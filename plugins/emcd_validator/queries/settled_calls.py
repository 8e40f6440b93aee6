"""Which calls earlier bundles have settled: joined ids in pieces, millions without being objects.

A piece is up to 4096 ids of 16 bytes, ascending, under its first and last one, so that a search
reads one piece of a round. Invariant: the ids of a round are written with the decision to build on
it, and go with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import groupby

from emcd.ledger import Connection
from emcd.types import Address

ID_BYTES = 16
PIECE_BYTES = 4096 * ID_BYTES


def insert_settled_calls(con: Connection, instance: Address, round_index: int, call_ids: bytes) -> None:
    """Keep the calls of a round; `call_ids` joined, ascending."""
    pieces = [call_ids[start : start + PIECE_BYTES] for start in range(0, len(call_ids), PIECE_BYTES)]
    con.executemany(
        "INSERT INTO validator_settled_ids VALUES (?, ?, ?, ?, ?)",
        [(instance, round_index, piece[:ID_BYTES], piece[-ID_BYTES:], piece) for piece in pieces],
    )


def is_settled(con: Connection, instance: Address, call_id: bytes, first_round: int, last_round: int) -> bool:
    """Whether a bundle of these rounds settled a call."""
    rows = con.execute(
        "SELECT call_ids FROM validator_settled_ids"
        " WHERE instance = ? AND round BETWEEN ? AND ? AND first_call <= ? AND last_call >= ?",
        (instance, first_round, last_round, call_id, call_id),
    )
    return any(_holds(row[0], call_id) for row in rows)


def iter_settled_calls(
    con: Connection, instance: Address, first_round: int, last_round: int, asked: bytes
) -> Iterator[bytes]:
    """By round, joined, ascending, the ids of those pieces in which an asked one (joined, ascending) may stand."""
    places = con.execute(
        "SELECT round, rowid, first_call, last_call FROM validator_settled_ids"
        " WHERE instance = ? AND round BETWEEN ? AND ? ORDER BY round, first_call",
        (instance, first_round, last_round),
    ).fetchall()
    sql = "SELECT call_ids FROM validator_settled_ids WHERE rowid = ?"
    for _, pieces in groupby(places, key=lambda row: row[0]):
        yield b"".join(
            con.execute(sql, (rowid,)).fetchone()[0]
            for _, rowid, first, last in pieces
            if _any_between(asked, first, last)
        )


def _holds(ids: bytes, call_id: bytes) -> bool:
    place = _place(ids, call_id)
    return ids[place : place + ID_BYTES] == call_id


def _any_between(ids: bytes, first: bytes, last: bytes) -> bool:
    place = _place(ids, first)
    return place < len(ids) and ids[place : place + ID_BYTES] <= last


def _place(ids: bytes, call_id: bytes) -> int:
    """Where an id stands, or would."""
    count = len(ids) // ID_BYTES
    found = bisect_left(
        range(count), call_id, key=lambda number: ids[number * ID_BYTES : (number + 1) * ID_BYTES]
    )
    return found * ID_BYTES
