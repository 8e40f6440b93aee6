"""Rounds and attestations on disk. SQL and nothing else.

A round goes collecting -> quorum -> submitted -> confirmed, or ends void: not published by anyone,
vetoed, or covered by a later root. The signatures of a quorum are chosen once (`is_used`), so that
the same transaction is built again after a crash.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from emcd.ledger import Connection, Row
from emcd.money import decode_wei, encode_wei
from emcd.proto.messages import RoundRoot
from emcd_settler.attestation import Attestation, Quorum


class RoundState(Enum):
    """Where a round stands on its way to the chain."""

    COLLECTING = "collecting"
    QUORUM = "quorum"
    SUBMITTED = "submitted"
    CONFIRMED = "confirmed"
    VOID = "void"


@dataclass(frozen=True)
class RoundRow:
    """`attempt` counts transactions that ended without publishing and without making it impossible."""

    round: int
    state: RoundState
    attempt: int
    is_active: bool
    reason: str
    tx_hash: bytes | None
    changed_at_ms: int


def ensure_collecting(con: Connection, instance: str, index: int, now_ms: int) -> None:
    con.execute(
        "INSERT INTO settler_rounds (instance, round, state, changed_at_ms) VALUES (?, ?, 'collecting', ?)"
        " ON CONFLICT DO NOTHING",
        (instance, index, now_ms),
    )


def find_round(con: Connection, instance: str, index: int) -> RoundRow | None:
    row = con.execute(
        "SELECT * FROM settler_rounds WHERE instance = ? AND round = ?", (instance, index)
    ).fetchone()
    return None if row is None else _round(row)


def find_in_flight(con: Connection, instance: str) -> RoundRow | None:
    """The round with a quorum that is not decided on chain: one at most."""
    row = con.execute(
        "SELECT * FROM settler_rounds WHERE instance = ? AND state IN ('quorum', 'submitted')"
        " ORDER BY round LIMIT 1",
        (instance,),
    ).fetchone()
    return None if row is None else _round(row)


def list_unsettled(con: Connection, instance: str) -> list[RoundRow]:
    """Published rounds whose challenge delay was still running when last seen."""
    rows = con.execute(
        "SELECT * FROM settler_rounds WHERE instance = ? AND state = 'confirmed' AND is_active = 0"
        " ORDER BY round",
        (instance,),
    )
    return [_round(row) for row in rows]


def add_attestations(con: Connection, instance: str, attestations: Iterable[Attestation]) -> None:
    """Keep what was signed; the same again changes nothing."""
    con.executemany(
        "INSERT INTO settler_attestations VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING",
        [
            (instance, item.root.round, item.validator, *_outcome(item.root), item.signature)
            for item in attestations
        ],
    )


def list_attestations(con: Connection, instance: str, index: int) -> list[Attestation]:
    rows = con.execute(
        "SELECT * FROM settler_attestations WHERE instance = ? AND round = ? ORDER BY validator",
        (instance, index),
    )
    return [_attestation(row) for row in rows]


def list_double_attestations(
    con: Connection, instance: str, oldest: int
) -> list[tuple[Attestation, Attestation]]:
    """Two outcomes of every validator that signed more than one of a round."""
    rows = con.execute(
        "SELECT * FROM settler_attestations a WHERE instance = ? AND round >= ? AND 1 < ("
        " SELECT count(*) FROM settler_attestations b WHERE b.instance = a.instance AND b.round = a.round"
        " AND b.validator = a.validator) ORDER BY round, validator, bundle_hash, root, cumulative_wei",
        (instance, oldest),
    )
    found: dict[tuple[int, str], list[Attestation]] = {}
    for row in rows:
        found.setdefault((row["round"], row["validator"]), []).append(_attestation(row))
    return [(items[0], items[1]) for items in found.values()]


def set_quorum(con: Connection, instance: str, quorum: Quorum, now_ms: int) -> bool:
    """Choose outcome and signatures of a round, once. False when it is no longer collecting.

    Rounds before it that nobody published are covered by its root.
    """
    index = quorum.root.round
    done = con.execute(
        "UPDATE settler_rounds SET state = 'quorum', changed_at_ms = ?"
        " WHERE instance = ? AND round = ? AND state = 'collecting'",
        (now_ms, instance, index),
    )
    if not done.rowcount:
        return False
    con.executemany(
        "UPDATE settler_attestations SET is_used = 1 WHERE instance = ? AND round = ? AND validator = ?"
        " AND bundle_hash = ? AND root = ? AND cumulative_wei = ?",
        [(instance, index, validator, *_outcome(quorum.root)) for validator in quorum.signatures],
    )
    con.execute(
        "UPDATE settler_rounds SET state = 'void', reason = ?, changed_at_ms = ?"
        " WHERE instance = ? AND round < ? AND state = 'collecting'",
        (f"covered by the root of round {index}", now_ms, instance, index),
    )
    return True


def load_quorum(con: Connection, instance: str, index: int) -> Quorum:
    """What `set_quorum` chose."""
    rows = con.execute(
        "SELECT * FROM settler_attestations WHERE instance = ? AND round = ? AND is_used = 1"
        " ORDER BY validator",
        (instance, index),
    ).fetchall()
    chosen = [_attestation(row) for row in rows]
    return Quorum(chosen[0].root, {item.validator: item.signature for item in chosen})


def set_state(
    con: Connection,
    instance: str,
    index: int,
    state: RoundState,
    now_ms: int,
    *,
    reason: str = "",
    tx_hash: bytes | None = None,
    attempt: int | None = None,
) -> None:
    """Move a round on; `attempt` and `tx_hash` stay when not given."""
    con.execute(
        "UPDATE settler_rounds SET state = ?, reason = ?, changed_at_ms = ?, tx_hash = coalesce(?, tx_hash),"
        " attempt = coalesce(?, attempt) WHERE instance = ? AND round = ?",
        (state.value, reason, now_ms, tx_hash, attempt, instance, index),
    )


def set_active(con: Connection, instance: str, index: int, now_ms: int) -> None:
    """The challenge delay is over: nobody can veto it any more."""
    con.execute(
        "UPDATE settler_rounds SET is_active = 1, changed_at_ms = ? WHERE instance = ? AND round = ?",
        (now_ms, instance, index),
    )


def expire_collecting(con: Connection, instance: str, oldest: int, now_ms: int) -> None:
    """Rounds below `oldest` found no quorum in time."""
    con.execute(
        "UPDATE settler_rounds SET state = 'void', reason = 'no quorum in time', changed_at_ms = ?"
        " WHERE instance = ? AND round < ? AND state = 'collecting'",
        (now_ms, instance, oldest),
    )


def prune(con: Connection, instance: str, oldest: int) -> None:
    """Forget attestations and outcomes of long ago; the chain remembers what was published."""
    con.execute("DELETE FROM settler_attestations WHERE instance = ? AND round < ?", (instance, oldest))
    con.execute(
        "DELETE FROM settler_rounds WHERE instance = ? AND round < ? AND (state = 'void' OR is_active = 1)",
        (instance, oldest),
    )


def _outcome(root: RoundRoot) -> tuple[bytes, bytes, bytes]:
    return root.bundle_hash, root.root, encode_wei(root.cumulative_wei)


def _attestation(row: Row) -> Attestation:
    root = RoundRoot(
        row["round"], bytes(row["bundle_hash"]), bytes(row["root"]), decode_wei(bytes(row["cumulative_wei"]))
    )
    return Attestation(row["validator"], root, bytes(row["signature"]))


def _round(row: Row) -> RoundRow:
    return RoundRow(
        row["round"],
        RoundState(row["state"]),
        row["attempt"],
        bool(row["is_active"]),
        row["reason"],
        None if row["tx_hash"] is None else bytes(row["tx_hash"]),
        row["changed_at_ms"],
    )
