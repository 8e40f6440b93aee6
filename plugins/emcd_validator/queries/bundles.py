"""Bundles a hub sealed, what became of them, and the chain of those this validator builds on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from emcd.accounting.offence import StandingStrike
from emcd.accounting.suspension import Conduct
from emcd.ledger import Connection, Row
from emcd.types import Address
from emcd_validator.queries.settled_calls import insert_settled_calls

KEPT_TOTALS = 3
"""Rounds whose totals are kept: the next bundle builds on one of the newest."""


@dataclass(frozen=True)
class BundleRow:
    """A sealed bundle; `code` is empty while undecided or when it was signed."""

    round: int
    bundle_hash: bytes
    seal: bytes
    code: str
    reason: str


@dataclass(frozen=True)
class SettledRound:
    """A bundle on which the next one may build, with the state after it."""

    round: int
    bundle_hash: bytes
    root: bytes
    previous_round: int
    totals: Mapping[Address, int]
    conduct: Mapping[Address, Conduct]
    vault_used_micro: int
    is_signed: bool
    convictions: tuple[StandingStrike, ...] = ()
    """Of a bundle that is signed here, when it is written; reading leaves them where they are."""


_conduct_decoder = msgspec.json.Decoder(dict[str, Conduct])
_totals_decoder = msgspec.msgpack.Decoder(dict[str, bytes])


def insert_bundle(
    con: Connection, instance: Address, round_index: int, bundle_hash: bytes, seal: bytes, now_ms: int
) -> list[bytes]:
    """Keep a seal. Returns: every hash that the hub sealed for the round, this one included."""
    con.execute(
        "INSERT INTO validator_bundles (instance, round, bundle_hash, seal, fetched_at_ms)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (instance, round_index, bundle_hash, seal, now_ms),
    )
    rows = con.execute(
        "SELECT bundle_hash FROM validator_bundles WHERE instance = ? AND round = ? ORDER BY rowid",
        (instance, round_index),
    )
    return [row[0] for row in rows]


def list_bundles(con: Connection, instance: Address, round_index: int) -> list[BundleRow]:
    rows = con.execute(
        "SELECT round, bundle_hash, seal, code, reason FROM validator_bundles"
        " WHERE instance = ? AND round = ? ORDER BY rowid",
        (instance, round_index),
    )
    return [BundleRow(*row) for row in rows]


def set_refusal(
    con: Connection, instance: Address, round_index: int, bundle_hash: bytes, code: str, reason: str
) -> None:
    """Write down why a bundle is not signed."""
    con.execute(
        "UPDATE validator_bundles SET code = ?, reason = ?"
        " WHERE instance = ? AND round = ? AND bundle_hash = ?",
        (code, reason, instance, round_index, bundle_hash),
    )


def insert_settled(
    con: Connection,
    instance: Address,
    settled: SettledRound,
    call_ids: bytes,
    deposits: Iterable[int],
) -> None:
    """Build on a bundle from now on: its totals, conduct, calls and deposits."""
    delete_settled(con, instance, settled.round)
    con.execute(
        "INSERT INTO validator_settled VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            instance,
            settled.round,
            settled.bundle_hash,
            settled.root,
            settled.previous_round,
            msgspec.msgpack.encode(
                {wallet: wei.to_bytes(32, "big") for wallet, wei in settled.totals.items()}
            ),
            msgspec.json.encode(settled.conduct),
            settled.vault_used_micro,
            int(settled.is_signed),
        ),
    )
    con.executemany(
        "INSERT INTO validator_strikes VALUES (?, ?, ?, ?, ?)",
        [(instance, item.round, item.node, item.kind, item.bundle_hash) for item in settled.convictions],
    )
    insert_settled_calls(con, instance, settled.round, call_ids)
    con.executemany(
        "INSERT INTO validator_settled_deposits VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(instance, index, settled.round) for index in deposits],
    )
    con.execute(
        "UPDATE validator_settled SET totals = x'80' WHERE instance = ? AND round < ("
        " SELECT min(round) FROM ("
        " SELECT round FROM validator_settled WHERE instance = ? ORDER BY round DESC LIMIT ?))",
        (instance, instance, KEPT_TOTALS),
    )


def find_settled(con: Connection, instance: Address, round_index: int) -> SettledRound | None:
    row = con.execute(
        "SELECT * FROM validator_settled WHERE instance = ? AND round = ?", (instance, round_index)
    ).fetchone()
    return _read_settled(row) if row else None


def find_last_settled(con: Connection, instance: Address, before_round: int) -> SettledRound | None:
    """The newest round before this one that it builds on."""
    row = con.execute(
        "SELECT * FROM validator_settled WHERE instance = ? AND round < ? ORDER BY round DESC LIMIT 1",
        (instance, before_round),
    ).fetchone()
    return _read_settled(row) if row else None


def delete_settled(con: Connection, instance: Address, round_index: int) -> None:
    """Stop building on a round that came to nothing, and free its calls for a later one."""
    for table in (
        "validator_settled",
        "validator_settled_ids",
        "validator_settled_deposits",
        "validator_strikes",
    ):
        con.execute(f"DELETE FROM {table} WHERE instance = ? AND round = ?", (instance, round_index))


def list_settled_deposits(con: Connection, instance: Address, before_round: int) -> frozenset[int]:
    """Indices of the deposits that earlier bundles credited."""
    rows = con.execute(
        "SELECT deposit_index FROM validator_settled_deposits WHERE instance = ? AND round < ?",
        (instance, before_round),
    )
    return frozenset(row[0] for row in rows)


def prune_bundles(con: Connection, instance: Address, before_round: int) -> None:
    """Drop seals and settled calls of rounds before this one; the newest settled round stays."""
    for table in ("validator_bundles", "validator_settled_ids", "validator_strikes"):
        con.execute(f"DELETE FROM {table} WHERE instance = ? AND round < ?", (instance, before_round))
    con.execute(
        "DELETE FROM validator_settled WHERE instance = ? AND round < ? AND round < ("
        " SELECT max(round) FROM validator_settled WHERE instance = ?)",
        (instance, before_round, instance),
    )


def _read_settled(row: Row) -> SettledRound:
    totals = {
        Address(w): int.from_bytes(raw, "big") for w, raw in _totals_decoder.decode(row["totals"]).items()
    }
    conduct = {Address(node): item for node, item in _conduct_decoder.decode(row["conduct"]).items()}
    return SettledRound(
        row["round"],
        row["bundle_hash"],
        row["root"],
        row["previous_round"],
        totals,
        conduct,
        row["vault_used_micro"],
        bool(row["is_signed"]),
    )
