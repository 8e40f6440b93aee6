"""Signed statements of a round: commitments, results, reveals, votes, verdicts on tasks and round roots,
own and peers'.

The first statement of an author about one thing stays; another one about the same thing is kept
beside it as evidence. An own statement is written before it is signed (`insert_draft`), and what
stands there is what is signed, whatever the caller would say now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from emcd.ledger import Connection
from emcd.types import Address

MAX_OMISSIONS = 4_096
MAX_OMISSIONS_PER_NODE = 256


class Kind(Enum):
    COMMITMENT = "commitment"
    RESULTS = "results"
    REVEAL = "reveal"
    VOTE = "vote"
    TASK_RESULT = "task_result"
    ROUND_ROOT = "round_root"


@dataclass(frozen=True)
class Item:
    """A statement; `data` is msgpack of its struct (a reveal's and own results' with the probes); `key` a vote's
    call id, the hash of a task."""

    kind: Kind
    round: int
    author: Address
    key: bytes
    data: bytes
    signature: bytes | None
    held_at_ms: int = 0


class Held(Enum):
    """What came of keeping a peer's statement."""

    NEW = "new"
    KNOWN = "known"
    CONFLICT = "conflict"


_COLUMNS = "kind, round, author, key, data, signature, held_at_ms"


def insert_draft(con: Connection, instance: Address, item: Item) -> None:
    con.execute(
        "INSERT INTO validator_items VALUES (?, ?, ?, ?, ?, ?, NULL, ?)",
        (instance, item.round, item.kind.value, item.author, item.key, item.data, item.held_at_ms),
    )


def set_signature(con: Connection, instance: Address, item: Item, signature: bytes) -> None:
    con.execute(
        "UPDATE validator_items SET signature = ?"
        " WHERE instance = ? AND round = ? AND kind = ? AND author = ? AND key = ?",
        (signature, instance, item.round, item.kind.value, item.author, item.key),
    )


def hold_item(con: Connection, instance: Address, item: Item, digest: bytes) -> Held:
    """Keep a peer's statement, whose signature was checked."""
    known = find_item(con, instance, item.kind, item.round, item.author, item.key)
    if known is None:
        con.execute(
            "INSERT INTO validator_items VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                instance,
                item.round,
                item.kind.value,
                item.author,
                item.key,
                item.data,
                item.signature,
                item.held_at_ms,
            ),
        )
        return Held.NEW
    if known.data == item.data:
        return Held.KNOWN
    insert_conflict(con, instance, item, digest)
    return Held.CONFLICT


def insert_conflict(con: Connection, instance: Address, item: Item, digest: bytes) -> None:
    """Keep a second statement about one thing: evidence against its author."""
    con.execute(
        "INSERT INTO validator_conflicts VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            instance,
            item.round,
            item.kind.value,
            item.author,
            digest,
            item.data,
            item.signature,
            item.held_at_ms,
        ),
    )


def find_item(
    con: Connection, instance: Address, kind: Kind, round_index: int, author: Address, key: bytes = b""
) -> Item | None:
    row = con.execute(
        f"SELECT {_COLUMNS} FROM validator_items"
        " WHERE instance = ? AND kind = ? AND round = ? AND author = ? AND key = ?",
        (instance, kind.value, round_index, author, key),
    ).fetchone()
    return Item(Kind(row[0]), *row[1:]) if row else None


def list_items(con: Connection, instance: Address, round_index: int, kind: Kind | None = None) -> list[Item]:
    """The signed statements of a round."""
    rows = con.execute(
        f"SELECT {_COLUMNS} FROM validator_items"
        " WHERE instance = ? AND round = ? AND signature IS NOT NULL AND (? IS NULL OR kind = ?)"
        " ORDER BY author, key",
        (instance, round_index, kind and kind.value, kind and kind.value),
    ).fetchall()
    return [Item(Kind(row[0]), *row[1:]) for row in rows]


def list_results(con: Connection, instance: Address, round_index: int, most: int = 128) -> list[Item]:
    """Every results of a round that is held, second ones of an author too."""
    rows = con.execute(
        "SELECT kind, round, author, x'', data, signature, held_at_ms FROM validator_items"
        " WHERE instance = ?1 AND round = ?2 AND kind = 'results' AND signature IS NOT NULL"
        " UNION ALL SELECT kind, round, author, x'', data, signature, held_at_ms FROM validator_conflicts"
        " WHERE instance = ?1 AND round = ?2 AND kind = 'results' ORDER BY author LIMIT ?3",
        (instance, round_index, most),
    ).fetchall()
    return [Item(Kind(row[0]), *row[1:]) for row in rows]


def list_drafts(con: Connection, instance: Address, author: Address) -> list[Item]:
    """Own statements recorded and not signed yet, of every round."""
    rows = con.execute(
        f"SELECT {_COLUMNS} FROM validator_items WHERE instance = ? AND author = ? AND signature IS NULL",
        (instance, author),
    ).fetchall()
    return [Item(Kind(row[0]), *row[1:]) for row in rows]


def list_conflicts(con: Connection, instance: Address, round_index: int) -> list[tuple[str, Address]]:
    """Kind and author of every double statement of a round."""
    return [
        (row[0], Address(row[1]))
        for row in con.execute(
            "SELECT kind, author FROM validator_conflicts WHERE instance = ? AND round = ?",
            (instance, round_index),
        )
    ]


class Filed(Enum):
    """What came of filing an omission."""

    NEW = "new"
    KNOWN = "known"
    FULL = "full"


def file_omission(
    con: Connection,
    instance: Address,
    call_id: bytes,
    round_index: int,
    node: Address,
    receipt: bytes,
    now_ms: int,
) -> Filed:
    """Keep a call that a node wants to see in a bundle; bounded per node and in all."""
    total, of_node, known = con.execute(
        "SELECT count(*), total(node = ?), total(call_id = ?) FROM validator_omissions WHERE instance = ?",
        (node, call_id, instance),
    ).fetchone()
    if known:
        return Filed.KNOWN
    if total >= MAX_OMISSIONS or of_node >= MAX_OMISSIONS_PER_NODE:
        return Filed.FULL
    con.execute(
        "INSERT INTO validator_omissions VALUES (?, ?, ?, ?, ?, ?)",
        (instance, call_id, round_index, node, receipt, now_ms),
    )
    return Filed.NEW


def list_omissions(
    con: Connection, instance: Address, first_round: int, last_round: int, filed_before_ms: int
) -> Sequence[tuple[bytes, Address]]:
    """(call id, node) of the calls of these rounds that were filed in time."""
    rows = con.execute(
        "SELECT call_id, node FROM validator_omissions"
        " WHERE instance = ? AND round BETWEEN ? AND ? AND filed_at_ms < ?",
        (instance, first_round, last_round, filed_before_ms),
    )
    return [(row[0], Address(row[1])) for row in rows]


def list_filed(
    con: Connection, instance: Address, first_round: int, last_round: int, from_call_id: bytes, most: int
) -> list[tuple[bytes, bytes]]:
    """(call id, receipt) that were filed of calls of these rounds, by call id from this one on."""
    rows = con.execute(
        "SELECT call_id, receipt FROM validator_omissions"
        " WHERE instance = ? AND round BETWEEN ? AND ? AND call_id >= ? ORDER BY call_id LIMIT ?",
        (instance, first_round, last_round, from_call_id, most),
    )
    return [(bytes(row[0]), bytes(row[1])) for row in rows]


def prune_items(con: Connection, instance: Address, before_round: int) -> None:
    """Drop statements, evidence and omissions of rounds before this one; sign-once rows stay for ever."""
    for table in ("validator_items", "validator_conflicts", "validator_omissions"):
        con.execute(f"DELETE FROM {table} WHERE instance = ? AND round < ?", (instance, before_round))
