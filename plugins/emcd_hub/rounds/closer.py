"""Closes rounds: one bundle, one seal, once.

Order: base, then the bundle's file (a thread for a small round, else a process of its own with the
ledger's file before it), then in one ledger transaction the bundle's row, the sign-once row and what
follows; only then the seal is signed. Invariants: a closed round is never built again, a file without
its row is never looked at; a seal that would contradict an older one stops the daemon; rounds close
in order.
"""

from __future__ import annotations

from functools import partial

import structlog
import trio

from emcd.accounting.round_close import RoundFacts
from emcd.accounting.suspension import advance_conduct
from emcd.bus import Bus
from emcd.child import run_in_child
from emcd.clock import Clock
from emcd.errors import FatalError
from emcd.events import REWARDS, ROUND_STATE, RewardsChanged, RoundMoved
from emcd.keys import SigningKey
from emcd.ledger import Connection, Ledger, SignOnce, sign_once
from emcd.proto.address import hex_hash
from emcd.proto.eip712 import digest
from emcd.proto.messages import BundleSeal
from emcd.proto.network import Deployment
from emcd.services import ParametersInForce
from emcd.types import Round
from emcd_hub.metrics import CLOSE_PROGRESS, CLOSE_SECONDS, ROUND_CLOSED
from emcd_hub.records.call_row import count_calls_between
from emcd_hub.rounds.base import Choice, choose_base, is_quorum
from emcd_hub.rounds.build import Built, CloseOrder, build_bundle, build_from_file
from emcd_hub.rounds.bundle_folder import BundleFolder
from emcd_hub.rounds.bundle_row import (
    Base,
    BundleFacts,
    find_base,
    find_facts,
    insert_bundle,
    insert_seal,
    list_facts,
    list_unsealed,
    replace_carried,
)
from emcd_hub.rounds.chain_row import list_publications, mark_listed
from emcd_hub.rounds.evidence_row import list_attestations, list_refusals
from emcd_hub.rounds.old_bundle import move_old_bundles
from emcd_hub.rounds.view import RoundView
from emcd_hub.rounds.view_row import find_view

PURPOSE = "bundle_seal"
READ_TIMEOUT_S = 600.0
SMALL_CALLS = 20_000
"""Fewer take a second or two: a thread does it, and starting a process would not pay."""
CLOSE_TIMEOUT_S = 300.0
SLOWEST_CALLS_S = 1_000
"""The slowest closing that is waited for: on a machine with no time to spare; to begin again is slower."""
LONGEST_CALL_MS = 86_400_000
"""No node may be set to work longer at a call: a call goes by the prices of its beginning."""
NICENESS = 5
TELL_EVERY_S = 5.0
LEFT_OUT_LOGGED = 100
TOLD_AT_ONCE = 200
UNDECIDED = frozenset(("", "EMC-1801", "EMC-1806", "EMC-1807", "EMC-1809", "EMC-1826", "EMC-1827"))
"""With these a validator says that it waits, or may: not a refusal for good."""


class Closer:
    """The rounds of one hub."""

    def __init__(
        self,
        *,
        key: SigningKey,
        deployment: Deployment,
        parameters: ParametersInForce,
        ledger: Ledger,
        folder: BundleFolder,
        clock: Clock,
        bus: Bus,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._folder = folder
        self._key = key
        self._deployment = deployment
        self._parameters = parameters
        self._ledger = ledger
        self._clock = clock
        self._bus = bus
        self._log = log

    async def prepare(self) -> None:
        """Sweep what a crash left of files, and move bundles of an older release out of the ledger."""
        await trio.to_thread.run_sync(self._folder.prepare)
        moved = await move_old_bundles(self._ledger, self._folder)
        if moved:
            self._log.info("bundles of the first format are files now", bundles=moved)

    async def close(self, view: RoundView) -> BundleFacts:
        """Close a round with what is recorded; one that is closed already is only sealed.

        Raises: FatalError EMC-1752 when another bundle of the round was sealed before; RecoverableError
            EMC-1034 (the building process), EMC-1755 (a bundle file that is needed is missing), EMC-1540,
            EMC-1541 (the round's parameters are not known).
        """
        index = view.round
        known = await self._ledger.read(lambda con: find_facts(con, index))
        if known is None:
            began = trio.current_time()
            base, choice = await self._choose(index)
            order = CloseOrder(self._facts(view, base), choice.abandoned, self._folder.root)
            built = await self._build(order)
            await self._keep(view, built, base, choice.abandoned)
            CLOSE_SECONDS.observe(trio.current_time() - began)
        await self.seal_all()
        sealed = await self._ledger.read(lambda con: find_facts(con, index))
        assert sealed is not None
        return sealed

    async def _build(self, order: CloseOrder) -> Built:
        """Where there is much to do, in a process of lower priority."""
        index, params = order.facts.round, self._deployment.params
        start_ms, end_ms = params.round_start_ms(index), params.round_end_ms(index)
        count = partial(count_calls_between, from_ms=start_ms, to_ms=end_ms)
        calls = await self._ledger.read(count, timeout_s=READ_TIMEOUT_S)
        progress = _Progress(index, calls, self._log)
        try:
            if calls < SMALL_CALLS:
                return await self._ledger.read(partial(build_bundle, order=order), timeout_s=READ_TIMEOUT_S)
            timeout_s = CLOSE_TIMEOUT_S + calls / SLOWEST_CALLS_S
            return await run_in_child(
                build_from_file,
                self._ledger.path,
                order,
                timeout_s=timeout_s,
                on_progress=progress,
                niceness=NICENESS,
            )
        finally:
            CLOSE_PROGRESS.set(0)

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
        deployment, schedule = self._deployment, self._parameters.schedule
        params = schedule.params_at(view.round)
        oldest_ms = params.round_start_ms(view.round - params.carry_rounds) - LONGEST_CALL_MS
        tables = schedule.tables_for(params.round_at(oldest_ms), view.round)
        return RoundFacts(
            round=view.round,
            hub=self._key.address,
            chain_id=deployment.chain_id,
            staking=deployment.staking,
            distributor=deployment.distributor,
            params=params,
            prices=tuple(item.table for item in tables),
            prices_from=tuple(item.from_round for item in tables),
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
        void_after = self._parameters.schedule.params_at(index).void_after_rounds

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

    async def _keep(self, view: RoundView, built: Built, base: Base, abandoned: tuple[int, ...]) -> None:
        """Write the closed round and its one hash, all or nothing."""
        closed = built.closed
        index = closed.header.round
        conducts = advance_conduct(base.conducts or {}, index, closed.result.strikes, closed.header.params)
        seal_digest = digest(self._deployment.staking_domain, closed.seal)
        closed_at_ms = self._clock.now_ms()
        seats = {entry.node: entry for entry in view.participants}
        for item in closed.left_out[:LEFT_OUT_LOGGED]:
            self._log.warning(
                "left out of the bundle", round=index, section=item.section.name, item=item.key,
                code=item.code, detail=item.detail[:300],
            )  # fmt: skip

        def write(con: Connection) -> SignOnce:
            outcome = sign_once(con, self._key.address, PURPOSE, str(index), seal_digest)
            if outcome is not SignOnce.CONFLICT:
                insert_bundle(con, closed, seats, built.file, conducts, closed_at_ms)
                replace_carried(con, built.waiting)
                mark_listed(con, index, abandoned, built.deposits)
            return outcome

        if await self._ledger.write(write) is SignOnce.CONFLICT:
            raise FatalError("EMC-1752", f"another bundle of round {index} was sealed before")
        result = closed.result
        self._log.info(
            "round closed", round=index, calls=closed.calls, waiting=len(built.waiting),
            left_out=closed.left_out_count, bundle_bytes=closed.size_bytes,
            issue_wei=str(result.issue_wei), strikes=len(result.strikes), builds_on=base.round,
        )  # fmt: skip
        for number, wallet in enumerate({entry.wallet for entry in view.participants}):
            self._bus.publish(REWARDS, RewardsChanged(wallet))
            if number % TOLD_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()


class _Progress:
    """How far the building of a bundle is: a gauge, and a line in the log every few seconds."""

    def __init__(self, index: int, calls: int, log: structlog.stdlib.BoundLogger) -> None:
        self._round = index
        self._calls = calls
        self._log = log
        self._told_at = trio.current_time()

    def __call__(self, done: int, calls: int) -> None:
        CLOSE_PROGRESS.set(done / max(calls, 1))
        if trio.current_time() - self._told_at >= TELL_EVERY_S:
            self._told_at = trio.current_time()
            self._log.info("closing a round", round=self._round, calls_done=done, calls=calls)


def _is_attested(con: Connection, index: int) -> bool:
    view = find_view(con, index)
    return view is not None and is_quorum(set(list_attestations(con, index)), view)


def _is_refused(con: Connection, index: int) -> bool:
    view = find_view(con, index)
    if view is None:
        return False
    refusing = {key for key, (code, _) in list_refusals(con, index).items() if code not in UNDECIDED}
    return is_quorum(refusing, view)
