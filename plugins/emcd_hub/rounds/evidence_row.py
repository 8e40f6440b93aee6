"""What validators said of a round, on disk.

The first attestation of a validator stays. Of the other statements an author may have a few that
differ on record, each under its subject and a part of its own hash: who shows another one to the
hub than to its peers makes no bundle incomplete, and whoever closes the round takes the first that
is valid. Invariant: what can't stand in a bundle fills nobody's places: a reveal opens a commitment
on record, a vote is about the receipt that the hub delivered, or says that it saw none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from emcd.ledger import Connection
from emcd.proto.address import address_bytes
from emcd.proto.bundle import CommitmentEntry, RevealEntry, StatusEntry, VoteEntry
from emcd.proto.hashing import keccak
from emcd.proto.messages import Verdict, Vote
from emcd.types import ZERO_HASH, Address
from emcd_hub.records.call_row import find_call
from emcd_hub.rounds.statement import Attestation, Statements, opened_by

Kind = Literal["commitment", "reveal", "vote", "attestation", "refusal"]

MAX_DIFFERENT = 4
_ADDRESS_BYTES = 20
_HASH_BYTES = 8

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
    before = con.total_changes
    for plan in found.commitments:
        _insert(con, index, "commitment", address_bytes(plan.commitment.validator), _encode(plan))
    plans = {(e.commitment.validator, e.commitment.commitment) for e in list_commitments(con, index)}
    for entry in found.reveals:
        opened = opened_by(entry.reveal)
        if (entry.reveal.validator, opened) in plans:
            subject = address_bytes(entry.reveal.validator) + opened[:_HASH_BYTES]
            _insert(con, index, "reveal", subject, _encode(entry))
    for vote in found.votes:
        call = find_call(con, vote.vote.call_id)
        if call is not None and _is_about(vote.vote, call.delivery.receipt_hash):
            subject = vote.vote.call_id + address_bytes(vote.vote.validator)
            _insert(con, index, "vote", subject, _encode(vote))
    return con.total_changes - before


def _is_about(vote: Vote, receipt_hash: bytes) -> bool:
    """Whether a vote is about the receipt that was delivered, or says that no evidence of it was shown."""
    saw_nothing = vote.verdict == Verdict.ERROR and vote.receipt_hash == ZERO_HASH
    return saw_nothing or vote.receipt_hash == receipt_hash


def _insert(con: Connection, index: int, kind: Kind, subject: bytes, entry: bytes) -> None:
    """Keep a statement, unless its author has said enough about the subject."""
    (held,) = con.execute(
        "SELECT count(*) FROM hub_evidence WHERE round = ? AND kind = ? AND key > ? AND key < ?",
        (index, kind, subject, subject + b"\xff" * (_HASH_BYTES + 1)),
    ).fetchone()
    if held < MAX_DIFFERENT:
        con.execute(
            "INSERT INTO hub_evidence VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (index, kind, subject + keccak(entry)[:_HASH_BYTES], entry),
        )


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
    """The 20 bytes of every validator of which something is held; not for votes."""
    rows = con.execute("SELECT key FROM hub_evidence WHERE round = ? AND kind = ?", (index, kind))
    return {bytes(row[0])[:_ADDRESS_BYTES] for row in rows}


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
