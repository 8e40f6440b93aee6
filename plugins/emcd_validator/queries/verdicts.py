"""Verdicts with their numbers, and how the statistics of each node drift."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.ledger import Connection, Row
from emcd.types import Address

_COLUMNS = "round, part, node, call_id, slot, model_hash, kind, verdict, statistic, reason, blame, numbers, judged_at_ms"


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One verdict as it was given. `part`: probe, vote, recheck or task; `numbers` is JSON.

    `call_id` is empty where no call came; `slot` is that of the probe that it is about.
    """

    round: int
    part: str
    node: Address
    call_id: bytes
    slot: int
    model_hash: bytes
    kind: str
    verdict: int
    statistic_e12: int
    reason: str
    blame: str
    numbers: str
    judged_at_ms: int


@dataclass(frozen=True)
class DriftRow:
    """The running sums of a node and model; `state` is JSON, `round` that of the newest verdict in them."""

    node: Address
    model_hash: bytes
    state: str
    is_drifting: bool
    is_suspect: bool
    round: int


def insert_verdict(con: Connection, instance: Address, row: VerdictRow) -> bool:
    """Keep a verdict. Returns: False when it was kept before: the first stands."""
    kept = con.execute(
        f"INSERT INTO validator_verdicts (instance, {_COLUMNS})"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            instance,
            row.round,
            row.part,
            row.node,
            row.call_id,
            row.slot,
            row.model_hash,
            row.kind,
            row.verdict,
            row.statistic_e12.to_bytes(8, "big"),
            row.reason,
            row.blame,
            row.numbers,
            row.judged_at_ms,
        ),
    )
    return kept.rowcount == 1


def list_verdicts(con: Connection, instance: Address, round_index: int) -> list[VerdictRow]:
    """Of a round, by part, node and slot."""
    rows = con.execute(
        f"SELECT {_COLUMNS} FROM validator_verdicts WHERE instance = ? AND round = ?"
        " ORDER BY part, node, slot, call_id",
        (instance, round_index),
    )
    return [_read(row) for row in rows]


def list_newest_verdicts(con: Connection, instance: Address, most: int) -> list[VerdictRow]:
    """The newest verdicts of all rounds, newest first."""
    rows = con.execute(
        f"SELECT {_COLUMNS} FROM validator_verdicts WHERE instance = ?"
        " ORDER BY round DESC, judged_at_ms DESC LIMIT ?",
        (instance, most),
    )
    return [_read(row) for row in rows]


def find_verdict(con: Connection, instance: Address, call_id: bytes) -> VerdictRow | None:
    """The newest verdict on a call."""
    row = con.execute(
        f"SELECT {_COLUMNS} FROM validator_verdicts WHERE instance = ? AND call_id = ?"
        " ORDER BY judged_at_ms DESC LIMIT 1",
        (instance, call_id),
    ).fetchone()
    return _read(row) if row else None


def find_drift(con: Connection, instance: Address, node: Address, model_hash: bytes) -> str | None:
    """The state of a node and model."""
    row = con.execute(
        "SELECT state FROM validator_drifts WHERE instance = ? AND node = ? AND model_hash = ?",
        (instance, node, model_hash),
    ).fetchone()
    return row[0] if row else None


def keep_drift(con: Connection, instance: Address, row: DriftRow) -> None:
    con.execute(
        "INSERT INTO validator_drifts VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " state = excluded.state, is_drifting = excluded.is_drifting, is_suspect = excluded.is_suspect,"
        " round = excluded.round",
        (
            instance,
            row.node,
            row.model_hash,
            row.state,
            int(row.is_drifting),
            int(row.is_suspect),
            row.round,
        ),
    )


def list_drifts(con: Connection, instance: Address) -> list[DriftRow]:
    rows = con.execute(
        "SELECT node, model_hash, state, is_drifting, is_suspect, round FROM validator_drifts"
        " WHERE instance = ? ORDER BY node, model_hash",
        (instance,),
    )
    return [DriftRow(Address(row[0]), row[1], row[2], bool(row[3]), bool(row[4]), row[5]) for row in rows]


def list_suspects(con: Connection, instance: Address) -> frozenset[tuple[Address, bytes]]:
    """Nodes and model hashes whose free sampling looks odd: they get probes at temperature 0."""
    rows = con.execute(
        "SELECT node, model_hash FROM validator_drifts WHERE instance = ? AND is_suspect = 1", (instance,)
    )
    return frozenset((Address(row[0]), bytes(row[1])) for row in rows)


def list_instances(con: Connection) -> list[Address]:
    """The validators that judged in this ledger."""
    rows = con.execute("SELECT DISTINCT instance FROM validator_verdicts ORDER BY instance")
    return [Address(row[0]) for row in rows]


def prune_verdicts(con: Connection, instance: Address, before_round: int) -> None:
    """Drop verdicts of rounds before this one, and drifts of nodes that were not probed since then."""
    for table in ("validator_verdicts", "validator_drifts"):
        con.execute(f"DELETE FROM {table} WHERE instance = ? AND round < ?", (instance, before_round))


def _read(row: Row) -> VerdictRow:
    return VerdictRow(
        round=row[0],
        part=row[1],
        node=Address(row[2]),
        call_id=row[3],
        slot=row[4],
        model_hash=row[5],
        kind=row[6],
        verdict=row[7],
        statistic_e12=int.from_bytes(row[8], "big"),
        reason=row[9],
        blame=row[10],
        numbers=row[11],
        judged_at_ms=row[12],
    )
