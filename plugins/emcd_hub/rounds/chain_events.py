"""The chain's events into the hub's ledger and memory: purchases, publications, claims.

Invariants: an event's effect and the watcher's cursor are one transaction; a purchase is credited
once, on disk before in memory; nothing here may be cancelled between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from emcd.accounting.payout import Back
from emcd.bus import Bus
from emcd.chain import ChainEvent
from emcd.clock import Clock
from emcd.events import REWARDS, ROUND_STATE, RewardsChanged, RoundMoved
from emcd.ledger import Connection, Ledger
from emcd.ledger.outbox_store import LedgerEventSink
from emcd.proto.params import NetworkParams
from emcd.types import Round
from emcd_hub.billing.book import AccountBook
from emcd_hub.rounds.chain_row import (
    MAX_CREDITS_MICRO,
    Bought,
    ClaimRow,
    PublicationRow,
    Undone,
    credit_deposit,
    insert_claim,
    insert_deposit_movement,
    insert_publication,
    undo_above,
    void_publication,
)
from emcd_hub.rounds.extraction_row import end_below, end_claimed, end_used, undo_ends_above
from emcd_hub.rounds.payout_path import note_moves_back, read_states

NAME = "hub"
WRITE_TIMEOUT_S = 60.0
_NOTHING_ENDED = 2**62


class HubEventSink:
    """`emcd.chain`'s EventSink for the hub."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        params: NetworkParams,
        book: AccountBook,
        bus: Bus,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._clock = clock
        self._params = params
        self._book = book
        self._bus = bus
        self._log = log
        self._credited: list[tuple[str, int]] = []
        self._undone: list[Undone] = []
        self._inner = LedgerEventSink(ledger, NAME, self._write, self._undo)

    async def load_cursors(self) -> Sequence[tuple[int, bytes]]:
        return await self._inner.load_cursors()

    async def apply(self, events: Sequence[ChainEvent], number: int, block_hash: bytes) -> None:
        """Write the effects with the cursor, then take them into memory."""
        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            await self._inner.apply(events, number, block_hash)
            credited, self._credited = self._credited, []
            for account_id, credits_micro in credited:
                self._book.credit(account_id, 0, credits_micro)
                self._log.info("credits bought", account_id=account_id, credits_micro=credits_micro)
        for event in events:
            self._tell(event)

    async def rollback(self, number: int) -> None:
        """Undo what came from blocks that are no more; credits spent already are the account's debt."""
        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            await self._inner.rollback(number)
            undone, self._undone = self._undone, []
            for item in undone:
                self._book.undo_vault(item.account_id, item.credits_micro)
                self._log.error(
                    "a purchase was undone by the chain", account_id=item.account_id, code="EMC-1754",
                    deposit=item.index, credits_micro=item.credits_micro, debt_micro=item.debt_micro,
                )  # fmt: skip

    def _write(self, con: Connection, events: Sequence[ChainEvent]) -> None:
        """In the ledger's writer thread. What a write that came too late has left is credited by its repetition."""
        self._credited = []
        now_ms = self._clock.now_ms()
        for event in events:
            match event.contract, event.name:
                case "vault", "CreditsBought":
                    self._buy(con, event, now_ms)
                case "distributor", "RoundVoided":
                    before = read_states(con, _NOTHING_ENDED, now_ms)
                    void_publication(con, event.args["round"], event.block)
                    note_moves_back(con, before, Back.VETO, now_ms)
                case key if key in _HANDLERS:
                    _HANDLERS[key](con, event, now_ms)

    def _buy(self, con: Connection, event: ChainEvent, now_ms: int) -> None:
        credits_micro = int(event.args["creditsMicro"])
        if credits_micro > MAX_CREDITS_MICRO:
            self._log.error("a purchase is larger than the books can hold", tx_hash=event.tx_hash.hex())
            return
        item = Bought(
            event.args["index"],
            event.args["account"],
            event.args["payer"],
            event.args["amountWei"],
            credits_micro,
            event.block,
            event.tx_hash,
        )
        account_id = credit_deposit(con, item, max(0, self._params.round_at(now_ms)), now_ms)
        if account_id is not None:
            note = f"vault deposit {item.index}"
            insert_deposit_movement(con, account_id, item.index, credits_micro, note, now_ms)
            self._credited.append((account_id, credits_micro))

    def _undo(self, con: Connection, number: int) -> None:
        now_ms = self._clock.now_ms()
        before = read_states(con, number, now_ms)
        undone = undo_above(con, number, now_ms)
        undo_ends_above(con, number)
        note_moves_back(con, before, Back.REORGANISATION, now_ms)
        self._undone = [*self._undone, *undone]

    def _tell(self, event: ChainEvent) -> None:
        states = {"RootPublished": "published", "RoundVoided": "void"}
        if event.name in states:
            self._bus.publish(ROUND_STATE, RoundMoved(Round(event.args["round"]), states[event.name]))
        elif event.name in ("Claimed", "ExtractionUsed", "ExtractionsCancelled"):
            self._bus.publish(REWARDS, RewardsChanged(event.args["wallet"]))


def _published(con: Connection, event: ChainEvent, now_ms: int) -> None:
    args = event.args
    row = PublicationRow(
        args["round"],
        args["bundleHash"],
        args["root"],
        args["cumulativeWei"],
        args["activeAt"],
        event.tx_hash,
        is_void=False,
        block=event.block,
        at_s=event.timestamp_s,
    )
    insert_publication(con, row, args["publisher"])


def _claimed(con: Connection, event: ChainEvent, now_ms: int) -> None:
    args = event.args
    row = ClaimRow(
        args["wallet"],
        args["round"],
        event.block,
        event.log_index,
        args["recipient"],
        args["amountWei"],
        args["cumulativeWei"],
        event.tx_hash,
        event.timestamp_s,
    )
    insert_claim(con, row)
    end_claimed(con, args["wallet"], args["round"], event.block, event.tx_hash, now_ms)


def _used(con: Connection, event: ChainEvent, now_ms: int) -> None:
    args = event.args
    end_used(con, args["wallet"], args["nonce"], event.block, event.tx_hash, now_ms)


def _cancelled(con: Connection, event: ChainEvent, now_ms: int) -> None:
    args = event.args
    end_below(con, args["wallet"], args["nextNonce"], event.block, now_ms, "cancelled by the wallet")


_HANDLERS: dict[tuple[str, str], Callable[[Connection, ChainEvent, int], None]] = {
    ("distributor", "RootPublished"): _published,
    ("distributor", "Claimed"): _claimed,
    ("distributor", "ExtractionUsed"): _used,
    ("distributor", "ExtractionsCancelled"): _cancelled,
}
