"""Extraction requests on disk. SQL and nothing else.

What is stored is what was asked and how it ended; whether an open one is synchronised follows
from the active root.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from emcd.ledger import Connection, Row
from emcd.money import encode_wei
from emcd.proto.messages import Extraction
from emcd.types import Address

MAX_OPEN = 20
"""Of one wallet: nonces may skip, so a wallet could ask without end."""

_encode = msgspec.msgpack.Encoder().encode


class Asked(Enum):
    """What came of a request."""

    TAKEN = "taken"
    REPEATED = "repeated"
    NONCE_USED = "nonce used"
    TOO_MANY = "too many"


@dataclass(frozen=True)
class ExtractionRow:
    """A request as it stands: requested, claimed or refused."""

    extraction: Extraction
    signature: bytes
    state: str
    reason: str
    requested_at_ms: int

    @property
    def request_id(self) -> str:
        return f"{self.extraction.wallet}-{self.extraction.nonce}"


def insert_extraction(con: Connection, extraction: Extraction, signature: bytes, now_ms: int) -> Asked:
    """Keep a request, once per wallet and nonce."""
    found = find_extraction(con, extraction.wallet, extraction.nonce)
    if found is not None:
        return Asked.REPEATED if found.extraction == extraction else Asked.NONCE_USED
    (count,) = con.execute(
        "SELECT count(*) FROM hub_extractions WHERE wallet = ? AND state = 'requested'", (extraction.wallet,)
    ).fetchone()
    if count >= MAX_OPEN:
        return Asked.TOO_MANY
    con.execute(
        "INSERT INTO hub_extractions VALUES (?, ?, ?, ?, 'requested', '', ?, NULL)",
        (extraction.wallet, encode_wei(extraction.nonce), _pack(extraction), signature, now_ms),
    )
    return Asked.TAKEN


def find_extraction(con: Connection, wallet: Address, nonce: int) -> ExtractionRow | None:
    row = con.execute(
        "SELECT * FROM hub_extractions WHERE wallet = ? AND nonce = ?", (wallet, encode_wei(nonce))
    ).fetchone()
    return None if row is None else _row(row)


def list_wallet_extractions(con: Connection, wallet: Address, limit: int = 100) -> list[ExtractionRow]:
    """A wallet's requests, oldest first."""
    rows = con.execute(
        "SELECT * FROM hub_extractions WHERE wallet = ? ORDER BY nonce LIMIT ?", (wallet, limit)
    )
    return [_row(row) for row in rows]


def list_open_extractions(con: Connection, limit: int = 1000) -> list[ExtractionRow]:
    """Requests of all wallets that have not ended, oldest first."""
    rows = con.execute(
        "SELECT * FROM hub_extractions WHERE state = 'requested' ORDER BY requested_at_ms LIMIT ?", (limit,)
    )
    return [_row(row) for row in rows]


def end_used(con: Connection, wallet: Address, nonce: int, block: int) -> None:
    """The contract paid on a request: it is claimed, and those with lower nonces are void."""
    con.execute(
        "UPDATE hub_extractions SET state = 'claimed', final_block = ?"
        " WHERE wallet = ? AND nonce = ? AND state = 'requested'",
        (block, wallet, encode_wei(nonce)),
    )
    end_below(con, wallet, nonce, block, "a request with a higher nonce was paid")


def end_below(con: Connection, wallet: Address, nonce: int, block: int, reason: str) -> None:
    """Requests with lower nonces can't be paid any more."""
    con.execute(
        "UPDATE hub_extractions SET state = 'refused', reason = ?, final_block = ?"
        " WHERE wallet = ? AND nonce < ? AND state = 'requested'",
        (reason, block, wallet, encode_wei(nonce)),
    )


def end_claimed(con: Connection, wallet: Address, through_round: int, block: int) -> None:
    """The wallet claimed by itself: what it asked for without a submitter is done."""
    for row in list_wallet_extractions(con, wallet):
        asked = row.extraction
        if row.state == "requested" and not asked.submit and asked.through_round <= through_round:
            con.execute(
                "UPDATE hub_extractions SET state = 'claimed', final_block = ?"
                " WHERE wallet = ? AND nonce = ?",
                (block, wallet, encode_wei(asked.nonce)),
            )


def undo_ends_above(con: Connection, number: int) -> None:
    """Open again what ended in blocks that are no more."""
    con.execute(
        "UPDATE hub_extractions SET state = 'requested', reason = '', final_block = NULL"
        " WHERE final_block > ?",
        (number,),
    )


def _pack(extraction: Extraction) -> bytes:
    """msgpack has no integers of 256 bits: nonce and deadline go as text."""
    values = [getattr(extraction, name) for name in extraction.__struct_fields__]
    return _encode([str(value) if type(value) is int else value for value in values])


def _row(row: Row) -> ExtractionRow:
    wallet, recipient, through_round, submit, nonce, deadline = msgspec.msgpack.decode(row["extraction"])
    extraction = Extraction(wallet, recipient, int(through_round), submit, int(nonce), int(deadline))
    return ExtractionRow(
        extraction, bytes(row["signature"]), row["state"], row["reason"], row["requested_at_ms"]
    )
