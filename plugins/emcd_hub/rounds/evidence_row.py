"""What validators said of a round, on disk: the first of a kind and key stays. SQL and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from emcd.ledger import Connection
from emcd.proto.address import address_bytes
from emcd.proto.bundle import CommitmentEntry, RevealEntry, StatusEntry, VoteEntry
from emcd.types import Address
from emcd_hub.rounds.statement import Attestation, Statements

Kind = Literal["commitment", "reveal", "vote", "attestation", "refusal"]

_encode = msgspec.msgpack.Encoder().encode
_status = msgspec.msgpack.Decoder(StatusEntry).decode
_commitment = msgspec.msgpack.Decoder(CommitmentEntry).decode
_reveal = msgspec.msgpack.Decoder(RevealEntry).decode
_vote = msgspec.msgpack.Decoder(VoteEntry).decode
_encode_attestation = msgspec.json.Encoder().encode  # cumulative wei is more than msgpack holds
_attestation = msgspec.json.Decoder(Attestation).decode
_refusal = msgspec.msgpack.Decoder(tuple[str, str]).decode


def insert_statements(con: Connection, index: int, found: Statements) -> int:
    """Keep statements that are new. Returns: how many were."""
    rows = [
        *(
            (index, "commitment", address_bytes(e.commitment.validator), _encode(e))
            for e in found.commitments
        ),
        *((index, "reveal", address_bytes(e.reveal.validator), _encode(e)) for e in found.reveals),
        *((index, "vote", e.vote.call_id + address_bytes(e.vote.validator), _encode(e)) for e in found.votes),
    ]
    before = con.total_changes
    con.executemany("INSERT INTO hub_evidence VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", rows)
    return con.total_changes - before


def insert_attestation(con: Connection, index: int, validator: Address, item: Attestation) -> None:
    """Keep a validator's signature; a refusal before it is forgotten."""
    key = address_bytes(validator)
    con.execute(
        "INSERT INTO hub_evidence VALUES (?, 'attestation', ?, ?) ON CONFLICT DO NOTHING",
        (index, key, _encode_attestation(item)),
    )
    con.execute("DELETE FROM hub_evidence WHERE round = ? AND kind = 'refusal' AND key = ?", (index, key))


def upsert_refusal(con: Connection, index: int, validator: Address, code: str, reason: str) -> None:
    """Keep why a validator does not sign, as it says now."""
    con.execute(
        "INSERT OR REPLACE INTO hub_evidence VALUES (?, 'refusal', ?, ?)",
        (index, address_bytes(validator), _encode((code, reason))),
    )


def list_known(con: Connection, index: int, kind: Kind) -> set[bytes]:
    """The keys of what is held."""
    rows = con.execute("SELECT key FROM hub_evidence WHERE round = ? AND kind = ?", (index, kind))
    return {bytes(row[0]) for row in rows}


def list_commitments(con: Connection, index: int) -> list[CommitmentEntry]:
    return [_commitment(entry) for entry in _entries(con, index, "commitment")]


def list_reveals(con: Connection, index: int) -> list[RevealEntry]:
    return [_reveal(entry) for entry in _entries(con, index, "reveal")]


def list_votes(con: Connection, index: int) -> list[VoteEntry]:
    return [_vote(entry) for entry in _entries(con, index, "vote")]


def list_attestations(con: Connection, index: int) -> dict[bytes, Attestation]:
    """By the 20 bytes of the validator."""
    rows = con.execute(
        "SELECT key, entry FROM hub_evidence WHERE round = ? AND kind = 'attestation' ORDER BY key", (index,)
    )
    return {bytes(row[0]): _attestation(row[1]) for row in rows}


def list_refusals(con: Connection, index: int) -> dict[bytes, tuple[str, str]]:
    """(code, reason) by the 20 bytes of the validator."""
    rows = con.execute("SELECT key, entry FROM hub_evidence WHERE round = ? AND kind = 'refusal'", (index,))
    return {bytes(row[0]): _refusal(row[1]) for row in rows}


def list_statuses(con: Connection, index: int) -> list[StatusEntry]:
    rows = con.execute("SELECT entry FROM hub_statuses WHERE round = ? ORDER BY node", (index,))
    return [_status(row[0]) for row in rows]


def _entries(con: Connection, index: int, kind: Kind) -> Sequence[bytes]:
    rows = con.execute(
        "SELECT entry FROM hub_evidence WHERE round = ? AND kind = ? ORDER BY key", (index, kind)
    )
    return [bytes(row[0]) for row in rows]
