"""Closes rounds: one bundle, one seal, once.

Order: base, evidence, bundle (all in threads), then in one ledger transaction the bundle, the
sign-once row and what follows; only then the seal is signed. Invariants: a closed round is never
built again; a seal that would contradict an older one stops the daemon; rounds close in order.
"""

from __future__ import annotations

from functools import partial

import structlog
import trio

from emcd.accounting.round_close import ClosedRound, RoundFacts, close_round
from emcd.accounting.suspension import advance_conduct
from emcd.bus import Bus
from emcd.clock import Clock
from emcd.errors import FatalError
from emcd.events import REWARDS, ROUND_STATE, RewardsChanged, RoundMoved
from emcd.keys import SigningKey
from emcd.ledger import Connection, Ledger, SignOnce, sign_once
from emcd.proto.address import hex_hash
from emcd.proto.eip712 import digest
from emcd.proto.messages import BundleSeal
from emcd.proto.network import Deployment
from emcd.types import Round
from emcd_hub.metrics import CLOSE_SECONDS, ROUND_CLOSED
from emcd_hub.rounds.base import Choice, choose_base, is_quorum
from emcd_hub.rounds.bundle_row import (
    Base,
    BundleFacts,
    find_base,
    find_facts,
    insert_bundle,
    insert_seal,
    list_facts,
    list_unsealed,
    pack_data,
    replace_carried,
)
from emcd_hub.rounds.chain_row import list_publications
from emcd_hub.rounds.evidence_row import list_attestations, list_refusals
from emcd_hub.rounds.settle_input import SettleInput, read_settle_input
from emcd_hub.rounds.view import RoundView
from emcd_hub.rounds.view_row import find_view

PURPOSE = "bundle_seal"
READ_TIMEOUT_S = 600.0
UNDECIDED = frozenset(("", "EMC-1801", "EMC-1806", "EMC-1807", "EMC-1809", "EMC-1826", "EMC-1827"))
"""With these a validator says that it waits, or may: not a refusal for good."""


class Closer:
    """The rounds of one hub."""

    def __init__(
        self,
        *,
        key: SigningKey,
        deployment: Deployment,
        ledger: Ledger,
        clock: Clock,
        bus: Bus,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._key = key
        self._deployment = deployment
        self._ledger = ledger
        self._clock = clock
        self._bus = bus
        self._log = log

    async def close(self, view: RoundView) -> BundleFacts:
        """Close a round with what is recorded; one that is closed already is only sealed.

        Raises: FatalError EMC-1752 when another bundle of the round was sealed before.
        """
        index = view.round
        known = await self._ledger.read(lambda con: find_facts(con, index))
        if known is None:
            began = trio.current_time()
            base, choice = await self._choose(index)
            read = partial(
                read_settle_input, index=index, params=self._deployment.params, abandoned=choice.abandoned
            )
            found = await self._ledger.read(read, timeout_s=READ_TIMEOUT_S)
            facts = self._facts(view, base)
            close = partial(close_round, facts, found.evidence, signatures_checked=True)
            closed = await trio.to_thread.run_sync(close)
            await self._keep(closed, base, found)
            CLOSE_SECONDS.observe(trio.current_time() - began)
        await self.seal_all()
        sealed = await self._ledger.read(lambda con: find_facts(con, index))
        assert sealed is not None
        return sealed

    async def seal_all(self) -> None:
        """Seal what is closed and has no seal yet. Raises: FatalError EMC-1752."""
        for facts in await self._ledger.read(list_unsealed):
            index = facts.round
            seal = BundleSeal(self._key.address, index, facts.bundle_hash)
            signature = self._key.sign(self._deployment.staking_domain, seal)
            await self._ledger.write(partial(insert_seal, index=index, seal=signature))
            ROUND_CLOSED.set(index)
            self._log.info("round sealed", round=index, bundle_hash=hex_hash(facts.bundle_hash))
            self._bus.publish(ROUND_STATE, RoundMoved(Round(index), "closed"))

    def _facts(self, view: RoundView, base: Base) -> RoundFacts:
        deployment = self._deployment
        return RoundFacts(
            round=view.round,
            hub=self._key.address,
            chain_id=deployment.chain_id,
            staking=deployment.staking,
            distributor=deployment.distributor,
            params=deployment.params,
            prices=(deployment.prices,),
            snapshot_block=view.snapshot_block,
            snapshot_block_hash=view.snapshot_hash,
            beacon_block=view.beacon_block,
            beacon_block_hash=view.beacon_hash,
            participants=view.suspended(base.conducts or {}),
            validators=view.validators,
            totals=base.totals_wei,
            previous_round=base.round,
            previous_bundle_hash=base.bundle_hash,
        )

    async def _choose(self, index: int) -> tuple[Base, Choice]:
        void_after = self._deployment.params.void_after_rounds

        def read(con: Connection) -> tuple[Base, Choice]:
            closed = list_facts(con, 4 * void_after + 64, below=index)
            oldest = closed[-1].round if closed else 0
            publications = {row.round: row for row in list_publications(con, oldest)}
            choice = choose_base(
                index, closed, publications, partial(_is_refused, con), partial(_is_attested, con), void_after
            )
            base = find_base(con, choice.round) if choice.round >= 0 else None
            return base or Base(), choice

        return await self._ledger.read(read)

    async def _keep(self, closed: ClosedRound, base: Base, found: SettleInput) -> None:
        """Write the closed round and its one hash, all or nothing."""
        index = closed.bundle.header.round
        params = closed.bundle.header.params
        conducts = advance_conduct(base.conducts or {}, index, closed.result.strikes, params)
        seal_digest = digest(self._deployment.staking_domain, closed.seal)
        packed = await trio.to_thread.run_sync(pack_data, closed.data)
        closed_at_ms = self._clock.now_ms()
        for item in closed.left_out:
            self._log.warning(
                "left out of the bundle", round=index, section=item.section.name, item=item.key,
                code=item.code, detail=item.detail[:300],
            )  # fmt: skip

        def write(con: Connection) -> SignOnce:
            outcome = sign_once(con, self._key.address, PURPOSE, str(index), seal_digest)
            if outcome is not SignOnce.CONFLICT:
                insert_bundle(con, closed, packed, conducts, closed_at_ms)
                replace_carried(con, found.waiting)
            return outcome

        if await self._ledger.write(write) is SignOnce.CONFLICT:
            raise FatalError("EMC-1752", f"another bundle of round {index} was sealed before")
        result = closed.result
        self._log.info(
            "round closed", round=index, calls=len(closed.bundle.calls), waiting=len(found.waiting),
            issue_wei=str(result.issue_wei), strikes=len(result.strikes), builds_on=base.round,
        )  # fmt: skip
        for wallet in {entry.wallet for entry in closed.bundle.participants}:
            self._bus.publish(REWARDS, RewardsChanged(wallet))


def _is_attested(con: Connection, index: int) -> bool:
    view = find_view(con, index)
    return view is not None and is_quorum(set(list_attestations(con, index)), view)


def _is_refused(con: Connection, index: int) -> bool:
    view = find_view(con, index)
    if view is None:
        return False
    refusing = {key for key, (code, _) in list_refusals(con, index).items() if code not in UNDECIDED}
    return is_quorum(refusing, view)
