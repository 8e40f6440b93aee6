"""Carries orders to slash to the chain, and evidence to the validators.

The orders are theirs: nothing here decides who is punished. Invariants: order and signatures are
chosen in the ledger before they are sent, and the transaction's key names the evidence, so a
restart sends the same one; the contract takes an evidence once, whoever brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, assert_never

import msgspec
import structlog
import trio

from emcd.accounting.offence import (
    DoubleAttestation,
    SignedRoot,
    evidence_hash,
    judged_rounds,
    offence_of,
    write_proof,
)
from emcd.chain import Chain, Confirmed, Failed, Outbox, Replaced, TxIntent
from emcd.clock import Clock
from emcd.ledger import Connection, Ledger
from emcd.proto.address import hex_hash
from emcd.proto.messages import Slash
from emcd.proto.params import NetworkParams
from emcd.types import Address
from emcd_settler.metrics import SLASHES
from emcd_settler.peer import PeerCollector, ProofAnswer
from emcd_settler.round_row import list_double_attestations
from emcd_settler.slash_row import (
    SlashRow,
    SlashState,
    choose_slash,
    find_slash,
    list_open_slashes,
    prune_slashes,
    set_slash_state,
)
from emcd_settler.slash_rule import OrderQuorum, SignedSlash, list_quorums

T = TypeVar("T")

MAX_ATTEMPTS = 12
"""From then on an order is tried twice an epoch."""
KEPT_EPOCHS = 8
AT_ONCE = 16
"""Orders chosen in one step: each is a transaction."""
REPORT_S = 30.0
"""How long all validators together may take to be told of evidence in one step."""


_MAY_REPEAT = frozenset((SlashState.AGAIN, SlashState.ENDED))


class Slasher:
    """`step` looks once and does what there is to do."""

    def __init__(
        self,
        *,
        instance: str,
        params: NetworkParams,
        chain: Chain,
        outbox: Outbox,
        ledger: Ledger,
        clock: Clock,
        peers: PeerCollector,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._instance = instance
        self._params = params
        self._chain = chain
        self._outbox = outbox
        self._ledger = ledger
        self._clock = clock
        self._peers = peers
        self._log = log
        self._known: dict[int, list[SignedSlash]] = {}
        self._told: set[tuple[str, bytes]] = set()
        self._tidied = -1

    async def step(self) -> None:
        """Raises: RecoverableError, CallReverted. Cancellation: at any point; the next step goes on."""
        current = self._params.epoch_of(self._round())
        if current < 0:
            return
        await self._tidy(current)
        for row in await self._ledger.read(lambda con: list_open_slashes(con, self._instance)):
            await self._follow(row if row.state is SlashState.SUBMITTED else await self._submit(row))
        for epoch in range(max(0, current - 1), current + 1):
            await self._collect(epoch)
        await self._report(current)

    # ------------------------------------------------------------------ orders

    async def _collect(self, epoch: int) -> None:
        members = await self._chain.staking.fetch_validator_set(epoch)
        powers = {node: int(power) for node, power in members.members}
        endpoints = await self._find_endpoints(list(powers))
        fresh = await self._peers.collect_slashes(epoch, endpoints, self._known.get(epoch, ()))
        self._known[epoch] = fresh
        chosen = 0
        for quorum in list_quorums(powers, fresh):
            chosen += await self._choose(quorum)
            if chosen >= AT_ONCE:
                return

    async def _choose(self, quorum: OrderQuorum) -> bool:
        """Decide to send an order, unless the chain or the ledger says that it is done."""
        identity = quorum.order.evidence_hash
        row = await self._ledger.read(lambda con: find_slash(con, self._instance, identity))
        if row is not None and not (row.state in _MAY_REPEAT and self._is_due(row)):
            return False
        if await self._find_end(quorum.order):
            return False
        if row is not None and row.state is SlashState.ENDED:
            await self._set(
                row, SlashState.AGAIN, reason="it was not done after all", attempt=row.attempt + 1
            )
        chosen: bool = await self._write(lambda con, now: choose_slash(con, self._instance, quorum, now))
        if chosen:
            self._log.warning(
                "slash_has_quorum", node=quorum.order.node, bps=quorum.order.bps,
                evidence_hash=hex_hash(identity), epoch=quorum.order.epoch,
            )  # fmt: skip
        return chosen

    async def _submit(self, row: SlashRow) -> SlashRow:
        call = self._chain.staking.submit_slash(row.quorum.order, row.quorum.signatures)
        await self._outbox.submit(TxIntent(_key(row), call))
        await self._set(row, SlashState.SUBMITTED)
        return row

    async def _follow(self, row: SlashRow) -> None:
        outcome = await self._outbox.find(_key(row))
        match outcome:
            case None:
                return
            case Confirmed():
                await self._end(row, SlashState.CONFIRMED, tx_hash=outcome.tx_hash)
            case Failed():
                if end := await self._find_end(row.quorum.order):
                    await self._end(row, SlashState.ENDED, reason=end)
                else:
                    await self._retry(row, outcome.reason)
            case Replaced():
                await self._retry(row, "another transaction of the key used the nonce")
            case _:
                assert_never(outcome)

    async def _retry(self, row: SlashRow, reason: str) -> None:
        """Collect it anew: the epoch may be over for which it was signed."""
        await self._set(row, SlashState.AGAIN, reason=reason, attempt=row.attempt + 1)
        self._log.warning("slash_retried", node=row.quorum.order.node, reason=reason)

    async def _find_end(self, order: Slash) -> str:
        """Why the order can do nothing any more, by the settled chain itself; empty while it can."""
        head = await self._chain.confirmed_head()
        if await self._chain.staking.fetch_evidence_used(order.evidence_hash, at=head):
            return "somebody else brought it"
        found = await self._chain.staking.find_participant(order.node, at=head)
        if found is None or not found.stake_wei + found.pending_wei + found.unbonding_wei:
            return "nothing is left of the stake"
        return ""

    def _is_due(self, row: SlashRow) -> bool:
        round_ms = self._params.round_s * 1000
        wait_ms = min(round_ms, 1000 << row.attempt)
        if row.attempt >= MAX_ATTEMPTS or row.state is SlashState.ENDED:
            wait_ms = self._params.epoch_rounds * round_ms // 2
        return self._clock.now_ms() >= row.changed_at_ms + wait_ms

    async def _end(
        self, row: SlashRow, state: SlashState, *, reason: str = "", tx_hash: bytes | None = None
    ) -> None:
        await self._set(row, state, reason=reason, tx_hash=tx_hash)
        SLASHES.labels(state.value).inc()
        self._log.warning(
            "slash_ended", node=row.quorum.order.node, bps=row.quorum.order.bps, state=state.value,
            reason=reason, evidence_hash=hex_hash(row.quorum.order.evidence_hash),
        )  # fmt: skip

    async def _set(
        self,
        row: SlashRow,
        state: SlashState,
        *,
        reason: str = "",
        tx_hash: bytes | None = None,
        attempt: int | None = None,
    ) -> None:
        identity = row.quorum.order.evidence_hash
        await self._write(
            lambda con, now: set_slash_state(
                con, self._instance, identity, state, now, reason=reason, tx_hash=tx_hash, attempt=attempt
            )
        )

    # ------------------------------------------------------------------ evidence

    async def _report(self, epoch: int) -> None:
        """Bring the validators every attester that showed two outcomes here."""
        first, _ = judged_rounds(self._params, self._round())
        pairs = await self._ledger.read(lambda con: list_double_attestations(con, self._instance, first))
        if not pairs:
            return
        members = await self._chain.staking.fetch_validator_set(epoch)
        endpoints = await self._find_endpoints([node for node, _ in members.members])
        proofs: dict[bytes, bytes] = {}
        for one, other in pairs:
            proof = DoubleAttestation(
                one.validator, SignedRoot(one.root, one.signature), SignedRoot(other.root, other.signature)
            )
            proofs[bytes(evidence_hash(offence_of(proof)))] = msgspec.json.encode(write_proof(proof))
        with trio.move_on_after(REPORT_S):
            async with trio.open_nursery() as nursery:
                for validator, endpoint in endpoints.items():
                    nursery.start_soon(self._tell, validator, endpoint, proofs)

    async def _tell(self, validator: Address, endpoint: str, proofs: Mapping[bytes, bytes]) -> None:
        """Bring one validator what it was not told yet, until it is silent."""
        for identity, body in proofs.items():
            if (endpoint, identity) in self._told:
                continue
            if await self._peers.bring_proof(validator, endpoint, body) is ProofAnswer.NONE:
                return
            self._told.add((endpoint, identity))

    # ------------------------------------------------------------------ parts

    async def _find_endpoints(self, nodes: list[Address]) -> dict[Address, str]:
        found = [await self._chain.staking.find_participant(node) for node in nodes]
        pairs = zip(nodes, found, strict=True)
        return {node: item.endpoint for node, item in pairs if item is not None and item.endpoint}

    async def _tidy(self, current: int) -> None:
        if current == self._tidied:
            return
        await self._write(lambda con, _: prune_slashes(con, self._instance, current - KEPT_EPOCHS))
        self._known = {epoch: found for epoch, found in self._known.items() if epoch >= current - 1}
        self._told.clear()
        self._tidied = current

    def _round(self) -> int:
        return self._params.round_at(self._clock.now_ms())

    async def _write(self, change: Callable[[Connection, int], T]) -> T:
        now_ms = self._clock.now_ms()
        return await self._ledger.write(lambda con: change(con, now_ms))


def _key(row: SlashRow) -> str:
    key = f"slash:{row.quorum.order.evidence_hash.hex()}"
    return key if row.attempt == 0 else f"{key}:{row.attempt}"
