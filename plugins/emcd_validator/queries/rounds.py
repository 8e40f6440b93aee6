"""Rounds and probes: what was committed, what was drawn, and how far every probe came.

A probe goes planned > sent > answered > judged, or planned > judged (the node was not there), and
`lost` when the daemon stopped between sending and the answer: it is never sent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from emcd.ledger import Connection, Row
from emcd.proto.bundle import ProbeResult
from emcd.types import Address


class ProbeState(Enum):
    PLANNED = "planned"
    SENT = "sent"
    ANSWERED = "answered"
    JUDGED = "judged"
    LOST = "lost"


@dataclass(frozen=True)
class RoundRow:
    """A round's secret; `beacon_hash` is set together with the plan's probes."""

    round: int
    seed: bytes
    salt: bytes
    corpus_root: bytes
    leaf_count: int
    beacon_hash: bytes | None


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One planned probe and everything kept of it. Empty bytes stand for what never came."""

    round: int
    node: Address
    slot: int
    due_at_ms: int
    leaf_index: int | None
    leaf_count: int
    leaf: bytes
    leaf_path: tuple[bytes, ...]
    state: ProbeState = ProbeState.PLANNED
    model: str = ""
    request_body: bytes = b""
    status: int = 0
    content_type: str = ""
    response_body: bytes = b""
    call_id: bytes = b""
    receipt: bytes = b""
    result: ProbeResult | None = None
    reason: str = ""


_path_decoder = msgspec.msgpack.Decoder(tuple[bytes, ...])
_result_decoder = msgspec.msgpack.Decoder(ProbeResult)


def insert_round(con: Connection, instance: Address, row: RoundRow) -> None:
    """Keep a round's secret; a second one for the round changes nothing."""
    con.execute(
        "INSERT INTO validator_rounds VALUES (?, ?, ?, ?, ?, ?, NULL) ON CONFLICT DO NOTHING",
        (instance, row.round, row.seed, row.salt, row.corpus_root, row.leaf_count),
    )


def find_round(con: Connection, instance: Address, round_index: int) -> RoundRow | None:
    row = con.execute(
        "SELECT round, seed, salt, corpus_root, leaf_count, beacon_hash FROM validator_rounds"
        " WHERE instance = ? AND round = ?",
        (instance, round_index),
    ).fetchone()
    return RoundRow(*row) if row else None


def insert_plan(
    con: Connection,
    instance: Address,
    round_index: int,
    beacon_hash: bytes,
    probes: Sequence[ProbeRow],
    leaf_hashes: Iterable[bytes],
) -> bool:
    """Fix a round's plan and use up its leaves. Returns: False when it was fixed before."""
    fixed = con.execute(
        "UPDATE validator_rounds SET beacon_hash = ?"
        " WHERE instance = ? AND round = ? AND beacon_hash IS NULL",
        (beacon_hash, instance, round_index),
    )
    if fixed.rowcount != 1:
        return False
    con.executemany(
        "INSERT INTO validator_probes (instance, round, node, slot, due_at_ms, leaf_index, leaf_count, leaf,"
        " leaf_path, state, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                instance,
                p.round,
                p.node,
                p.slot,
                p.due_at_ms,
                p.leaf_index,
                p.leaf_count,
                p.leaf,
                msgspec.msgpack.encode(p.leaf_path),
                p.state.value,
                p.reason,
            )
            for p in probes
        ],
    )
    con.executemany(
        "INSERT INTO validator_leaves VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(instance, hashed, round_index) for hashed in leaf_hashes],
    )
    return True


def has_unplanned_round(con: Connection, instance: Address, from_round: int) -> bool:
    """Whether a round was committed to whose plan is still to be drawn: its tree must not change."""
    row = con.execute(
        "SELECT 1 FROM validator_rounds WHERE instance = ? AND round >= ? AND beacon_hash IS NULL LIMIT 1",
        (instance, from_round),
    ).fetchone()
    return row is not None


def list_used_leaves(con: Connection, instance: Address) -> frozenset[bytes]:
    rows = con.execute("SELECT leaf_hash FROM validator_leaves WHERE instance = ?", (instance,))
    return frozenset(row[0] for row in rows)


def forget_leaves(con: Connection, instance: Address, hashes: Iterable[bytes]) -> None:
    """Drop the marks of leaves that no longer stand in the corpus."""
    con.executemany(
        "DELETE FROM validator_leaves WHERE instance = ? AND leaf_hash = ?", [(instance, h) for h in hashes]
    )


def list_probes(con: Connection, instance: Address, round_index: int) -> list[ProbeRow]:
    """The probes of a round in the order of (node, slot)."""
    rows = con.execute(
        "SELECT * FROM validator_probes WHERE instance = ? AND round = ?", (instance, round_index)
    ).fetchall()
    return sorted(map(_read_probe, rows), key=lambda p: (bytes.fromhex(p.node[2:]), p.slot))


def find_probe_of_call(con: Connection, instance: Address, call_id: bytes) -> ProbeRow | None:
    row = con.execute(
        "SELECT * FROM validator_probes WHERE instance = ? AND call_id = ?", (instance, call_id)
    ).fetchone()
    return _read_probe(row) if row else None


def mark_sent(con: Connection, instance: Address, probe: ProbeRow, model: str, request_body: bytes) -> bool:
    """Take a planned probe for sending. Returns: False when it was taken before: never send it again."""
    taken = con.execute(
        "UPDATE validator_probes SET state = 'sent', model = ?, request_body = ?"
        " WHERE instance = ? AND round = ? AND node = ? AND slot = ? AND state = 'planned'",
        (model, request_body, instance, probe.round, probe.node, probe.slot),
    )
    return taken.rowcount == 1


def mark_answered(con: Connection, instance: Address, probe: ProbeRow) -> None:
    """Keep what came back, before it is judged."""
    con.execute(
        "UPDATE validator_probes SET state = 'answered', status = ?, content_type = ?, response_body = ?,"
        " call_id = ?, reason = ?"
        " WHERE instance = ? AND round = ? AND node = ? AND slot = ? AND state = 'sent'",
        (
            probe.status,
            probe.content_type,
            probe.response_body,
            probe.call_id,
            probe.reason,
            instance,
            probe.round,
            probe.node,
            probe.slot,
        ),
    )


def keep_receipt(con: Connection, instance: Address, probe: ProbeRow, receipt: bytes) -> None:
    con.execute(
        "UPDATE validator_probes SET receipt = ? WHERE instance = ? AND round = ? AND node = ? AND slot = ?",
        (receipt, instance, probe.round, probe.node, probe.slot),
    )


def mark_judged(
    con: Connection, instance: Address, round_index: int, result: ProbeResult, reason: str
) -> bool:
    """Give a probe its verdict, once. Returns: False when it has one or was lost."""
    given = con.execute(
        "UPDATE validator_probes SET state = 'judged', result = ?, reason = ?"
        " WHERE instance = ? AND round = ? AND node = ? AND slot = ? AND state IN ('planned', 'answered')",
        (msgspec.msgpack.encode(result), reason, instance, round_index, result.node, result.slot),
    )
    return given.rowcount == 1


def mark_lost(con: Connection, instance: Address, reason: str) -> int:
    """At start: whatever was under way when the daemon stopped is lost. Returns: how many."""
    lost = con.execute(
        "UPDATE validator_probes SET state = 'lost', reason = ? WHERE instance = ? AND state = 'sent'",
        (reason, instance),
    )
    return lost.rowcount


def prune_rounds(con: Connection, instance: Address, before_round: int) -> None:
    """Drop secrets and probes of rounds before this one."""
    for table in ("validator_rounds", "validator_probes"):
        con.execute(f"DELETE FROM {table} WHERE instance = ? AND round < ?", (instance, before_round))


def _read_probe(row: Row) -> ProbeRow:
    return ProbeRow(
        round=row["round"],
        node=Address(row["node"]),
        slot=row["slot"],
        due_at_ms=row["due_at_ms"],
        leaf_index=row["leaf_index"],
        leaf_count=row["leaf_count"],
        leaf=row["leaf"],
        leaf_path=_path_decoder.decode(row["leaf_path"]),
        state=ProbeState(row["state"]),
        model=row["model"],
        request_body=row["request_body"],
        status=row["status"],
        content_type=row["content_type"],
        response_body=row["response_body"],
        call_id=row["call_id"],
        receipt=row["receipt"],
        result=_result_decoder.decode(row["result"]) if row["result"] is not None else None,
        reason=row["reason"],
    )
