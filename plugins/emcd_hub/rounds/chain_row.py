"""What the chain says of rounds and credits: publications, claims, deposits. SQL and nothing else.

A deposit's row is never deleted: one that the chain undid is marked, and stands again when it comes
again. It is listed in the bundle of the round in which it was first credited; one that was undone
before that bundle was closed, in that of the round in which it came again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emcd.ledger import Connection
from emcd.money import decode_wei, encode_wei
from emcd.proto.bundle import DepositEntry
from emcd.types import Address

MAX_CREDITS_MICRO = 2**62
"""Of one account: beyond it the books' integers end, and a purchase is held."""


@dataclass(frozen=True)
class PublicationRow:
    """A root that was published, `is_void` when it was vetoed afterwards."""

    round: int
    bundle_hash: bytes
    root: bytes
    cumulative_wei: int
    active_at_s: int
    tx_hash: bytes
    is_void: bool
    block: int = 0
    at_s: int | None = None


@dataclass(frozen=True)
class ClaimRow:
    """A payment of the contract; `round` is that of the root it was paid from."""

    wallet: Address
    round: int
    block: int
    log_index: int
    recipient: Address
    amount_wei: int
    cumulative_wei: int
    tx_hash: bytes
    at_s: int | None


@dataclass(frozen=True)
class Bought:
    """A purchase in the vault as the watcher saw it."""

    index: int
    vault_account: bytes
    payer: str
    amount_wei: int
    credits_micro: int
    block: int
    tx_hash: bytes


@dataclass(frozen=True)
class Undone:
    """A purchase that the chain took back; `debt_micro` is what of the account's was spent already."""

    account_id: str
    index: int
    credits_micro: int
    debt_micro: int


def insert_publication(con: Connection, row: PublicationRow, publisher: str) -> None:
    con.execute(
        "INSERT INTO hub_publications (round, block, bundle_hash, root, cumulative_wei, active_at_s, tx_hash,"
        " at_s, publisher) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            row.round,
            row.block,
            row.bundle_hash,
            row.root,
            encode_wei(row.cumulative_wei),
            row.active_at_s,
            row.tx_hash,
            row.at_s,
            publisher,
        ),
    )


def void_publication(con: Connection, index: int, block: int) -> None:
    con.execute(
        "UPDATE hub_publications SET void_block = ? WHERE round = ? AND void_block IS NULL", (block, index)
    )


def is_publisher(con: Connection, address: Address) -> bool:
    """Whether an address published a root that stands: who did has shown that it is a settler at work."""
    sql = "SELECT 1 FROM hub_publications WHERE publisher = ? AND void_block IS NULL LIMIT 1"
    return con.execute(sql, (address,)).fetchone() is not None


def insert_claim(con: Connection, row: ClaimRow) -> None:
    con.execute(
        "INSERT INTO hub_claims (wallet, round, block, log_index, recipient, amount_wei, cumulative_wei,"
        " tx_hash, at_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            row.wallet,
            row.round,
            row.block,
            row.log_index,
            row.recipient,
            encode_wei(row.amount_wei),
            encode_wei(row.cumulative_wei),
            row.tx_hash,
            row.at_s,
        ),
    )


def list_claims(con: Connection, wallet: Address) -> list[ClaimRow]:
    """A wallet's payments, in the order of the chain."""
    rows = con.execute("SELECT * FROM hub_claims WHERE wallet = ? ORDER BY block, log_index", (wallet,))
    return [
        ClaimRow(
            row["wallet"],
            row["round"],
            row["block"],
            row["log_index"],
            row["recipient"],
            decode_wei(row["amount_wei"]),
            decode_wei(row["cumulative_wei"]),
            bytes(row["tx_hash"]),
            row["at_s"],
        )
        for row in rows
    ]


def credit_deposit(con: Connection, item: Bought, index: int, at_ms: int) -> str | None:
    """Write a purchase down, once while it stands.

    Returns: the account to credit; None for a repetition, and for one that is held: for an account
    that is none of ours, or of which the books can't hold more.
    """
    known = con.execute(
        "SELECT round, undone_at_ms, is_listed FROM hub_deposits WHERE deposit_index = ?", (item.index,)
    ).fetchone()
    if known is not None and known["undone_at_ms"] is None:
        return None
    row = con.execute(
        "SELECT account_id, vault_micro FROM hub_accounts WHERE vault_account = ?", (item.vault_account,)
    ).fetchone()
    has_room = row is not None and row["vault_micro"] + item.credits_micro <= MAX_CREDITS_MICRO
    account_id = str(row["account_id"]) if has_room else None
    is_listed = known is not None and bool(known["is_listed"])
    if is_listed:
        index = known["round"]
    con.execute(
        "INSERT OR REPLACE INTO hub_deposits (deposit_index, vault_account, account_id, amount_wei,"
        " credits_micro, block, tx_hash, round, at_ms, payer, undone_at_ms, is_listed)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?)",
        (
            item.index,
            item.vault_account,
            account_id,
            encode_wei(item.amount_wei),
            item.credits_micro,
            item.block,
            item.tx_hash,
            index,
            at_ms,
            item.payer,
            is_listed,
        ),
    )
    return account_id


def undo_above(con: Connection, number: int, at_ms: int) -> list[Undone]:
    """Undo what came from blocks above `number`; the accounts' movements with it."""
    con.execute("DELETE FROM hub_publications WHERE block > ?", (number,))
    con.execute("UPDATE hub_publications SET void_block = NULL WHERE void_block > ?", (number,))
    con.execute("DELETE FROM hub_claims WHERE block > ?", (number,))
    rows = con.execute(
        "SELECT deposit_index, account_id, credits_micro FROM hub_deposits"
        " WHERE block > ? AND undone_at_ms IS NULL ORDER BY deposit_index",
        (number,),
    ).fetchall()
    undone: list[Undone] = []
    for row in rows:
        con.execute(
            "UPDATE hub_deposits SET undone_at_ms = ? WHERE deposit_index = ?", (at_ms, row["deposit_index"])
        )
        if row["account_id"] is not None:
            note = f"vault deposit {row['deposit_index']} undone by the chain"
            insert_deposit_movement(
                con, row["account_id"], row["deposit_index"], -row["credits_micro"], note, at_ms
            )
            undone.append(
                Undone(
                    row["account_id"],
                    row["deposit_index"],
                    row["credits_micro"],
                    find_debt(con, row["account_id"]),
                )
            )
    return undone


def insert_deposit_movement(
    con: Connection, account_id: str, index: int, credits_micro: int, note: str, at_ms: int
) -> None:
    """A purchase in an account's books: positive when it came, negative when the chain undid it.

    What was undone is kept beside what was credited, not taken out of it: calls in flight may still
    settle from it, and the account's sums stay sums of what is written.
    """
    prefix = f"deposit:{index}:"
    (count,) = con.execute(
        "SELECT count(*) FROM hub_movements WHERE idempotency_key >= ? AND idempotency_key < ?",
        (prefix, prefix[:-1] + ";"),
    ).fetchone()
    con.execute(
        "INSERT INTO hub_movements VALUES (NULL, ?, 'deposit', ?, 0, ?, ?, ?)",
        (account_id, f"{prefix}{count}", credits_micro, note, at_ms),
    )
    con.execute(
        "UPDATE hub_accounts SET vault_micro = vault_micro + ?, undone_micro = undone_micro + ?"
        " WHERE account_id = ?",
        (max(0, credits_micro), max(0, -credits_micro), account_id),
    )


def find_debt(con: Connection, account_id: str) -> int:
    """What an account spent of purchases that the chain undid: its next purchase pays it."""
    (debt,) = con.execute(
        "SELECT max(0, undone_micro - vault_micro) FROM hub_accounts WHERE account_id = ?", (account_id,)
    ).fetchone()
    return int(debt)


def list_publications(con: Connection, since_round: int) -> list[PublicationRow]:
    """Publications of rounds from `since_round` on, in the order of the chain."""
    rows = con.execute(
        "SELECT * FROM hub_publications WHERE round >= ? ORDER BY block, round", (since_round,)
    )
    return [
        PublicationRow(
            row["round"],
            bytes(row["bundle_hash"]),
            bytes(row["root"]),
            decode_wei(row["cumulative_wei"]),
            row["active_at_s"],
            bytes(row["tx_hash"]),
            row["void_block"] is not None,
            row["block"],
            row["at_s"],
        )
        for row in rows
    ]


def list_deposits(con: Connection, index: int, abandoned: Iterable[int] = ()) -> Sequence[DepositEntry]:
    """The purchases that a round's bundle lists: credited in it, or in a round before it that came to nothing."""
    found: list[DepositEntry] = []
    for number in (index, *abandoned):
        rows = con.execute(
            "SELECT deposit_index, vault_account, amount_wei, credits_micro, block, tx_hash FROM hub_deposits"
            " WHERE round = ? AND account_id IS NOT NULL AND undone_at_ms IS NULL",
            (number,),
        )
        found += [
            DepositEntry(row[0], bytes(row[1]), bytes(row[2]), row[3], row[4], bytes(row[5])) for row in rows
        ]
    return sorted(found, key=lambda entry: entry.index)


def mark_listed(con: Connection, index: int, abandoned: Iterable[int], listed: Iterable[int]) -> None:
    """Remember which purchases of these rounds the bundle just closed lists: they keep their round."""
    con.executemany(
        "UPDATE hub_deposits SET is_listed = deposit_index IN (SELECT value FROM json_each(?)) WHERE round = ?",
        [(json.dumps(list(listed)), number) for number in (index, *abandoned)],
    )
