"""The hub's tables in memory, and events of the chain into them, without a loop or a file."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from emcd.accounting.payout import Back, ExtractionPath
from emcd.money import encode_wei
from emcd.proto.messages import Extraction
from emcd.testing import make_key
from emcd.types import Address
from emcd_hub.rounds.chain_row import (
    ClaimRow,
    PublicationRow,
    insert_claim,
    insert_publication,
    undo_above,
    void_publication,
)
from emcd_hub.rounds.extraction_row import (
    Asked,
    end_below,
    end_claimed,
    end_used,
    find_extraction,
    insert_extraction,
    list_wallet_extractions,
    undo_ends_above,
)
from emcd_hub.rounds.payout_path import note_moves_back, read_paths, read_states
from emcd_hub.schema import MIGRATIONS

WALLET = make_key("wallet").address
RECIPIENT = make_key("recipient").address
SETTLER = make_key("settler").address
SECOND_MS = 1000


def open_tables() -> sqlite3.Connection:
    con = sqlite3.connect(":memory:")
    con.row_factory = sqlite3.Row
    for migration in MIGRATIONS:
        con.executescript(migration.sql)
    con.execute("PRAGMA foreign_keys = OFF")
    return con


@dataclass
class PayoutLedger:
    """One wallet's requests before one contract. `now_s` is everybody's clock."""

    con: sqlite3.Connection = field(default_factory=open_tables)
    now_s: int = 1_000
    block: int = 0

    @property
    def now_ms(self) -> int:
        return self.now_s * SECOND_MS

    def ask(self, nonce: int, through_round: int, *, lasts_s: int = 500, submit: bool = True) -> Asked:
        asked = Extraction(WALLET, RECIPIENT, through_round, submit, nonce, self.now_s + lasts_s)
        return insert_extraction(self.con, asked, bytes(65), self.now_ms)

    def close(self, index: int) -> None:
        self.con.execute(
            "INSERT OR IGNORE INTO hub_bundles VALUES (?, ?, -1, ?, ?, ?, x'', x'', 0, x'', ?)",
            (index, bytes(32), bytes(32), encode_wei(0), encode_wei(0), self.now_ms),
        )

    def publish(self, index: int, delay_s: int, publisher: Address = SETTLER) -> None:
        self.block += 1
        tx_hash = b"p" + self.block.to_bytes(31, "big")
        row = PublicationRow(
            index,
            bytes(32),
            bytes(32),
            0,
            self.now_s + delay_s,
            tx_hash,
            is_void=False,
            block=self.block,
            at_s=self.now_s,
        )
        insert_publication(self.con, row, publisher)

    def veto(self, index: int) -> None:
        self.block += 1
        before = read_states(self.con, 2**62, self.now_ms)
        void_publication(self.con, index, self.block)
        note_moves_back(self.con, before, Back.VETO, self.now_ms)

    def claim(self, index: int, nonce: int | None = None, amount_wei: int = 7) -> bytes:
        """A payment out of a round's root; with a nonce, of that request."""
        self.block += 1
        tx_hash = b"c" + self.block.to_bytes(31, "big")
        row = ClaimRow(WALLET, index, self.block, 0, RECIPIENT, amount_wei, amount_wei, tx_hash, self.now_s)
        if nonce is not None:
            end_used(self.con, WALLET, nonce, self.block, tx_hash, self.now_ms)
        insert_claim(self.con, row)
        end_claimed(self.con, WALLET, index, self.block, tx_hash, self.now_ms)
        return tx_hash

    def cancel(self, next_nonce: int) -> None:
        self.block += 1
        end_below(self.con, WALLET, next_nonce, self.block, self.now_ms, "cancelled by the wallet")

    def reorganise(self, number: int) -> None:
        """Blocks above `number` are no more."""
        before = read_states(self.con, number, self.now_ms)
        undo_above(self.con, number, self.now_ms)
        undo_ends_above(self.con, number)
        note_moves_back(self.con, before, Back.REORGANISATION, self.now_ms)
        self.block = max(0, number)

    def path(self, nonce: int) -> ExtractionPath:
        row = find_extraction(self.con, WALLET, nonce)
        assert row is not None
        return read_paths(self.con, [row], self.now_ms)[0]

    def paths(self) -> dict[int, ExtractionPath]:
        rows = list_wallet_extractions(self.con, WALLET)
        found = read_paths(self.con, rows, self.now_ms)
        return {row.extraction.nonce: path for row, path in zip(rows, found, strict=True)}
