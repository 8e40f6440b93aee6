"""What the chain says of rounds and credits: publications, claims, deposits. SQL and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emcd.ledger import Connection
from emcd.money import decode_wei, encode_wei
from emcd.proto.bundle import DepositEntry
from emcd.types import Address


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


@dataclass(frozen=True)
class Bought:
    """A purchase in the vault as the watcher saw it."""

    index: int
    vault_account: bytes
    amount_wei: int
    credits_micro: int
    block: int
    tx_hash: bytes


def insert_publication(
    con: Connection,
    *,
    index: int,
    block: int,
    bundle_hash: bytes,
    root: bytes,
    cumulative_wei: int,
    active_at_s: int,
    tx_hash: bytes,
) -> None:
    con.execute(
        "INSERT INTO hub_publications VALUES (?, ?, ?, ?, ?, ?, ?, NULL) ON CONFLICT DO NOTHING",
        (index, block, bundle_hash, root, encode_wei(cumulative_wei), active_at_s, tx_hash),
    )


def void_publication(con: Connection, index: int, block: int) -> None:
    con.execute(
        "UPDATE hub_publications SET void_block = ? WHERE round = ? AND void_block IS NULL", (block, index)
    )


def insert_claim(
    con: Connection,
    *,
    wallet: Address,
    index: int,
    block: int,
    log_index: int,
    recipient: Address,
    amount_wei: int,
    cumulative_wei: int,
    tx_hash: bytes,
) -> None:
    con.execute(
        "INSERT INTO hub_claims VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            wallet,
            index,
            block,
            log_index,
            recipient,
            encode_wei(amount_wei),
            encode_wei(cumulative_wei),
            tx_hash,
        ),
    )


def insert_deposit(con: Connection, item: Bought, index: int, at_ms: int) -> str | None:
    """Credit a purchase, once. Returns: the account that got it, None for none of ours or a repetition."""
    row = con.execute(
        "SELECT account_id FROM hub_accounts WHERE vault_account = ?", (item.vault_account,)
    ).fetchone()
    account_id = None if row is None else str(row[0])
    done = con.execute(
        "INSERT INTO hub_deposits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
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
        ),
    ).rowcount
    return account_id if done else None


def undo_above(con: Connection, number: int) -> list[tuple[str, int, int]]:
    """Undo what came from blocks above `number`.

    Returns: (account id, micro-credits taken back, micro-credits that were spent already).
    """
    con.execute("DELETE FROM hub_publications WHERE block > ?", (number,))
    con.execute("UPDATE hub_publications SET void_block = NULL WHERE void_block > ?", (number,))
    con.execute("DELETE FROM hub_claims WHERE block > ?", (number,))
    rows = con.execute(
        "SELECT d.deposit_index, d.account_id, d.credits_micro, d.tx_hash, d.at_ms, a.vault_micro"
        " FROM hub_deposits d JOIN hub_accounts a USING (account_id) WHERE d.block > ?",
        (number,),
    ).fetchall()
    taken: list[tuple[str, int, int]] = []
    for row in rows:
        (vault,) = con.execute(
            "SELECT vault_micro FROM hub_accounts WHERE account_id = ?", (row["account_id"],)
        ).fetchone()
        back = min(int(vault), int(row["credits_micro"]))
        taken.append((row["account_id"], back, int(row["credits_micro"]) - back))
        con.execute(
            "UPDATE hub_accounts SET vault_micro = vault_micro - ? WHERE account_id = ?",
            (back, row["account_id"]),
        )
        con.execute(
            "INSERT INTO hub_movements VALUES (NULL, ?, 'deposit', ?, 0, ?, 'undone by the chain', ?)",
            (row["account_id"], f"undo:{row['tx_hash'].hex()}:{row['at_ms']}", -back, row["at_ms"]),
        )
    con.execute("DELETE FROM hub_deposits WHERE block > ?", (number,))
    return taken


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
        )
        for row in rows
    ]


def find_claimed_wei(con: Connection, wallet: Address) -> int:
    """What a wallet was paid by the contract so far."""
    row = con.execute(
        "SELECT COALESCE(wei_sum(amount_wei), zeroblob(32)) FROM hub_claims WHERE wallet = ?", (wallet,)
    ).fetchone()
    return decode_wei(row[0])


def list_deposits(con: Connection, index: int) -> Sequence[DepositEntry]:
    """The purchases credited in a round."""
    rows = con.execute(
        "SELECT deposit_index, vault_account, amount_wei, credits_micro, block, tx_hash FROM hub_deposits"
        " WHERE round = ? AND account_id IS NOT NULL ORDER BY deposit_index",
        (index,),
    )
    return [DepositEntry(row[0], bytes(row[1]), bytes(row[2]), row[3], row[4], bytes(row[5])) for row in rows]
