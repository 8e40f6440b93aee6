"""Offences that this validator proved to itself, and the orders to slash that it signed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from emcd.accounting.offence import StandingStrike
from emcd.ledger import Connection, Row
from emcd.proto.messages import BundleSeal, Offence, Slash
from emcd.types import Address

MAX_OFFENCES = 8_192
"""Of one validator at a time; those of signatures are few, those of strikes its own bundles' nodes."""


class OffenceState(Enum):
    """What the chain says of an offence, when it was last asked."""

    OPEN = "open"
    SLASHED = "slashed"
    NO_STAKE = "no stake"


@dataclass(frozen=True)
class OffenceRow:
    """A proven offence; `proof` is the JSON in which it is served."""

    evidence_hash: bytes
    offence: Offence
    proof: bytes
    state: OffenceState


@dataclass(frozen=True)
class SlashRow:
    """An order; without a signature it was recorded and not signed yet."""

    slash: Slash
    signature: bytes | None


class Kept(Enum):
    """What came of keeping an offence."""

    NEW = "new"
    KNOWN = "known"
    FULL = "full"


_COLUMNS = "evidence_hash, kind, offender, round, proof, state"


def insert_offence(
    con: Connection, instance: Address, evidence_hash: bytes, offence: Offence, proof: bytes, now_ms: int
) -> Kept:
    """Keep an offence whose proof was checked; the first proof of it stays."""
    if find_offence(con, instance, evidence_hash) is not None:
        return Kept.KNOWN
    (count,) = con.execute(
        "SELECT count(*) FROM validator_offences WHERE instance = ?", (instance,)
    ).fetchone()
    if count >= MAX_OFFENCES:
        return Kept.FULL
    con.execute(
        "INSERT INTO validator_offences (instance, evidence_hash, kind, offender, round, proof, found_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (instance, evidence_hash, int(offence.kind), offence.offender, offence.round, proof, now_ms),
    )
    return Kept.NEW


def find_offence(con: Connection, instance: Address, evidence_hash: bytes) -> OffenceRow | None:
    row = con.execute(
        f"SELECT {_COLUMNS} FROM validator_offences WHERE instance = ? AND evidence_hash = ?",
        (instance, evidence_hash),
    ).fetchone()
    return _offence(row) if row else None


def list_offences(con: Connection, instance: Address, first_round: int) -> list[OffenceRow]:
    """Those of this round and later ones, newest first."""
    rows = con.execute(
        f"SELECT {_COLUMNS} FROM validator_offences WHERE instance = ? AND round >= ?"
        " ORDER BY round DESC, evidence_hash",
        (instance, first_round),
    )
    return [_offence(row) for row in rows]


def set_offence_state(con: Connection, instance: Address, evidence_hash: bytes, state: OffenceState) -> None:
    con.execute(
        "UPDATE validator_offences SET state = ? WHERE instance = ? AND evidence_hash = ?",
        (state.value, instance, evidence_hash),
    )


def insert_slash(con: Connection, instance: Address, order: Slash) -> None:
    """Record an order before it is signed; one that stands there stays."""
    con.execute(
        "INSERT INTO validator_slashes VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT DO NOTHING",
        (instance, order.epoch, order.evidence_hash, order.node, order.bps),
    )


def set_slash_signature(con: Connection, instance: Address, order: Slash, signature: bytes) -> None:
    con.execute(
        "UPDATE validator_slashes SET signature = ? WHERE instance = ? AND epoch = ? AND evidence_hash = ?",
        (signature, instance, order.epoch, order.evidence_hash),
    )


def list_slashes(con: Connection, instance: Address, epoch: int) -> list[SlashRow]:
    """The orders of an epoch, signed or not."""
    rows = con.execute(
        "SELECT node, bps, evidence_hash, epoch, signature FROM validator_slashes"
        " WHERE instance = ? AND epoch = ? ORDER BY evidence_hash",
        (instance, epoch),
    )
    return [SlashRow(Slash(row[0], row[1], bytes(row[2]), row[3]), row[4]) for row in rows]


def list_double_seals(
    con: Connection, instance: Address, hub: Address, first_round: int
) -> list[tuple[tuple[BundleSeal, bytes], tuple[BundleSeal, bytes]]]:
    """Of every round of which two seals were seen, the first two."""
    rows = con.execute(
        "SELECT round, bundle_hash, seal FROM validator_bundles b WHERE instance = ? AND round >= ? AND 1 <"
        " (SELECT count(*) FROM validator_bundles c WHERE c.instance = b.instance AND c.round = b.round)"
        " ORDER BY round, fetched_at_ms, bundle_hash",
        (instance, first_round),
    )
    seals: dict[int, list[tuple[BundleSeal, bytes]]] = {}
    for index, bundle_hash, seal in rows:
        seals.setdefault(index, []).append((BundleSeal(hub, index, bundle_hash), seal))
    return [(found[0], found[1]) for found in seals.values()]


def list_double_roots(
    con: Connection, instance: Address, first_round: int
) -> list[tuple[Address, tuple[bytes, bytes], tuple[bytes, bytes]]]:
    """Validators of whom two attestations of a round are held: (author, first, second) as (data, signature)."""
    rows = con.execute(
        "SELECT i.author, i.data, i.signature, c.data, c.signature FROM validator_items i"
        " JOIN validator_conflicts c ON c.instance = i.instance AND c.round = i.round AND c.kind = i.kind"
        " AND c.author = i.author WHERE i.instance = ? AND i.kind = 'round_root' AND i.round >= ?"
        " AND i.signature IS NOT NULL GROUP BY i.round, i.author",
        (instance, first_round),
    )
    return [(Address(row[0]), (row[1], row[2]), (row[3], row[4])) for row in rows]


def list_double_results(
    con: Connection, instance: Address, first_round: int
) -> list[tuple[tuple[bytes, bytes], tuple[bytes, bytes]]]:
    """Of every validator and round of which two results are held: both as (data, signature)."""
    rows = con.execute(
        "SELECT i.data, i.signature, c.data, c.signature FROM validator_items i"
        " JOIN validator_conflicts c ON c.instance = i.instance AND c.round = i.round AND c.kind = i.kind"
        " AND c.author = i.author WHERE i.instance = ? AND i.kind = 'results' AND i.round >= ?"
        " AND i.signature IS NOT NULL ORDER BY i.round, i.author",
        (instance, first_round),
    )
    return [((row[0], row[1]), (row[2], row[3])) for row in rows]


def list_roots(con: Connection, instance: Address, round_index: int) -> list[tuple[Address, bytes, bytes]]:
    """Every attestation of a round that is held, second ones too: (author, data, signature)."""
    rows = con.execute(
        "SELECT author, data, signature FROM validator_items WHERE instance = ?1 AND round = ?2"
        " AND kind = 'round_root' AND signature IS NOT NULL"
        " UNION ALL SELECT author, data, signature FROM validator_conflicts"
        " WHERE instance = ?1 AND round = ?2 AND kind = 'round_root' ORDER BY author LIMIT 128",
        (instance, round_index),
    )
    return [(Address(row[0]), bytes(row[1]), bytes(row[2])) for row in rows]


def list_covered_strikes(
    con: Connection, instance: Address, round_index: int, bundle_hash: bytes
) -> list[StandingStrike]:
    """Convictions of the bundles signed here on which this one builds, itself included."""
    found = []
    while row := con.execute(
        "SELECT previous_round FROM validator_settled WHERE instance = ? AND round = ? AND bundle_hash = ?",
        (instance, round_index, bundle_hash),
    ).fetchone():
        strikes = con.execute(
            "SELECT kind, node, round, bundle_hash FROM validator_strikes"
            " WHERE instance = ? AND round = ? AND bundle_hash = ?",
            (instance, round_index, bundle_hash),
        )
        found += [StandingStrike(*item) for item in strikes]
        round_index = row[0]
        below = con.execute(
            "SELECT bundle_hash FROM validator_settled WHERE instance = ? AND round = ?",
            (instance, round_index),
        ).fetchone()
        if below is None:
            break
        bundle_hash = below[0]
    return found


def prune_offences(con: Connection, instance: Address, before_round: int, before_epoch: int) -> None:
    """Drop offences and orders that no chain takes any more; sign-once rows stay for ever."""
    con.execute("DELETE FROM validator_offences WHERE instance = ? AND round < ?", (instance, before_round))
    con.execute("DELETE FROM validator_slashes WHERE instance = ? AND epoch < ?", (instance, before_epoch))


def _offence(row: Row) -> OffenceRow:
    return OffenceRow(
        bytes(row[0]), Offence(row[1], Address(row[2]), row[3]), bytes(row[4]), OffenceState(row[5])
    )
