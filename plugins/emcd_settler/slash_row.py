"""Orders to slash on disk: chosen once with their signatures, then sent. SQL and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from emcd.ledger import Connection, Row
from emcd.proto.messages import Slash
from emcd.types import Address
from emcd_settler.slash_rule import OrderQuorum


class SlashState(Enum):
    """Where an order stands on its way to the chain."""

    CHOSEN = "chosen"
    SUBMITTED = "submitted"
    AGAIN = "again"
    CONFIRMED = "confirmed"
    ENDED = "ended"


@dataclass(frozen=True)
class SlashRow:
    """`attempt` counts transactions that ended without the slash and without making it impossible."""

    quorum: OrderQuorum
    state: SlashState
    attempt: int
    reason: str
    changed_at_ms: int


_encode = msgspec.msgpack.Encoder().encode
_signatures = msgspec.msgpack.Decoder(dict[str, bytes])


def find_slash(con: Connection, instance: str, evidence_hash: bytes) -> SlashRow | None:
    row = con.execute(
        "SELECT * FROM settler_slashes WHERE instance = ? AND evidence_hash = ?", (instance, evidence_hash)
    ).fetchone()
    return None if row is None else _slash(row)


def list_open_slashes(con: Connection, instance: str) -> list[SlashRow]:
    """Those that are chosen or on their way."""
    rows = con.execute(
        "SELECT * FROM settler_slashes WHERE instance = ? AND state IN ('chosen', 'submitted')"
        " ORDER BY evidence_hash",
        (instance,),
    )
    return [_slash(row) for row in rows]


def choose_slash(con: Connection, instance: str, quorum: OrderQuorum, now_ms: int) -> bool:
    """Choose order and signatures for an evidence; False when they are chosen already."""
    order = quorum.order
    done = con.execute(
        "INSERT INTO settler_slashes VALUES (?, ?, ?, ?, ?, ?, 'chosen', 0, '', NULL, ?)"
        " ON CONFLICT (instance, evidence_hash) DO UPDATE SET node = excluded.node, bps = excluded.bps,"
        " epoch = excluded.epoch, signatures = excluded.signatures, state = 'chosen',"
        " changed_at_ms = excluded.changed_at_ms WHERE state = 'again'",
        (
            instance,
            order.evidence_hash,
            order.node,
            order.bps,
            order.epoch,
            _encode(quorum.signatures),
            now_ms,
        ),
    )
    return done.rowcount > 0


def set_slash_state(
    con: Connection,
    instance: str,
    evidence_hash: bytes,
    state: SlashState,
    now_ms: int,
    *,
    reason: str = "",
    tx_hash: bytes | None = None,
    attempt: int | None = None,
) -> None:
    """Move an order on; `attempt` and `tx_hash` stay when not given."""
    con.execute(
        "UPDATE settler_slashes SET state = ?, reason = ?, changed_at_ms = ?,"
        " tx_hash = coalesce(?, tx_hash), attempt = coalesce(?, attempt)"
        " WHERE instance = ? AND evidence_hash = ?",
        (state.value, reason, now_ms, tx_hash, attempt, instance, evidence_hash),
    )


def prune_slashes(con: Connection, instance: str, before_epoch: int) -> None:
    """Forget orders of long ago that are over; the chain remembers the evidence."""
    con.execute(
        "DELETE FROM settler_slashes WHERE instance = ? AND epoch < ?"
        " AND state NOT IN ('chosen', 'submitted')",
        (instance, before_epoch),
    )


def _slash(row: Row) -> SlashRow:
    order = Slash(Address(row["node"]), row["bps"], bytes(row["evidence_hash"]), row["epoch"])
    signatures = {Address(who): sig for who, sig in _signatures.decode(row["signatures"]).items()}
    return SlashRow(
        OrderQuorum(order, signatures),
        SlashState(row["state"]),
        row["attempt"],
        row["reason"],
        row["changed_at_ms"],
    )
