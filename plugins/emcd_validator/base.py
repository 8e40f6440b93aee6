"""On which settled round a bundle may build, and what follows from building on it.

A validator builds on bundles it signed, and on those that a quorum published without it. Which
one the next bundle must name follows from that chain alone; what it lacks of it, it fetches from
the hub and checks against the hash on the chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from emcd.accounting.audit import AuditOutcome
from emcd.accounting.expectation import Expectation
from emcd.accounting.offence import list_convictions
from emcd.accounting.round_result import decode_totals
from emcd.accounting.suspension import Conduct, advance_conduct
from emcd.chain import Publication, PublicationState
from emcd.ledger import Connection
from emcd.proto.bundle import BundleHeader
from emcd.proto.params import NetworkParams
from emcd.types import ZERO_HASH, Address
from emcd_validator.bundle_check import BundleFacts, Refusal
from emcd_validator.bundle_store import BundleStore, audit, list_suspended, load_facts
from emcd_validator.chain_view import ChainViews
from emcd_validator.hub_client import HubClient
from emcd_validator.queries.bundles import (
    SettledRound,
    delete_settled,
    find_last_settled,
    find_settled,
    insert_settled,
)
from emcd_validator.validator import Validator

MAX_ADOPTED = 24
GENESIS = SettledRound(
    round=-1,
    bundle_hash=ZERO_HASH,
    root=ZERO_HASH,
    previous_round=-2,
    totals={},
    conduct={},
    vault_used_micro=0,
    is_signed=False,
)


@dataclass(frozen=True)
class Waiting:
    """Not decided yet; asked again at the next poll."""

    code: str
    reason: str


@dataclass(frozen=True)
class _Adopted:
    """A published bundle that was fetched, and agrees with itself."""

    outcome: AuditOutcome
    facts: BundleFacts
    suspended: Mapping[Address, int]


def is_abandoned(
    settled: SettledRound, publication: Publication, round_index: int, params: NetworkParams
) -> bool:
    """Whether a later bundle may leave the round out: it was voided, or nobody published it for too long."""
    if publication.state is PublicationState.VOID:
        return True
    return (
        publication.state is PublicationState.NONE and round_index - settled.round > params.void_after_rounds
    )


def find_skip(header: BundleHeader, last: SettledRound | None, tip_round: int | None) -> Refusal | None:
    """Whether the bundle leaves out a round that it must build on."""
    if last is not None and header.previous_round < last.round:
        return Refusal(
            "EMC-1831", f"it builds on round {header.previous_round} and leaves out round {last.round}"
        )
    if header.previous_round < 0 and tip_round is not None and tip_round < header.round:
        return Refusal("EMC-1831", f"it builds on nothing, and round {tip_round} is published")
    return None


def settle(
    before: SettledRound, outcome: AuditOutcome, facts: BundleFacts, *, is_signed: bool
) -> SettledRound:
    """The state after a bundle that passed its audit."""
    header, result, bundle_hash = outcome.header, outcome.result, outcome.bundle_hash
    assert header is not None
    assert result is not None
    assert bundle_hash is not None
    conduct = advance_conduct(before.conduct, header.round, result.strikes, header.params)
    return SettledRound(
        round=header.round,
        bundle_hash=bundle_hash,
        root=result.root,
        previous_round=before.round,
        totals=decode_totals(result.totals_after),
        conduct=conduct,
        vault_used_micro=before.vault_used_micro + facts.vault_micro,
        is_signed=is_signed,
        convictions=list_convictions(before.conduct, header.round, bundle_hash, result.strikes, header.params)
        if is_signed
        else (),
    )


def write_settled(con: Connection, instance: Address, settled: SettledRound, facts: BundleFacts) -> None:
    """Keep the state after a bundle, in the caller's transaction."""
    insert_settled(con, instance, settled, facts.call_ids, [entry.index for entry in facts.deposits])


class BaseFinder:
    """Finds the settled round a bundle builds on."""

    def __init__(
        self, validator: Validator, hub: HubClient, store: BundleStore, views: ChainViews, timeout_s: float
    ) -> None:
        self._validator = validator
        self._hub = hub
        self._store = store
        self._views = views
        self._timeout_s = timeout_s

    async def find(self, header: BundleHeader) -> SettledRound | Refusal | Waiting:
        """The state before the bundle. Raises: RecoverableError (chain or hub away)."""
        last = await self._find_last(header.round)
        if last is not None and (header.previous_round, header.previous_bundle_hash) == (
            last.round,
            last.bundle_hash,
        ):
            return last
        tip = await self._views.find_tip_round() if last is None else None
        if refusal := find_skip(header, last, tip):
            return refusal
        if header.previous_round < 0:
            return GENESIS
        return await self._adopt(header.previous_round, header.previous_bundle_hash)

    async def _find_last(self, before_round: int) -> SettledRound | None:
        """The newest settled round that still stands; those that came to nothing are forgotten."""
        validator = self._validator
        while True:
            last = await validator.read(lambda con: find_last_settled(con, validator.address, before_round))
            if last is None:
                return None
            publication = await self._views.fetch_publication(last.round)
            if not is_abandoned(last, publication, before_round, validator.params_at(before_round)):
                return last
            validator.log.warning("a settled round came to nothing", code="EMC-1829", round=last.round)
            await validator.write(partial(delete_settled, instance=validator.address, round_index=last.round))

    async def _adopt(self, round_index: int, bundle_hash: bytes) -> SettledRound | Refusal | Waiting:
        """Build on a published round that this validator did not sign, and on those below it."""
        publication = await self._views.fetch_publication(round_index)
        is_published = publication.state in (PublicationState.PENDING, PublicationState.ACTIVE)
        if not is_published or publication.bundle_hash != bundle_hash:
            return Waiting(
                "EMC-1827", f"it builds on round {round_index}, which is neither signed here nor published"
            )
        validator = self._validator
        adopted: list[_Adopted] = []
        base: SettledRound | None = None
        while round_index >= 0 and len(adopted) < MAX_ADOPTED:
            index = round_index
            base = await validator.read(lambda con: find_settled(con, validator.address, index))  # noqa: B023
            if base is not None and base.bundle_hash == bundle_hash:
                break
            base = None
            item = await self._fetch(round_index, bundle_hash)
            if isinstance(item, Refusal | Waiting):
                return item
            adopted.append(item)
            assert item.outcome.header is not None
            round_index, bundle_hash = (
                item.outcome.header.previous_round,
                item.outcome.header.previous_bundle_hash,
            )
        return await self._fold(base or _presume(adopted[-1], round_index), reversed(adopted))

    async def _fetch(self, round_index: int, bundle_hash: bytes) -> _Adopted | Refusal | Waiting:
        path = self._store.path(round_index)
        sealed = await self._hub.find_bundle(round_index, path, self._timeout_s)
        if sealed is None:
            return Waiting("EMC-1827", f"the hub does not serve round {round_index}, on which it builds")
        outcome = await audit(path, Expectation(bundle_hash=bundle_hash, round=round_index), None)
        if outcome.difference is not None:
            return Refusal("EMC-1831", f"round {round_index}, on which it builds: {outcome.difference}")
        facts = await load_facts(path, frozenset(), outcome.vault_micro)
        suspended = await list_suspended(path)
        self._store.drop(round_index)
        return _Adopted(outcome, facts, suspended)

    async def _fold(self, base: SettledRound, adopted: Iterable[_Adopted]) -> SettledRound:
        validator = self._validator
        for item in adopted:
            base = settle(base, item.outcome, item.facts, is_signed=False)
            write = partial(write_settled, instance=validator.address, settled=base, facts=item.facts)
            await validator.write(write)
            validator.log.info("building on a round signed by others", round=base.round)
        return base


def _presume(oldest: _Adopted, previous_round: int) -> SettledRound:
    """The state before the oldest bundle fetched, as far as that bundle itself tells it."""
    if previous_round < 0:
        return GENESIS
    conduct = {node: Conduct((), 1, until) for node, until in oldest.suspended.items()}
    return SettledRound(previous_round, ZERO_HASH, ZERO_HASH, -2, {}, conduct, 0, is_signed=False)
