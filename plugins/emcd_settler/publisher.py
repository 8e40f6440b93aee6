"""Publishes roots: which round is due, its attestations, the transaction, what became of it.

One round is on its way at a time. Invariants: what is written to the ledger comes before what is
sent; the key of a transaction names the round, so a restart sends the same one; the contract takes
a round once, whoever publishes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, assert_never

import structlog

from emcd.chain import BlockRef, Chain, Confirmed, Failed, Outbox, PublicationState, Replaced, TxIntent
from emcd.clock import Clock
from emcd.errors import EmcdError, RecoverableError, RemoteProtocolError
from emcd.ledger import Connection, Ledger
from emcd.proto.address import hex_hash
from emcd.proto.messages import RoundRoot
from emcd.services import ParametersInForce
from emcd.types import Address
from emcd_settler.attestation import describe_split, find_quorum, list_equivocators
from emcd_settler.metrics import EQUIVOCATIONS, PUBLICATIONS
from emcd_settler.peer import PeerCollector
from emcd_settler.round_row import (
    RoundRow,
    RoundState,
    add_attestations,
    ensure_collecting,
    expire_collecting,
    find_in_flight,
    find_round,
    list_attestations,
    list_unsettled,
    load_quorum,
    prune,
    set_active,
    set_quorum,
    set_state,
)

T = TypeVar("T")

CANDIDATES_AT_ONCE = 4
"""Rounds asked for in one step, for each reason: the first that is attested is published."""
MAX_ATTEMPTS = 12
KEPT_ROUNDS = 64
OVERDUE_ROUNDS = 3
"""So long after it was closed, a round that everybody waits for is a complaint."""
_IMPOSSIBLE = frozenset(("RoundTooOld", "OverSchedule", "CumulativeFell", "ZeroRoot", "NoQuorum"))
"""Refusals that no further attempt changes, when the chain itself refused: an estimate is one node's word."""


@dataclass(frozen=True)
class Due:
    """A root that covers `round` is wanted; `is_forced`: by extraction requests alone."""

    round: int
    is_forced: bool


def list_due(closed: int, last: int, tip: int, every: int, wanted: Sequence[int]) -> list[Due]:
    """What must be published now, the lowest first; what requests ask for never hides the boundary's.

    Args: `closed` the newest closed round; `last` the newest published one, void ones included, and
    `tip` the newest that is not void (-1: none); `every` how many rounds apart roots are published;
    `wanted` the rounds that extraction requests ask for.
    Returns: the boundary's round when it is due, and below it, or without it, the first and the last
    round that requests alone ask for: a root at the last covers every request.
    """
    boundary = (closed + 1) // every * every - 1
    due = [Due(max(boundary, last + 1), is_forced=False)] if boundary > tip else []
    due = [item for item in due if item.round <= closed]
    below = due[0].round if due else closed + 1
    forced = {max(index, last + 1) for index in wanted if index > tip}
    asked = sorted(index for index in forced if index < below)
    return [*(Due(index, is_forced=True) for index in dict.fromkeys(asked[:1] + asked[-1:])), *due]


def list_candidates(closed: int, oldest: int, due: Sequence[Due]) -> list[Due]:
    """The rounds to look at, in this order. From the boundary's on, nobody has to be worth it."""
    forced = [item for item in due if item.is_forced]
    free_from = min((item.round for item in due if not item.is_forced), default=closed + 1)
    found: dict[int, Due] = {}
    for item in due:
        first = max(item.round, oldest, 0)
        count = CANDIDATES_AT_ONCE // len(forced) if item.is_forced else CANDIDATES_AT_ONCE
        for index in range(first, min(closed + 1, first + count)):
            found.setdefault(index, Due(index, is_forced=index < free_from))
    return list(found.values())


class Publisher:
    """`step` looks once and does what there is to do."""

    def __init__(
        self,
        *,
        instance: str,
        parameters: ParametersInForce,
        every_rounds: int,
        chain: Chain,
        outbox: Outbox,
        ledger: Ledger,
        clock: Clock,
        peers: PeerCollector,
        list_wanted: Callable[[], Awaitable[Sequence[int]]],
        is_worth: Callable[[RoundRoot], Awaitable[bool]],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """
        Args:
            list_wanted: the rounds that open extraction requests ask for.
            is_worth: whether a root gives anything to those who asked for it.
        """
        self._instance = instance
        self._parameters = parameters
        self._params = parameters.schedule.clock
        self._every = every_rounds
        self._chain = chain
        self._outbox = outbox
        self._ledger = ledger
        self._clock = clock
        self._peers = peers
        self._list_wanted = list_wanted
        self._is_worth = is_worth
        self._log = log
        self._endpoints: dict[Address, str] = {}
        self._endpoints_of = (-1, -1)
        self._tidied = -1
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why the round that everybody waits for is not on chain, when that takes long."""
        return self._problem

    async def step(self) -> None:
        """Raises: RecoverableError, CallReverted. Cancellation: at any point; the next step goes on."""
        await self._settle_published()
        row = await self._ledger.read(lambda con: find_in_flight(con, self._instance))
        if row is None:
            row = await self._find_quorum()
        else:
            self._note_overdue(row.round, f"{row.state.value}: {row.reason}")
        if row is not None and row.state is RoundState.QUORUM:
            row = await self._submit(row)
        if row is not None and row.state is RoundState.SUBMITTED:
            await self._follow(row)

    # ------------------------------------------------------------------ collecting

    async def _find_quorum(self) -> RoundRow | None:
        """The first round at or after a due one with a quorum, now marked so.

        Raises: what went wrong with a round that requests alone ask for, after the others had their turn.
        """
        closed = self._params.round_at(self._clock.now_ms()) - 2
        last = await self._chain.distributor.find_last_round()
        tip = await self._chain.distributor.find_tip_round()
        rules = self._parameters.schedule.newest_readable_at(max(0, closed)).parameters.params
        oldest = closed + 2 - rules.void_after_rounds
        await self._tidy(closed, oldest)
        wanted = await self._list_wanted()
        due = list_due(closed, -1 if last is None else last, -1 if tip is None else tip, self._every, wanted)
        failed: EmcdError | None = None
        for item in list_candidates(closed, oldest, due):
            try:
                row = await self._collect(item.round, is_forced=item.is_forced)
            except (RecoverableError, RemoteProtocolError) as exc:
                if not item.is_forced:
                    raise
                failed = failed or exc
                continue
            if row is not None:
                return row
        self._problem = ""
        for item in due:
            if not item.is_forced and (last is not None or await self._has_attestation(item.round)):
                self._note_overdue(item.round, "no quorum")
        if failed is not None:
            raise failed
        return None

    async def _has_attestation(self, index: int) -> bool:
        """Before anybody has earned anything there is nothing to attest, and nothing is late."""
        return bool(await self._ledger.read(lambda con: list_attestations(con, self._instance, index)))

    def _note_overdue(self, index: int, why: str) -> None:
        late = self._params.round_at(self._clock.now_ms()) - 2 - index
        self._problem = f"round {index} is due and not published: {why}" if late >= OVERDUE_ROUNDS else ""

    async def _tidy(self, closed: int, oldest: int) -> None:
        """Once a round: give up what found no quorum in time, forget what is long over."""
        if closed == self._tidied:
            return

        def tidy(con: Connection, now_ms: int) -> None:
            expire_collecting(con, self._instance, oldest, now_ms)
            prune(con, self._instance, closed - KEPT_ROUNDS)

        await self._write(tidy)
        self._tidied = closed

    async def _collect(self, index: int, *, is_forced: bool) -> RoundRow | None:
        row = await self._ledger.read(lambda con: find_round(con, self._instance, index))
        if row is None:
            await self._write(lambda con, now: ensure_collecting(con, self._instance, index, now))
        elif row.state is not RoundState.COLLECTING:
            return None
        epoch = self._params.epoch_of(index)
        members = await self._chain.staking.fetch_validator_set(epoch)
        powers = {node: int(power) for node, power in members.members}
        fresh = await self._peers.collect(index, await self._find_endpoints(epoch, list(powers)))
        before = await self._ledger.read(lambda con: list_attestations(con, self._instance, index))
        known = [*before, *(item for item in fresh if item not in before)]
        if len(known) > len(before):
            await self._write(lambda con, _: add_attestations(con, self._instance, known))
        for liar in sorted(list_equivocators(known) - list_equivocators(before)):
            EQUIVOCATIONS.inc()
            self._log.error("validator_signed_two_outcomes", code="EMC-1973", round=index, validator=liar)
        quorum = find_quorum(powers, known)
        if quorum is None:
            self._log.info("round_without_quorum", round=index, signed=describe_split(powers, known))
            return None
        if is_forced and not await self._is_worth(quorum.root):
            return None
        chosen = quorum
        await self._write(lambda con, now: set_quorum(con, self._instance, chosen, now))
        self._log.info("round_has_quorum", round=index, root=hex_hash(quorum.root.root))
        return await self._ledger.read(lambda con: find_round(con, self._instance, index))

    async def _find_endpoints(self, epoch: int, nodes: list[Address]) -> dict[Address, str]:
        """Where the validators of an epoch serve, read anew in every round."""
        now = (epoch, self._params.round_at(self._clock.now_ms()))
        if self._endpoints_of != now:
            found = [await self._chain.staking.find_participant(node) for node in nodes]
            self._endpoints = {
                node: "" if participant is None else participant.endpoint
                for node, participant in zip(nodes, found, strict=True)
            }
            self._endpoints_of = now
        return self._endpoints

    # ------------------------------------------------------------------ sending

    async def _submit(self, row: RoundRow) -> RoundRow | None:
        if await self._chain.distributor.fetch_paused_until_s() * 1000 > self._clock.now_ms():
            return None
        quorum = await self._ledger.read(lambda con: load_quorum(con, self._instance, row.round))
        call = self._chain.distributor.submit_publish(quorum.root, quorum.signatures)
        await self._outbox.submit(TxIntent(_key(row), call))
        await self._write(
            lambda con, now: set_state(con, self._instance, row.round, RoundState.SUBMITTED, now)
        )
        return await self._ledger.read(lambda con: find_round(con, self._instance, row.round))

    async def _follow(self, row: RoundRow) -> None:
        outcome = await self._outbox.find(_key(row))
        match outcome:
            case None:
                return
            case Confirmed():
                await self._end(row, RoundState.CONFIRMED, tx_hash=outcome.tx_hash)
            case Failed():
                await self._after_failure(row, outcome)
            case Replaced():
                await self._retry(row, "another transaction of the key used the nonce")
            case _:
                assert_never(outcome)

    async def _after_failure(self, row: RoundRow, failure: Failed) -> None:
        """Look at the chain, where it is settled: somebody else may have published the round, or a later one."""
        quorum = await self._ledger.read(lambda con: load_quorum(con, self._instance, row.round))
        head = await self._chain.confirmed_head()
        publication = await self._chain.distributor.fetch_publication(row.round, at=head)
        is_ours = (publication.bundle_hash, publication.root) == (quorum.root.bundle_hash, quorum.root.root)
        last = await self._chain.distributor.find_last_round(at=head)
        if publication.state is not PublicationState.NONE and is_ours:
            await self._end(row, RoundState.CONFIRMED, reason="published by another settler")
        elif last is not None and last >= row.round:
            await self._end(row, RoundState.VOID, reason=f"round {last} was published before it")
        elif self._is_too_old(row.round, head) or (failure.tx_hash and failure.error_name in _IMPOSSIBLE):
            await self._end(row, RoundState.VOID, reason=failure.reason)
        else:
            await self._retry(row, failure.reason)

    def _is_too_old(self, index: int, head: BlockRef) -> bool:
        """Whether the contract takes the round no more, at a block."""
        window = self._chain.deployment.params.void_after_rounds
        return self._params.round_at(head.timestamp_s * 1000) - index > window

    async def _retry(self, row: RoundRow, reason: str) -> None:
        """Once more under a new key, a round later at the latest: the refusal was of the moment."""
        if row.attempt + 1 >= MAX_ATTEMPTS:
            await self._end(row, RoundState.VOID, reason=f"given up: {reason}")
            return
        wait_ms = min(self._params.round_s * 1000, 1000 * 2**row.attempt)
        if self._clock.now_ms() < row.changed_at_ms + wait_ms:
            return
        await self._write(
            lambda con, now: set_state(
                con, self._instance, row.round, RoundState.QUORUM, now, reason=reason, attempt=row.attempt + 1
            )
        )
        self._log.warning("publication_retried", round=row.round, attempt=row.attempt + 1, reason=reason)

    async def _end(
        self, row: RoundRow, state: RoundState, *, reason: str = "", tx_hash: bytes | None = None
    ) -> None:
        await self._write(
            lambda con, now: set_state(
                con, self._instance, row.round, state, now, reason=reason, tx_hash=tx_hash
            )
        )
        PUBLICATIONS.labels(state.value).inc()
        self._log.info("round_ended", round=row.round, state=state.value, reason=reason)

    # ------------------------------------------------------------------ afterwards

    async def _settle_published(self) -> None:
        """See published rounds through their challenge delay: vetoed, or active and the fee paid."""
        for row in await self._ledger.read(lambda con: list_unsettled(con, self._instance)):
            publication = await self._chain.distributor.fetch_publication(row.round)
            if publication.state is PublicationState.VOID:
                await self._end(row, RoundState.VOID, reason="vetoed")
            elif publication.state is PublicationState.ACTIVE:
                is_ours = publication.publisher == self._outbox.address
                if is_ours and publication.fee_wei and not publication.fee_paid:
                    await self._take_fee(row)
                else:
                    await self._set_active(row.round)

    async def _take_fee(self, row: RoundRow) -> None:
        """Ask for the fee until it is paid: the guardian may pause between the look and the transaction."""
        wait_ms = min(self._params.epoch_rounds * self._params.round_s, 1 << min(row.attempt, 40)) * 1000
        if row.reason and self._clock.now_ms() < row.changed_at_ms + wait_ms:
            return
        if await self._chain.distributor.fetch_paused_until_s() * 1000 > self._clock.now_ms():
            return
        key = _name("fee", row)
        await self._outbox.submit(TxIntent(key, self._chain.distributor.submit_pay_fee(row.round)))
        outcome = await self._outbox.find(key)
        if isinstance(outcome, Failed | Replaced):
            reason = outcome.reason if isinstance(outcome, Failed) else "another transaction used the nonce"
            again = row.attempt + 1
            await self._write(
                lambda con, now: set_state(
                    con, self._instance, row.round, row.state, now, reason=f"fee: {reason}", attempt=again
                )
            )
            self._log.warning("fee_not_paid", round=row.round, attempt=again, reason=reason)

    async def _set_active(self, index: int) -> None:
        await self._write(lambda con, now: set_active(con, self._instance, index, now))

    async def _write(self, change: Callable[[Connection, int], T]) -> T:
        now_ms = self._clock.now_ms()
        return await self._ledger.write(lambda con: change(con, now_ms))


def _key(row: RoundRow) -> str:
    return _name("publish", row)


def _name(what: str, row: RoundRow) -> str:
    return f"{what}:{row.round}" if row.attempt == 0 else f"{what}:{row.round}:{row.attempt}"
