"""Extraction requests on disk: what was asked, what happened to it. SQL and nothing else.

How far an open request is follows from publications and time (`emcd.accounting.payout`); stored are
its end by the contract's events, the settler's word, and the last time it went back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from emcd.accounting.payout import Back, ExtractionState
from emcd.ledger import Connection, Row
from emcd.money import encode_wei
from emcd.proto.messages import Extraction
from emcd.types import Address

MAX_OPEN = 20
"""Of one wallet: nonces may skip, so a wallet could ask without end."""
PAGE = 100
OPEN_PAGE = 1000

_encode = msgspec.msgpack.Encoder().encode
_OPEN = "state = 'requested' AND (deadline_s IS NULL OR deadline_s >= ?)"
_MAX_SQL = 2**62


class Asked(Enum):
    """What came of a request."""

    TAKEN = "taken"
    REPEATED = "repeated"
    NONCE_USED = "nonce used"
    TOO_MANY = "too many"


@dataclass(frozen=True)
class ExtractionRow:
    """A request as it is stored: `state` is requested, claimed or refused."""

    extraction: Extraction
    signature: bytes
    state: str
    reason: str
    requested_at_ms: int
    ended_at_ms: int | None = None
    final_tx: bytes | None = None
    submitted_tx: bytes | None = None
    submitted_at_ms: int = 0
    submitted_by: str = ""
    note: str = ""
    note_at_ms: int = 0
    note_by: str = ""
    back_from: str | None = None
    back_why: str | None = None
    back_at_ms: int = 0

    @property
    def request_id(self) -> str:
        return f"{self.extraction.wallet}-{self.extraction.nonce}"

    @property
    def key(self) -> tuple[Address, int]:
        return self.extraction.wallet, self.extraction.nonce


def insert_extraction(con: Connection, extraction: Extraction, signature: bytes, now_ms: int) -> Asked:
    """Keep a request, once per wallet and nonce."""
    found = find_extraction(con, extraction.wallet, extraction.nonce)
    if found is not None:
        return Asked.REPEATED if found.extraction == extraction else Asked.NONCE_USED
    (count,) = con.execute(
        f"SELECT count(*) FROM hub_extractions WHERE wallet = ? AND {_OPEN}",
        (extraction.wallet, now_ms // 1000),
    ).fetchone()
    if count >= MAX_OPEN:
        return Asked.TOO_MANY
    con.execute(
        "INSERT INTO hub_extractions (wallet, nonce, extraction, signature, state, reason, requested_at_ms,"
        " deadline_s) VALUES (?, ?, ?, ?, 'requested', '', ?, ?)",
        (
            extraction.wallet,
            encode_wei(extraction.nonce),
            _pack(extraction),
            signature,
            now_ms,
            min(extraction.deadline, _MAX_SQL),
        ),
    )
    return Asked.TAKEN


def find_extraction(con: Connection, wallet: Address, nonce: int) -> ExtractionRow | None:
    row = con.execute(
        "SELECT * FROM hub_extractions WHERE wallet = ? AND nonce = ?", (wallet, encode_wei(nonce))
    ).fetchone()
    return None if row is None else _row(row)


def list_wallet_extractions(
    con: Connection, wallet: Address, limit: int = PAGE, before: tuple[int, int] | None = None
) -> list[ExtractionRow]:
    """A wallet's requests, newest first; `before`: (requested_at_ms, nonce) of the last one seen."""
    at_ms, nonce = before or (_MAX_SQL, 0)
    rows = con.execute(
        "SELECT * FROM hub_extractions WHERE wallet = ? AND (requested_at_ms, nonce) < (?, ?)"
        " ORDER BY requested_at_ms DESC, nonce DESC LIMIT ?",
        (wallet, at_ms, encode_wei(nonce), limit),
    )
    return [_row(row) for row in rows]


def list_open_extractions(
    con: Connection, now_ms: int, limit: int = OPEN_PAGE, after: tuple[int, Address, int] | None = None
) -> list[ExtractionRow]:
    """Requests of all wallets that have neither ended nor expired, oldest first.

    Args: `after`: (requested_at_ms, wallet, nonce) of the last one seen.
    """
    at_ms, wallet, nonce = after or (-1, "", 0)
    rows = con.execute(
        f"SELECT * FROM hub_extractions WHERE {_OPEN} AND (requested_at_ms, wallet, nonce) > (?, ?, ?)"
        " ORDER BY requested_at_ms, wallet, nonce LIMIT ?",
        (now_ms // 1000, at_ms, wallet, encode_wei(nonce), limit),
    )
    return [_row(row) for row in rows]


def list_touched(con: Connection, number: int, now_ms: int) -> list[ExtractionRow]:
    """Open requests, and those that ended in blocks above `number`."""
    rows = con.execute(
        f"SELECT * FROM hub_extractions WHERE {_OPEN} OR final_block > ?", (now_ms // 1000, number)
    )
    return [_row(row) for row in rows]


def end_used(con: Connection, wallet: Address, nonce: int, block: int, tx_hash: bytes, now_ms: int) -> None:
    """The contract paid on a request: it is claimed, and those with lower nonces are void."""
    con.execute(
        "UPDATE hub_extractions SET state = 'claimed', final_block = ?, final_tx = ?, ended_at_ms = ?"
        " WHERE wallet = ? AND nonce = ? AND state = 'requested'",
        (block, tx_hash, now_ms, wallet, encode_wei(nonce)),
    )
    end_below(con, wallet, nonce, block, now_ms, "a request with a higher nonce was paid")


def end_below(con: Connection, wallet: Address, nonce: int, block: int, now_ms: int, reason: str) -> None:
    """Requests with lower nonces can't be paid any more."""
    con.execute(
        "UPDATE hub_extractions SET state = 'refused', reason = ?, final_block = ?, ended_at_ms = ?"
        " WHERE wallet = ? AND nonce < ? AND state = 'requested'",
        (reason, block, now_ms, wallet, encode_wei(nonce)),
    )


def end_claimed(
    con: Connection, wallet: Address, through_round: int, block: int, tx_hash: bytes, now_ms: int
) -> None:
    """The wallet was paid up to a round, by whatever transaction: what it asked for is done."""
    rows = con.execute("SELECT * FROM hub_extractions WHERE wallet = ? AND state = 'requested'", (wallet,))
    for row in [_row(row) for row in rows]:
        if row.extraction.through_round <= through_round:
            con.execute(
                "UPDATE hub_extractions SET state = 'claimed', final_block = ?, final_tx = ?, ended_at_ms = ?"
                " WHERE wallet = ? AND nonce = ?",
                (block, tx_hash, now_ms, wallet, encode_wei(row.extraction.nonce)),
            )


def undo_ends_above(con: Connection, number: int) -> None:
    """Open again what ended in blocks that are no more."""
    con.execute(
        "UPDATE hub_extractions SET state = 'requested', reason = '', final_block = NULL, final_tx = NULL,"
        " ended_at_ms = NULL WHERE final_block > ?",
        (number,),
    )


def set_submitted(con: Connection, row: ExtractionRow, tx_hash: bytes, by: Address, now_ms: int) -> None:
    """A settler says that it sent the claim."""
    con.execute(
        "UPDATE hub_extractions SET submitted_tx = ?, submitted_by = ?, submitted_at_ms = ?, note = ''"
        " WHERE wallet = ? AND nonce = ?",
        (tx_hash, by, now_ms, row.extraction.wallet, encode_wei(row.extraction.nonce)),
    )


def set_note(con: Connection, row: ExtractionRow, text: str, by: Address, now_ms: int) -> None:
    """A settler says why it does not go on; what it had submitted came to nothing."""
    con.execute(
        "UPDATE hub_extractions SET note = ?, note_by = ?, note_at_ms = ?, submitted_tx = NULL,"
        " submitted_by = NULL, submitted_at_ms = NULL WHERE wallet = ? AND nonce = ?",
        (text, by, now_ms, row.extraction.wallet, encode_wei(row.extraction.nonce)),
    )


def set_back(
    con: Connection, moved: Mapping[tuple[Address, int], ExtractionState], why: Back, now_ms: int
) -> None:
    """Note that requests went back: from which state, by which move."""
    con.executemany(
        "UPDATE hub_extractions SET back_from = ?, back_why = ?, back_at_ms = ?"
        " WHERE wallet = ? AND nonce = ?",
        [
            (state.value, why.value, now_ms, wallet, encode_wei(nonce))
            for (wallet, nonce), state in moved.items()
        ],
    )


def clear_submitted(con: Connection, keys: Sequence[tuple[Address, int]]) -> None:
    """What was submitted against a root that is gone has come to nothing."""
    con.executemany(
        "UPDATE hub_extractions SET submitted_tx = NULL, submitted_by = NULL, submitted_at_ms = NULL"
        " WHERE wallet = ? AND nonce = ?",
        [(wallet, encode_wei(nonce)) for wallet, nonce in keys],
    )


def _pack(extraction: Extraction) -> bytes:
    """msgpack has no integers of 256 bits: nonce and deadline go as text."""
    values = [getattr(extraction, name) for name in extraction.__struct_fields__]
    return _encode([str(value) if type(value) is int else value for value in values])


def _row(row: Row) -> ExtractionRow:
    wallet, recipient, through_round, submit, nonce, deadline = msgspec.msgpack.decode(row["extraction"])
    extraction = Extraction(wallet, recipient, int(through_round), submit, int(nonce), int(deadline))
    return ExtractionRow(
        extraction,
        bytes(row["signature"]),
        row["state"],
        row["reason"],
        row["requested_at_ms"],
        row["ended_at_ms"],
        _bytes(row["final_tx"]),
        _bytes(row["submitted_tx"]),
        row["submitted_at_ms"] or 0,
        row["submitted_by"] or "",
        row["note"],
        row["note_at_ms"] or 0,
        row["note_by"] or "",
        row["back_from"],
        row["back_why"],
        row["back_at_ms"] or 0,
    )


def _bytes(value: bytes | None) -> bytes | None:
    return None if value is None else bytes(value)
