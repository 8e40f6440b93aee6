"""Extraction requests: taken from the hub, made claimable by a root, claimed for the wallet.

Invariants: a request is its wallet's by signature, whatever the hub says; one claim per wallet and
nonce is on its way at a time, chosen in the ledger before it is sent; the contract takes a nonce
once. Amount and proof come from a bundle with the hash that the active root names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar, assert_never

import structlog

from emcd.accounting.payout import Back, ExtractionState, require_extraction_move
from emcd.chain import LOST_RACE, ActiveRoot, Chain, Confirmed, Failed, Outbox, Replaced, TxIntent
from emcd.clock import Clock
from emcd.errors import RemoteProtocolError
from emcd.ledger import Connection, Ledger
from emcd.money import format_token_floor
from emcd.proto.eip712 import Domain
from emcd.proto.messages import RoundRoot
from emcd.types import Address, Hash
from emcd_settler.extraction_row import (
    ExtractionRow,
    find_request,
    insert_request,
    list_claimed,
    list_open,
    set_again,
    set_ended,
    set_held,
    set_sent,
    set_submitted,
    set_synchronised,
)
from emcd_settler.extraction_rule import SignedExtraction, is_expired, read_request
from emcd_settler.hub_group import HubGroup
from emcd_settler.metrics import CLAIMS

T = TypeVar("T")

BY_SOMEBODY_ELSE = "claimed by somebody else"
MAX_ATTEMPTS = 8
MAX_EMPTY = 8192
"""Wallets remembered as having nothing: they wait for those that have something."""
_HOPELESS = frozenset(
    ("NothingToClaim", "NonceUsed", "Expired", "WrongSigner", "SubmitNotAllowed", "ZeroRecipient")
)
"""Refusals that no newer root changes, when the chain itself refused: an estimate is one node's word."""


class Claimer:
    """`step` looks once and does what there is to do."""

    def __init__(
        self,
        *,
        instance: str,
        domain: Domain,
        chain: Chain,
        outbox: Outbox,
        ledger: Ledger,
        clock: Clock,
        hub: HubGroup,
        find_tx: Callable[[str], Awaitable[Hash | None]],
        find_round: Callable[[], int],
        watch_ms: int,
        submit_claims: bool,
        least_claim_wei: int,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """
        Args:
            find_tx: the newest transaction that was signed under a key of the outbox.
            find_round: the current round.
            watch_ms: how long a paid claim is watched: a reorganisation may take it back.
        """
        self._instance = instance
        self._domain = domain
        self._chain = chain
        self._outbox = outbox
        self._ledger = ledger
        self._clock = clock
        self._hub = hub
        self._find_tx = find_tx
        self._find_round = find_round
        self._watch_ms = watch_ms
        self._submit_claims = submit_claims
        self._least_wei = least_claim_wei
        self._log = log
        self._refused: set[str] = set()
        self._empty: dict[Address, None] = {}

    async def list_wanted(self) -> list[int]:
        """The rounds that open requests ask for."""
        now_s = self._now_s()
        rows = await self._list_open()
        return [row.extraction.through_round for row in rows if not is_expired(row.extraction, now_s)]

    async def is_worth(self, outcome: RoundRoot) -> bool:
        """Whether a root gives any open request enough to be claimed.

        Raises: RecoverableError, RemoteProtocolError EMC-1972 when the hub has not that bundle.
        """
        tree = await self._hub.fetch_tree(outcome.round, outcome.bundle_hash, outcome.root)
        for row in await self._list_open():
            amount = tree.cumulative_wei(row.wallet)
            self._note_empty(row.wallet, is_empty=amount < self._least_wei)
            if row.extraction.through_round <= outcome.round and amount >= self._least_wei:
                claimed = await self._chain.distributor.fetch_claimed(row.wallet)
                if amount - claimed >= self._least_wei:
                    return True
        return False

    def _note_empty(self, wallet: Address, *, is_empty: bool) -> None:
        self._empty.pop(wallet, None)
        if is_empty:
            self._empty[wallet] = None
            if len(self._empty) > MAX_EMPTY:
                del self._empty[next(iter(self._empty))]

    async def step(self) -> None:
        """Raises: RecoverableError, RemoteProtocolError EMC-1972. Cancellation: at any point."""
        await self._watch_paid()
        rows = await self._list_open()
        active = await self._chain.distributor.find_active_root() if rows else None
        for row in rows:
            match row.state:
                case ExtractionState.REQUESTED:
                    await self._synchronise(row, active)
                case ExtractionState.SYNCHRONISED:
                    await self._submit(row)
                case ExtractionState.SUBMITTED:
                    await self._follow(row)
                case _:
                    pass

    async def take_requests(self) -> None:
        """Read the hub's list and keep what is in order. Raises: RecoverableError."""
        for hub, table in await self._hub.fetch_requests():
            try:
                request = read_request(self._domain, table, self._now_s(), self._find_round())
            except RemoteProtocolError as exc:
                self._log_refused(exc)
                continue
            await self._keep(request, hub)

    async def _keep(self, request: SignedExtraction, hub: str) -> None:
        asked = request.extraction
        known = await self._ledger.read(
            lambda con: find_request(con, self._instance, asked.wallet, asked.nonce)
        )
        if known is not None:
            return
        is_new = await self._write(
            lambda con, now: insert_request(
                con, self._instance, asked, request.signature, now, hub=hub, empty=self._empty
            )
        )
        if is_new:
            self._log.info("extraction_taken", wallet=asked.wallet, through_round=asked.through_round)

    # ------------------------------------------------------------------ one request

    async def _synchronise(self, row: ExtractionRow, active: ActiveRoot | None) -> None:
        asked = row.extraction
        if is_expired(asked, self._now_s()):
            await self._end(row, ExtractionState.EXPIRED, row.reason or "expired before a root covered it")
            return
        if asked.nonce < await self._chain.distributor.fetch_extraction_nonce(row.wallet):
            await self._end(row, ExtractionState.REFUSED, "the contract has used this nonce, or a later one")
            return
        if active is None or active.round < asked.through_round:
            return
        if not (asked.submit and self._submit_claims):
            await self._end(row, ExtractionState.SYNCHRONISED, "the wallet claims by itself")
            return
        tree = await self._hub.fetch_tree(active.round, active.bundle_hash, active.root)
        amount = tree.cumulative_wei(row.wallet)
        open_wei = amount - await self._chain.distributor.fetch_claimed(row.wallet)
        if open_wei <= 0:
            await self._end(row, ExtractionState.REFUSED, "the active root gives the wallet nothing more")
            return
        if open_wei < self._least_wei:
            await self._hold(row, describe_least(open_wei, self._least_wei))
            return
        proof = tree.proof(row.wallet)
        await self._write(lambda con, now: set_synchronised(con, self._instance, row, amount, proof, now))

    async def _submit(self, row: ExtractionRow) -> None:
        paused_until_s = await self._chain.distributor.fetch_paused_until_s()
        if paused_until_s > self._now_s():
            await self._hold(
                row, f"the contract's guardian has paused claims until {format_time(paused_until_s)}"
            )
            return
        call = self._chain.distributor.submit_claim_for(
            row.extraction, row.signature, row.cumulative_wei, row.proof
        )
        await self._outbox.submit(TxIntent(_key(row), call))
        await self._write(lambda con, now: set_submitted(con, self._instance, row, now))

    async def _follow(self, row: ExtractionRow) -> None:
        outcome = await self._outbox.find(_key(row))
        match outcome:
            case None:
                await self._note_sent(row)
            case Confirmed():
                await self._end(row, ExtractionState.CLAIMED, "", outcome.tx_hash)
            case Failed() if outcome.error_name in LOST_RACE and await self._is_paid(row):
                await self._end(row, ExtractionState.CLAIMED, BY_SOMEBODY_ELSE)
            case Failed() if await self._is_hopeless(row, outcome):
                await self._end(row, ExtractionState.REFUSED, outcome.reason)
            case Failed():
                await self._retry(row, outcome.reason)
            case Replaced():
                await self._retry(row, "another transaction of the key used the nonce")
            case _:
                assert_never(outcome)

    async def _is_hopeless(self, row: ExtractionRow, failure: Failed) -> bool:
        """What the chain refused, or what the settled chain shows: an estimate alone ends nothing."""
        if failure.error_name not in _HOPELESS:
            return False
        if failure.tx_hash is not None:
            return True
        head = await self._chain.confirmed_head()
        if is_expired(row.extraction, head.timestamp_s):
            return True
        used = await self._chain.distributor.fetch_extraction_nonce(row.wallet, at=head)
        return row.extraction.nonce < used

    async def _note_sent(self, row: ExtractionRow) -> None:
        """The hash changes with the fees."""
        tx_hash = await self._find_tx(_key(row))
        if tx_hash is not None and tx_hash != row.tx_hash:
            await self._ledger.write(lambda con: set_sent(con, self._instance, row, tx_hash))

    async def _hold(self, row: ExtractionRow, reason: str) -> None:
        if row.reason != reason:
            await self._ledger.write(lambda con: set_held(con, self._instance, row, reason))
            self._log.info("extraction_held", wallet=row.wallet, reason=reason)

    async def _watch_paid(self) -> None:
        """A reorganisation deeper than the confirmations takes a payment back: it is sent again.

        Ours is the outbox's to send again, which it says by having no outcome any more. Somebody
        else's is ours to replace when the wallet is not paid any more.
        """
        since_ms = self._clock.now_ms() - self._watch_ms
        for row in await self._ledger.read(lambda con: list_claimed(con, self._instance, since_ms)):
            if row.reason != BY_SOMEBODY_ELSE:
                if await self._outbox.find(_key(row)) is None:
                    await self._go_back(row, ExtractionState.SUBMITTED, set_submitted)
            elif not await self._is_paid(row):
                await self._go_back(row, ExtractionState.REQUESTED, _set_reorganised)

    async def _go_back(
        self,
        row: ExtractionRow,
        state: ExtractionState,
        change: Callable[[Connection, str, ExtractionRow, int], None],
    ) -> None:
        require_extraction_move(row.state, state, Back.REORGANISATION)
        await self._write(lambda con, now: change(con, self._instance, row, now))
        self._log.warning("claim_reorganised", wallet=row.wallet, nonce=row.extraction.nonce)

    async def _retry(self, row: ExtractionRow, reason: str) -> None:
        """Another root may have become active meanwhile: choose amount and proof anew."""
        if self._clock.now_ms() < row.changed_at_ms + 1000 * 2**row.attempt:
            return
        if row.attempt + 1 >= MAX_ATTEMPTS:
            await self._end(row, ExtractionState.REFUSED, f"given up: {reason}")
            return
        await self._write(lambda con, now: set_again(con, self._instance, row, reason, now))
        self._log.warning("claim_retried", wallet=row.wallet, attempt=row.attempt + 1, reason=reason)

    async def _is_paid(self, row: ExtractionRow) -> bool:
        """Whether the wallet has what the claim would have brought, by whosever transaction."""
        head = await self._chain.confirmed_head()
        return await self._chain.distributor.fetch_claimed(row.wallet, at=head) >= row.cumulative_wei

    async def _end(
        self, row: ExtractionRow, state: ExtractionState, reason: str, tx_hash: bytes | None = None
    ) -> None:
        await self._write(
            lambda con, now: set_ended(con, self._instance, row, state, now, reason=reason, tx_hash=tx_hash)
        )
        CLAIMS.labels(state.value).inc()
        self._log.info("extraction_ended", wallet=row.wallet, state=state.value, reason=reason)

    async def _list_open(self) -> Sequence[ExtractionRow]:
        return await self._ledger.read(lambda con: list_open(con, self._instance))

    async def _write(self, change: Callable[[Connection, int], T]) -> T:
        now_ms = self._clock.now_ms()
        return await self._ledger.write(lambda con: change(con, now_ms))

    def _log_refused(self, exc: RemoteProtocolError) -> None:
        """Once for each: the hub lists it again and again."""
        if len(self._refused) < 1024 and exc.detail not in self._refused:
            self._refused.add(exc.detail)
            self._log.warning("extraction_refused", code=exc.code, detail=exc.detail)

    def _now_s(self) -> int:
        return self._clock.now_ms() // 1000


def describe_least(open_wei: int, least_wei: int) -> str:
    """Why a small amount is not claimed."""
    return (
        f"{format_token_floor(open_wei, 6)} EMC is below {format_token_floor(least_wei, 6)} EMC, the least that"
        " this settler claims: claim it by yourself (emcd claim), or let it grow"
    )


def format_time(time_s: int) -> str:
    return datetime.fromtimestamp(min(time_s, 2**33), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _set_reorganised(con: Connection, instance: str, row: ExtractionRow, now_ms: int) -> None:
    set_again(con, instance, row, "the chain took the payment back", now_ms)


def _key(row: ExtractionRow) -> str:
    key = f"claim:{row.wallet}:{row.extraction.nonce}"
    return key if row.attempt == 0 else f"{key}:{row.attempt}"
