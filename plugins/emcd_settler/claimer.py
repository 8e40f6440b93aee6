"""Extraction requests: taken from the hub, made claimable by a root, claimed for the wallet.

Invariants: a request is its wallet's by signature, whatever the hub says; one claim per wallet and
nonce is on its way at a time, chosen in the ledger before it is sent; the contract takes a nonce
once. Amount and proof come from a bundle with the hash that the active root names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, assert_never

import structlog

from emcd.chain import LOST_RACE, ActiveRoot, Chain, Confirmed, Failed, Outbox, Replaced, TxIntent
from emcd.clock import Clock
from emcd.errors import RemoteProtocolError
from emcd.ledger import Connection, Ledger
from emcd.proto.eip712 import Domain
from emcd.proto.messages import RoundRoot
from emcd_settler.extraction_row import (
    ExtractionRow,
    ExtractionState,
    find_request,
    insert_request,
    list_open,
    set_again,
    set_ended,
    set_submitted,
    set_synchronised,
)
from emcd_settler.extraction_rule import SignedExtraction, is_expired, read_request
from emcd_settler.hub_source import HubSource
from emcd_settler.metrics import CLAIMS

T = TypeVar("T")

MAX_ATTEMPTS = 8
_HOPELESS = frozenset(
    ("NothingToClaim", "NonceUsed", "Expired", "WrongSigner", "SubmitNotAllowed", "ZeroRecipient")
)
"""Refusals that no newer root changes."""


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
        hub: HubSource,
        submit_claims: bool,
        least_claim_wei: int,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._instance = instance
        self._domain = domain
        self._chain = chain
        self._outbox = outbox
        self._ledger = ledger
        self._clock = clock
        self._hub = hub
        self._submit_claims = submit_claims
        self._least_wei = least_claim_wei
        self._log = log
        self._refused: set[str] = set()

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
            if row.extraction.through_round <= outcome.round:
                claimed = await self._chain.distributor.fetch_claimed(row.wallet)
                if tree.cumulative_wei(row.wallet) - claimed >= self._least_wei:
                    return True
        return False

    async def step(self) -> None:
        """Raises: RecoverableError, RemoteProtocolError EMC-1972. Cancellation: at any point."""
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
                case ExtractionState.CLAIMED | ExtractionState.REFUSED:
                    pass
                case _:
                    assert_never(row.state)

    async def take_requests(self) -> None:
        """Read the hub's list and keep what is in order. Raises: RecoverableError."""
        for table in await self._hub.fetch_requests():
            try:
                request = read_request(self._domain, table, self._now_s())
            except RemoteProtocolError as exc:
                self._log_refused(exc)
                continue
            await self._keep(request)

    async def _keep(self, request: SignedExtraction) -> None:
        asked = request.extraction
        known = await self._ledger.read(
            lambda con: find_request(con, self._instance, asked.wallet, asked.nonce)
        )
        if known is not None:
            return
        is_new = await self._write(
            lambda con, now: insert_request(con, self._instance, asked, request.signature, now)
        )
        if is_new:
            self._log.info("extraction_taken", wallet=asked.wallet, through_round=asked.through_round)

    # ------------------------------------------------------------------ one request

    async def _synchronise(self, row: ExtractionRow, active: ActiveRoot | None) -> None:
        asked = row.extraction
        if is_expired(asked, self._now_s()):
            await self._end(row, ExtractionState.REFUSED, "expired before a root covered it")
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
        if amount - await self._chain.distributor.fetch_claimed(row.wallet) < self._least_wei:
            await self._end(row, ExtractionState.REFUSED, "the active root gives the wallet nothing more")
            return
        proof = tree.proof(row.wallet)
        await self._write(lambda con, now: set_synchronised(con, self._instance, row, amount, proof, now))

    async def _submit(self, row: ExtractionRow) -> None:
        if await self._chain.distributor.fetch_paused_until_s() > self._now_s():
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
                return
            case Confirmed():
                await self._end(row, ExtractionState.CLAIMED, "", outcome.tx_hash)
            case Failed() if outcome.error_name in LOST_RACE and await self._is_paid(row):
                await self._end(row, ExtractionState.CLAIMED, "claimed by somebody else")
            case Failed() if outcome.error_name in _HOPELESS:
                await self._end(row, ExtractionState.REFUSED, outcome.reason)
            case Failed():
                await self._retry(row, outcome.reason)
            case Replaced():
                await self._retry(row, "another transaction of the key used the nonce")
            case _:
                assert_never(outcome)

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
        return await self._chain.distributor.fetch_claimed(row.wallet) >= row.cumulative_wei

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


def _key(row: ExtractionRow) -> str:
    key = f"claim:{row.wallet}:{row.extraction.nonce}"
    return key if row.attempt == 0 else f"{key}:{row.attempt}"
