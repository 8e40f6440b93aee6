"""The chain's events into the hub's ledger and memory: purchases, publications, claims.

Invariants: an event's effect and the watcher's cursor are one transaction; a purchase is credited
once, on disk before in memory; nothing here may be cancelled between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from emcd.bus import Bus
from emcd.chain import ChainEvent
from emcd.clock import Clock
from emcd.events import REWARDS, ROUND_STATE, RewardsChanged, RoundMoved
from emcd.ledger import Connection, Ledger
from emcd.ledger.outbox_store import LedgerEventSink
from emcd.proto.params import NetworkParams
from emcd.types import Round
from emcd_hub.billing.book import AccountBook
from emcd_hub.billing.queries import insert_movement
from emcd_hub.rounds.chain_row import (
    Bought,
    insert_claim,
    insert_deposit,
    insert_publication,
    undo_above,
    void_publication,
)
from emcd_hub.rounds.extraction_row import end_below, end_claimed, end_used, undo_ends_above

NAME = "hub"
WRITE_TIMEOUT_S = 60.0
MAX_CREDITS_MICRO = 2**62


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
        self._undone: list[tuple[str, int, int]] = []
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
        """Undo what came from blocks that are no more; credits spent already are the hub's loss."""
        with trio.fail_after(WRITE_TIMEOUT_S, shield=True):
            await self._inner.rollback(number)
            undone, self._undone = self._undone, []
            for account_id, back_micro, lost_micro in undone:
                self._book.debit_vault(account_id, back_micro)
                self._log.error(
                    "a purchase was undone by the chain", account_id=account_id, code="EMC-1754",
                    taken_back_micro=back_micro, lost_micro=lost_micro,
                )  # fmt: skip

    def _write(self, con: Connection, events: Sequence[ChainEvent]) -> None:
        """In the ledger's writer thread. What a write that came too late has left is credited by its repetition."""
        self._credited = []
        for event in events:
            handler = _HANDLERS.get((event.contract, event.name))
            if handler is not None:
                handler(con, event)
            elif (event.contract, event.name) == ("vault", "CreditsBought"):
                self._buy(con, event)

    def _buy(self, con: Connection, event: ChainEvent) -> None:
        credits_micro = int(event.args["creditsMicro"])
        if credits_micro > MAX_CREDITS_MICRO:
            self._log.error("a purchase is larger than the books can hold", tx_hash=event.tx_hash.hex())
            return
        now_ms = self._clock.now_ms()
        item = Bought(
            event.args["index"],
            event.args["account"],
            event.args["amountWei"],
            credits_micro,
            event.block,
            event.tx_hash,
        )
        account_id = insert_deposit(con, item, max(0, self._params.round_at(now_ms)), now_ms)
        if account_id is not None:
            key = f"deposit:{item.index}:{event.block_hash.hex()}"
            insert_movement(
                con, account_id, "deposit", key, 0, credits_micro, f"vault deposit {item.index}", now_ms
            )
            self._credited.append((account_id, credits_micro))

    def _undo(self, con: Connection, number: int) -> None:
        undone = undo_above(con, number)
        undo_ends_above(con, number)
        self._undone = [*self._undone, *undone]

    def _tell(self, event: ChainEvent) -> None:
        states = {"RootPublished": "published", "RoundVoided": "void"}
        if event.name in states:
            self._bus.publish(ROUND_STATE, RoundMoved(Round(event.args["round"]), states[event.name]))
        elif event.name == "Claimed":
            self._bus.publish(REWARDS, RewardsChanged(event.args["wallet"]))


def _published(con: Connection, event: ChainEvent) -> None:
    args = event.args
    insert_publication(
        con,
        index=args["round"],
        block=event.block,
        bundle_hash=args["bundleHash"],
        root=args["root"],
        cumulative_wei=args["cumulativeWei"],
        active_at_s=args["activeAt"],
        tx_hash=event.tx_hash,
    )


def _voided(con: Connection, event: ChainEvent) -> None:
    void_publication(con, event.args["round"], event.block)


def _claimed(con: Connection, event: ChainEvent) -> None:
    args = event.args
    insert_claim(
        con,
        wallet=args["wallet"],
        index=args["round"],
        block=event.block,
        log_index=event.log_index,
        recipient=args["recipient"],
        amount_wei=args["amountWei"],
        cumulative_wei=args["cumulativeWei"],
        tx_hash=event.tx_hash,
    )
    end_claimed(con, args["wallet"], args["round"], event.block)


def _used(con: Connection, event: ChainEvent) -> None:
    end_used(con, event.args["wallet"], event.args["nonce"], event.block)


def _cancelled(con: Connection, event: ChainEvent) -> None:
    end_below(con, event.args["wallet"], event.args["nextNonce"], event.block, "cancelled by the wallet")


_HANDLERS: dict[tuple[str, str], Callable[[Connection, ChainEvent], None]] = {
    ("distributor", "RootPublished"): _published,
    ("distributor", "RoundVoided"): _voided,
    ("distributor", "Claimed"): _claimed,
    ("distributor", "ExtractionUsed"): _used,
    ("distributor", "ExtractionsCancelled"): _cancelled,
}
