"""Extraction requests on disk. SQL and nothing else.

The states are those of `emcd.accounting.payout`, as far as a settler acts on them: requested (waiting
for a root, or worth too little for now) -> synchronised (an active root covers it, amount and proof
are chosen) -> submitted -> claimed, or refused or expired with a reason. One that the wallet claims
by itself stays synchronised, without a proof. A claim that the chain took back is submitted again.
`reported` is what the hubs were told last. Key: wallet and nonce, for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from emcd.accounting.payout import ExtractionState
from emcd.ledger import Connection, Row
from emcd.money import decode_wei, encode_wei
from emcd.proto.messages import Extraction
from emcd.types import Address, Hash

MAX_OPEN = 4096
"""Of all wallets: what a hub lists is not believed, so it can't fill the disk either."""
MAX_OPEN_OF_HUB = 1024
MAX_OPEN_OF_WALLET = 4
"""One request through the newest round asks for everything: more of them wait at the hub."""

_OPEN = "(state IN ('requested', 'submitted') OR (state = 'synchronised' AND proof IS NOT NULL))"


@dataclass(frozen=True)
class ExtractionRow:
    """A request, and what the settler chose to send for it."""

    extraction: Extraction
    signature: bytes
    state: ExtractionState
    attempt: int
    cumulative_wei: int
    proof: tuple[Hash, ...]
    reason: str
    tx_hash: bytes | None
    changed_at_ms: int
    reported: str = ""

    @property
    def wallet(self) -> Address:
        return self.extraction.wallet


def insert_request(
    con: Connection,
    instance: str,
    extraction: Extraction,
    signature: bytes,
    now_ms: int,
    *,
    hub: str = "",
    empty: Collection[Address] = (),
) -> bool:
    """Keep a request, once per wallet and nonce; the first stays.

    Args: `hub`: whoever listed it; `empty`: wallets that a root gave nothing: they make room.
    Returns: False when it is not new, or one too many.
    """
    if find_request(con, instance, extraction.wallet, extraction.nonce) is not None:
        return False
    if _count_open(con, instance, "wallet = ?", extraction.wallet) >= MAX_OPEN_OF_WALLET:
        return False
    if _count_open(con, instance, "hub = ?", hub) >= MAX_OPEN_OF_HUB:
        limits = ("hub = ?", hub)
    elif _count_open(con, instance, "? = ''", "") >= MAX_OPEN:
        limits = ("? = ''", "")
    else:
        limits = None
    if limits is not None and not _make_room(con, instance, extraction, limits, empty):
        return False
    done = con.execute(
        "INSERT INTO settler_extractions (instance, wallet, nonce, recipient, through_round, submit,"
        " deadline, signature, state, changed_at_ms, hub) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'requested', ?, ?)"
        " ON CONFLICT DO NOTHING",
        (
            instance,
            extraction.wallet,
            encode_wei(extraction.nonce),
            extraction.recipient,
            extraction.through_round,
            int(extraction.submit),
            encode_wei(extraction.deadline),
            signature,
            now_ms,
            hub,
        ),
    )
    return bool(done.rowcount)


def _count_open(con: Connection, instance: str, which: str, value: str) -> int:
    sql = f"SELECT count(*) FROM settler_extractions WHERE instance = ? AND {which} AND {_OPEN}"
    return int(con.execute(sql, (instance, value)).fetchone()[0])


def _make_room(
    con: Connection, instance: str, new: Extraction, limits: tuple[str, str], empty: Collection[Address]
) -> bool:
    """Forget a waiting request that matters less than the new one; the hub lists it still.

    First those of wallets that have nothing, then those for later rounds, the oldest first.
    """
    which, value = limits
    waiting = con.execute(
        "SELECT wallet, nonce, through_round FROM settler_extractions"
        f" WHERE instance = ? AND {which} AND state = 'requested' AND attempt = 0"
        " ORDER BY through_round DESC, changed_at_ms",
        (instance, value),
    ).fetchall()
    if new.wallet in empty:
        return False
    found = next((row for row in waiting if row["wallet"] in empty), waiting[0] if waiting else None)
    if found is None or not (found["wallet"] in empty or found["through_round"] > new.through_round):
        return False
    con.execute(
        "DELETE FROM settler_extractions WHERE instance = ? AND wallet = ? AND nonce = ?",
        (instance, found["wallet"], found["nonce"]),
    )
    return True


def list_open(con: Connection, instance: str) -> list[ExtractionRow]:
    """Requests that have not ended, a wallet's in the order of its nonces."""
    rows = con.execute(
        f"SELECT * FROM settler_extractions WHERE instance = ? AND {_OPEN} ORDER BY wallet, nonce",
        (instance,),
    )
    return [_row(row) for row in rows]


def find_request(con: Connection, instance: str, wallet: Address, nonce: int) -> ExtractionRow | None:
    row = con.execute(
        "SELECT * FROM settler_extractions WHERE instance = ? AND wallet = ? AND nonce = ?",
        (instance, wallet, encode_wei(nonce)),
    ).fetchone()
    return None if row is None else _row(row)


def set_synchronised(
    con: Connection,
    instance: str,
    row: ExtractionRow,
    cumulative_wei: int,
    proof: Sequence[bytes],
    now_ms: int,
) -> None:
    """Choose what will be claimed."""
    _update(
        con, instance, row, "state = 'synchronised', cumulative_wei = ?, proof = ?, changed_at_ms = ?",
        (encode_wei(cumulative_wei), b"".join(proof), now_ms),
    )  # fmt: skip


def set_submitted(con: Connection, instance: str, row: ExtractionRow, now_ms: int) -> None:
    _update(con, instance, row, "state = 'submitted', changed_at_ms = ?", (now_ms,))


def set_sent(con: Connection, instance: str, row: ExtractionRow, tx_hash: bytes) -> None:
    """The transaction under which the claim is on its way now."""
    _update(con, instance, row, "tx_hash = ?", (tx_hash,))


def set_held(con: Connection, instance: str, row: ExtractionRow, reason: str) -> None:
    """Why nothing is sent for now."""
    _update(con, instance, row, "reason = ?", (reason,))


def set_again(con: Connection, instance: str, row: ExtractionRow, reason: str, now_ms: int) -> None:
    """A claim ended without being paid, or its payment is gone: to be tried against the newest root."""
    _update(
        con, instance, row,
        "state = 'requested', attempt = attempt + 1, tx_hash = NULL, reason = ?, changed_at_ms = ?",
        (reason, now_ms),
    )  # fmt: skip


def set_reported(con: Connection, instance: str, row: ExtractionRow, reported: str) -> None:
    """The hubs were told this."""
    _update(con, instance, row, "reported = ?", (reported,))


def list_unreported(con: Connection, instance: str, since_ms: int) -> list[ExtractionRow]:
    """Requests that changed lately or are open: what the hubs may have to be told of."""
    rows = con.execute(
        f"SELECT * FROM settler_extractions WHERE instance = ? AND ({_OPEN} OR changed_at_ms >= ?)"
        " ORDER BY wallet, nonce",
        (instance, since_ms),
    )
    return [_row(row) for row in rows]


def list_claimed(con: Connection, instance: str, since_ms: int) -> list[ExtractionRow]:
    """Requests that were paid lately: a reorganisation may take that back."""
    rows = con.execute(
        "SELECT * FROM settler_extractions WHERE instance = ? AND state = 'claimed' AND changed_at_ms >= ?"
        " ORDER BY wallet, nonce",
        (instance, since_ms),
    )
    return [_row(row) for row in rows]


def set_ended(
    con: Connection,
    instance: str,
    row: ExtractionRow,
    state: ExtractionState,
    now_ms: int,
    *,
    reason: str = "",
    tx_hash: bytes | None = None,
) -> None:
    """Claimed, refused, or synchronised for the wallet to claim."""
    _update(
        con, instance, row, "state = ?, reason = ?, tx_hash = ?, changed_at_ms = ?",
        (state.value, reason, tx_hash, now_ms),
    )  # fmt: skip


def _update(
    con: Connection, instance: str, row: ExtractionRow, change: str, values: Sequence[object]
) -> None:
    con.execute(
        f"UPDATE settler_extractions SET {change} WHERE instance = ? AND wallet = ? AND nonce = ?",
        (*values, instance, row.wallet, encode_wei(row.extraction.nonce)),
    )


def _row(row: Row) -> ExtractionRow:
    extraction = Extraction(
        row["wallet"],
        row["recipient"],
        row["through_round"],
        bool(row["submit"]),
        decode_wei(bytes(row["nonce"])),
        decode_wei(bytes(row["deadline"])),
    )
    proof = bytes(row["proof"] or b"")
    return ExtractionRow(
        extraction,
        bytes(row["signature"]),
        ExtractionState(row["state"]),
        row["attempt"],
        0 if row["cumulative_wei"] is None else decode_wei(bytes(row["cumulative_wei"])),
        tuple(Hash(proof[at : at + 32]) for at in range(0, len(proof), 32)),
        row["reason"],
        None if row["tx_hash"] is None else bytes(row["tx_hash"]),
        row["changed_at_ms"],
        row["reported"],
    )
