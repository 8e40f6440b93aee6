"""Auditing the hub's bundle of a closed round, and signing its root: once, or not at all.

Order: the seal, the view of the chain, the round it builds on, the audit, then what only a witness
knows. Whatever differs first is written down and served instead of a signature. Invariants: one
root a round, ever, recorded before it is signed; the totals, conduct and calls that the next
round is checked against are written in that same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio

from emcd.accounting.audit import AuditOutcome, check_seal
from emcd.accounting.expectation import Expectation
from emcd.accounting.receipt import CallReceipt
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.ledger import Connection
from emcd.proto.hashing import keccak
from emcd.proto.messages import RoundRoot
from emcd.types import Address
from emcd_validator.base import BaseFinder, Waiting, settle, write_settled
from emcd_validator.bundle_check import (
    BundleFacts,
    Knowledge,
    KnownDeposit,
    OwnCall,
    Refusal,
    find_refusal,
    list_wanted,
)
from emcd_validator.bundle_store import (
    BundleStore,
    SettledCalls,
    audit,
    compute_hash,
    find_last_deposit,
    load_facts,
    load_header,
)
from emcd_validator.chain_view import ChainViews
from emcd_validator.entry import read_round_root_item, round_root_item
from emcd_validator.events import ATTESTATION, AttestationGiven
from emcd_validator.hub_client import HubClient, SealedBundle
from emcd_validator.judge import HTTP_OK
from emcd_validator.metrics import AUDIT_SECONDS, DECISIONS
from emcd_validator.probe_request import path_of, upstream_hash
from emcd_validator.queries.bundles import (
    SettledRound,
    list_bundles,
    list_settled_deposits,
    set_refusal,
)
from emcd_validator.queries.items import Kind, list_omissions
from emcd_validator.queries.rounds import ProbeRow, list_probes
from emcd_validator.queries.settled_calls import is_settled
from emcd_validator.seal import keep_seal
from emcd_validator.signatory import find_own, issue
from emcd_validator.statement import read_receipt
from emcd_validator.validator import Validator
from emcd_validator.view import RoundView
from emcd_validator.voter import Voter


@dataclass(frozen=True)
class Signed:
    """The root was signed."""

    root: RoundRoot


Decision = Signed | Refusal | Waiting


class Attester:
    """The audits and attestations of one validator."""

    def __init__(
        self, validator: Validator, hub: HubClient, store: BundleStore, views: ChainViews, voter: Voter
    ) -> None:
        self._validator = validator
        self._hub = hub
        self._store = store
        self._views = views
        self._voter = voter
        self._timeout_s = min(60.0, max(3.0, validator.params.round_s / 4))
        self._bases = BaseFinder(validator, hub, store, views, self._timeout_s)
        self.decisions: dict[int, Decision] = {}
        """What this process decided, by round; the ledger has it for good."""

    async def run(self) -> None:
        """Decide on every closed round that may still be published. Runs until cancelled."""
        validator = self._validator
        await self._store.prepare()
        while True:
            newest = validator.current_round() - 2
            oldest = max(0, newest - validator.params_now().void_after_rounds)
            for stale in [index for index in self.decisions if index < oldest]:
                del self.decisions[stale]
            for index in range(oldest, newest + 1):
                try:
                    await self.decide(index)
                except RecoverableError as exc:
                    validator.log.warning(
                        "attestation delayed", round=index, code=exc.code, detail=exc.detail
                    )
            await trio.sleep(validator.poll_s)

    async def decide(self, round_index: int) -> Decision:
        """Audit the round's bundle and sign it or refuse; what was decided stays.

        Raises: RecoverableError when hub or chain are away.
        """
        known = self.decisions.get(round_index) or await self._load(round_index)
        if known is None or isinstance(known, Waiting):
            try:
                known = await self._decide(round_index)
            except RemoteProtocolError as exc:
                known = Waiting(exc.code, exc.detail)
        if not isinstance(known, Waiting):
            self._store.drop(round_index)
        self.decisions[round_index] = known
        return known

    async def _load(self, round_index: int) -> Decision | None:
        """What an earlier run of the daemon decided."""
        validator = self._validator
        item = await find_own(validator, Kind.ROUND_ROOT, round_index)
        if item is not None:
            return Signed(read_round_root_item(await issue(validator, item)))
        rows = await validator.read(lambda con: list_bundles(con, validator.address, round_index))
        return next((Refusal(row.code, row.reason) for row in rows if row.code), None)

    async def _decide(self, round_index: int) -> Decision:
        sealed = await self._hub.find_bundle(round_index, self._store.path(round_index), self._timeout_s)
        if sealed is None:
            return Waiting("EMC-1801", "the hub serves no bundle of the round yet")
        decision = await self._keep_seal(round_index, sealed) or await self._judge(round_index, sealed)
        if isinstance(decision, Refusal):
            await self._refuse(round_index, sealed, decision)
        return decision

    async def _keep_seal(self, round_index: int, sealed: SealedBundle) -> Decision | None:
        """Check the hub's word for the bytes, and whether it gave another before."""
        validator = self._validator
        actual = await compute_hash(sealed.path)
        if actual != sealed.bundle_hash:
            return Waiting("EMC-1807", f"the bytes have hash 0x{actual.hex()}, not the one in the header")
        if not check_seal(validator.domain, validator.hub, round_index, actual, sealed.seal):
            return Waiting("EMC-1807", "the seal is not the hub's for this hash and round")
        hashes = await keep_seal(validator, round_index, actual, sealed.seal)
        if hashes[0] != actual:
            return Refusal("EMC-1808", f"the hub sealed 0x{hashes[0].hex()} before")
        return None

    async def _judge(self, round_index: int, sealed: SealedBundle) -> Decision:
        view = await self._views.fetch_checked_view(round_index)
        base = await self._bases.find(await load_header(sealed.path))
        if not isinstance(base, SettledRound):
            return base
        expected = await self._expect(view, base, sealed)
        with AUDIT_SECONDS.time():
            outcome = await audit(sealed.path, expected, self._settled(round_index))
        if outcome.difference is not None:
            return Refusal(outcome.difference.code, str(outcome.difference))
        knowledge = await self._know(view, base, sealed)
        if isinstance(knowledge, Waiting):
            return knowledge
        facts = await load_facts(sealed.path, list_wanted(knowledge), outcome.vault_micro)
        return find_refusal(facts, knowledge) or await self._accept(view, base, outcome, facts)

    async def _expect(self, view: RoundView, base: SettledRound, sealed: SealedBundle) -> Expectation:
        validator, deployment = self._validator, self._validator.deployment
        tables = validator.parameters.schedule.tables_for(0, view.round)
        return Expectation(
            bundle_hash=sealed.bundle_hash,
            round=view.round,
            hub=validator.hub,
            chain_id=deployment.chain_id,
            staking=deployment.staking,
            distributor=deployment.distributor,
            params=validator.params_at(view.round),
            prices=tuple(item.table for item in tables),
            prices_from=tuple(item.from_round for item in tables),
            snapshot_block=view.snapshot_block,
            snapshot_block_hash=view.snapshot_hash,
            beacon_block=view.beacon_block,
            beacon_block_hash=view.beacon_hash,
            participants=view.suspended(base.conduct),
            validators=view.validators,
            previous_round=base.round,
            previous_bundle_hash=base.bundle_hash,
            totals=base.totals,
        )

    def _settled(self, round_index: int) -> SettledCalls:
        """Where the calls stand that no bundle of this round may pay again."""
        validator = self._validator
        first = round_index - validator.params_at(round_index).carry_rounds
        return SettledCalls(validator.ledger.path, validator.address, first, round_index - 1)

    async def _list_open(
        self, filed: Sequence[tuple[bytes, Address]], round_index: int
    ) -> list[tuple[bytes, Address]]:
        """Those filed omissions that no bundle has settled since."""
        me = self._validator.address
        first = round_index - self._validator.params_at(round_index).carry_rounds

        def read(con: Connection) -> list[tuple[bytes, Address]]:
            return [item for item in filed if not is_settled(con, me, item[0], first, round_index - 1)]

        return await self._validator.read(read)

    async def _know(self, view: RoundView, base: SettledRound, sealed: SealedBundle) -> Knowledge | Waiting:
        """What this validator witnessed of the round."""
        validator, me, round_index = self._validator, self._validator.address, view.round
        params = validator.params_at(round_index)
        first = round_index - params.carry_rounds
        probes = await validator.read(lambda con: list_probes(con, me, round_index))
        # The hub can fetch what was filed before the round began in two graces: a node that sends its
        # batch to validators only, and late, makes no bundle wrong.
        filed = await validator.read(
            lambda con: list_omissions(con, me, first, round_index - 1, params.round_start_ms(round_index))
        )
        deposits = {item.index: item for item in await self._views.fetch_deposits()}
        listed = await find_last_deposit(sealed.path)
        if listed not in deposits and listed >= 0:
            return Waiting("EMC-1826", f"deposit {listed} is not on the chain as this validator sees it")
        return Knowledge(
            validator=validator.speaker(view.members),
            round=round_index,
            own=await self._voter.list_own(round_index),
            held=await self._voter.list_held(round_index, in_time=True),
            own_calls=[call for probe in probes if (call := make_own_call(probe)) is not None],
            struck=await self._voter.list_struck(round_index),
            omissions=await self._list_open(filed, round_index),
            deposits={
                index: KnownDeposit(item.account, item.amount_wei, item.credits_micro, item.block)
                for index, item in deposits.items()
            },
            credited=await validator.read(lambda con: list_settled_deposits(con, me, round_index)),
            vault_used_micro=base.vault_used_micro,
        )

    async def _accept(
        self, view: RoundView, base: SettledRound, outcome: AuditOutcome, facts: BundleFacts
    ) -> Decision:
        """Build on the bundle from now on, and sign it where this validator has a say."""
        validator = self._validator
        me = validator.speaker(view.members)
        is_member = me in view.members
        settled = settle(base, outcome, facts, is_signed=is_member)
        keep = partial(write_settled, instance=validator.address, settled=settled, facts=facts)
        if not is_member:
            await validator.write(keep)
            return Refusal("EMC-1828", "this validator is not in the epoch's set")
        item = await issue(validator, round_root_item(outcome.round_root, me, validator.now_ms()), keep)
        root = read_round_root_item(item)
        self._tell(view.round, root.bundle_hash, "", "")
        validator.log.info("round attested", round=view.round, bundle_hash="0x" + root.bundle_hash.hex())
        return Signed(root)

    async def _refuse(self, round_index: int, sealed: SealedBundle, refusal: Refusal) -> None:
        validator = self._validator
        write = partial(
            set_refusal,
            instance=validator.address,
            round_index=round_index,
            bundle_hash=sealed.bundle_hash,
            code=refusal.code,
            reason=refusal.reason,
        )
        await validator.write(write)
        self._tell(round_index, sealed.bundle_hash, refusal.code, refusal.reason)
        validator.log.error("round refused", round=round_index, code=refusal.code, reason=refusal.reason)

    def _tell(self, round_index: int, bundle_hash: bytes, code: str, reason: str) -> None:
        event = AttestationGiven(self._validator.address, round_index, bundle_hash, code, reason)
        self._validator.bus.publish(ATTESTATION, event)
        DECISIONS.labels(code).inc()


def make_own_call(probe: ProbeRow) -> OwnCall | None:
    """What the bundle must say of an own probe that was answered; None where it need not say anything."""
    request = upstream_hash(path_of(probe.request_body), probe.request_body)
    if probe.status != HTTP_OK or not probe.call_id or request is None:
        return None
    receipt = _find_receipt(probe)
    if receipt is not None and receipt.delivery.round != probe.round:
        return None
    return OwnCall(probe.call_id, request, keccak(probe.response_body), receipt)


def _find_receipt(probe: ProbeRow) -> CallReceipt | None:
    """The receipt of the probe's call, if the hub gave one."""
    try:
        receipt = read_receipt(probe.receipt)
    except RemoteProtocolError:
        return None
    return receipt if receipt.forward.call_id == probe.call_id else None
