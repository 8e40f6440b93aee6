"""Closes a round: evidence in, the canonical bundle out.

What no audit would accept is left out and named, so that one bad record of one peer never stops
the round. Invariant: what it builds passes `audit_bundle`. CPU-bound: run it in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from emcd.accounting.batch_pick import BatchPick, SignedBatch
from emcd.accounting.call_rule import check_standing, hash_call, require_call
from emcd.accounting.evidence_rule import require_commitment, require_reveal, require_status, require_vote
from emcd.accounting.probe_outcome import compute_probe_outcome
from emcd.accounting.round_result import RoundEvidence, RoundResult, compute_round_result, encode_totals
from emcd.accounting.tally import CallTally
from emcd.accounting.terms import FORMAT_VERSION, RoundTerms, make_terms, require_participant
from emcd.errors import ProtocolError, RemoteProtocolError
from emcd.money import encode_wei
from emcd.proto.bundle import (
    Bundle,
    BundleHeader,
    CallEntry,
    CommitmentEntry,
    DepositEntry,
    RevealEntry,
    SnapshotEntry,
    StatusEntry,
    ValidatorPower,
    VoteEntry,
)
from emcd.proto.bundle_codec import Section, compute_bundle_hash, describe_key, encode_bundle, sort_key
from emcd.proto.bundle_shape import require_shape
from emcd.proto.messages import BundleSeal, RoundRoot
from emcd.proto.params import NetworkParams, PriceTable
from emcd.proto.records import Delivery, Forward, Receipt, format_call_id
from emcd.types import ZERO_HASH, Address, Hash

__all__ = ["CallRecords", "ClosedRound", "Evidence", "LeftOut", "RoundFacts", "SignedBatch", "close_round"]

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class CallRecords:
    """The records of one call; the builder finds their batches."""

    forward: Forward
    receipt: Receipt | None
    delivery: Delivery


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """What the chain and the bundle before say; `totals` are the cumulative wei before this round."""

    round: int
    hub: Address
    chain_id: int
    staking: Address
    distributor: Address
    params: NetworkParams
    prices: tuple[PriceTable, ...]
    snapshot_block: int
    snapshot_block_hash: bytes
    beacon_block: int
    beacon_block_hash: bytes
    participants: Sequence[SnapshotEntry]
    validators: Sequence[ValidatorPower]
    totals: Mapping[Address, int] = field(default_factory=dict)
    previous_round: int = -1
    previous_bundle_hash: bytes = ZERO_HASH


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What came in, in any order; of several with one key the first stays."""

    calls: Iterable[CallRecords] = ()
    batches: Iterable[SignedBatch] = ()
    statuses: Iterable[StatusEntry] = ()
    commitments: Iterable[CommitmentEntry] = ()
    reveals: Iterable[RevealEntry] = ()
    votes: Iterable[VoteEntry] = ()
    deposits: Iterable[DepositEntry] = ()


@dataclass(frozen=True)
class LeftOut:
    """Evidence that is not in the bundle, and why."""

    section: Section
    key: str
    code: str
    detail: str


@dataclass(frozen=True)
class ClosedRound:
    """The bundle, its bytes and hash, and what it gives."""

    bundle: Bundle
    data: bytes
    bundle_hash: Hash
    result: RoundResult
    left_out: tuple[LeftOut, ...]

    @property
    def seal(self) -> BundleSeal:
        """For the hub to sign, once."""
        return BundleSeal(self.bundle.header.hub, self.bundle.header.round, self.bundle_hash)

    @property
    def round_root(self) -> RoundRoot:
        """What the validators will sign."""
        return RoundRoot(
            self.bundle.header.round, self.bundle_hash, self.result.root, self.result.cumulative_wei
        )


def close_round(facts: RoundFacts, evidence: Evidence, *, signatures_checked: bool = False) -> ClosedRound:
    """Build the bundle of a round.

    Args: `signatures_checked`: every signature of the evidence was verified when it came.
    Raises: LocalProtocolError, RemoteProtocolError EMC-1905, 1926 when the facts themselves are wrong.
    """
    return _Builder(facts, not signatures_checked).build(evidence)


class _Builder:
    def __init__(self, facts: RoundFacts, signatures: bool) -> None:
        self._signatures = signatures
        self._left_out: list[LeftOut] = []
        self._participants = _sorted(Section.PARTICIPANTS, facts.participants)
        for entry in self._participants:
            require_participant(entry)
        self._validators = tuple(v for v in _sorted(Section.VALIDATORS, facts.validators) if any(v.power_wei))
        self._totals = facts.totals
        self._header = _draft_header(facts)
        self._terms: RoundTerms = make_terms(self._header, self._participants, self._validators)

    def build(self, evidence: Evidence) -> ClosedRound:
        terms, signatures = self._terms, self._signatures
        statuses = self._keep(
            Section.STATUSES, evidence.statuses, lambda e: require_status(terms, e, signatures=signatures)
        )
        commitments = self._keep(
            Section.COMMITMENTS,
            evidence.commitments,
            lambda e: require_commitment(terms, e, signatures=signatures),
        )
        plans = {entry.commitment.validator: entry.commitment for entry in commitments}
        reveals = self._keep(
            Section.REVEALS,
            evidence.reveals,
            lambda e: require_reveal(terms, e, plans, signatures=signatures),
        )
        deposits = self._keep(Section.DEPOSITS, evidence.deposits, lambda e: None)
        tally = CallTally(terms, {probe.call_id for entry in reveals for probe in entry.probes})
        pick = BatchPick(terms, evidence.batches, signatures=signatures)
        self._left_out += [LeftOut(Section.BATCHES, *row) for row in pick.refused]
        calls = self._take_calls(evidence.calls, pick, tally)
        online = frozenset(entry.status.node for entry in statuses)
        probes = compute_probe_outcome(terms, reveals, tally.probed, online)
        struck = probes.struck
        votes = self._keep(
            Section.VOTES, evidence.votes, lambda e: require_vote(terms, e, struck, signatures=signatures)
        )
        revealed = frozenset(entry.reveal.validator for entry in reveals)
        result = compute_round_result(
            terms, RoundEvidence(self._participants, self._totals, tally, online, revealed, probes, votes)
        )
        header = msgspec.structs.replace(
            self._header,
            issue_wei=encode_wei(result.issue_wei),
            root=result.root,
            cumulative_wei=encode_wei(result.cumulative_wei),
        )
        bundle = Bundle(
            header, self._participants, self._validators, encode_totals(self._totals), pick.entries(), calls,
            statuses, commitments, reveals, votes, deposits, result.results,
        )  # fmt: skip
        data = encode_bundle(bundle)
        return ClosedRound(bundle, data, compute_bundle_hash(data), result, tuple(self._left_out))

    def _keep(self, section: Section, items: Iterable[T], require: Callable[[T], None]) -> tuple[T, ...]:
        kept: dict[Any, T] = {}
        for item in items:
            try:
                require_shape(item)
                key = sort_key(section, item)
                if key not in kept:
                    require(item)
                    kept[key] = item
            except ProtocolError as exc:
                self._left_out.append(LeftOut(section, _key_text(section, item), exc.code, exc.detail))
        return tuple(kept[key] for key in sorted(kept))

    def _take_calls(
        self, records: Iterable[CallRecords], pick: BatchPick, tally: CallTally
    ) -> tuple[CallEntry, ...]:
        taken: dict[bytes, CallEntry] = {}
        for item in records:
            if item.forward.call_id in taken:
                continue
            try:
                taken[item.forward.call_id] = self._take_call(item, pick, tally)
            except ProtocolError as exc:
                self._left_out.append(
                    LeftOut(Section.CALLS, format_call_id(item.forward.call_id), exc.code, exc.detail)
                )
        pick.settle()
        return tuple(pick.resolve(taken[call_id]) for call_id in sorted(taken))

    def _take_call(self, item: CallRecords, pick: BatchPick, tally: CallTally) -> CallEntry:
        forward, receipt, delivery = item.forward, item.receipt, item.delivery
        require_shape(CallEntry(forward, receipt, delivery, None, None, None))
        hashes = hash_call(forward, receipt, delivery)
        require_call(self._terms, forward, receipt, delivery, hashes)
        refs = pick.place(forward.node, hashes, has_receipt=receipt is not None)
        is_proven = None not in refs
        standing = check_standing(forward, receipt, delivery, is_proven=is_proven)
        tally.add(forward, receipt, delivery, hashes, standing, is_proven=is_proven)
        return CallEntry(forward, receipt, delivery, *refs)


def _draft_header(facts: RoundFacts) -> BundleHeader:
    return BundleHeader(
        FORMAT_VERSION, facts.round, facts.hub, facts.chain_id, facts.staking, facts.distributor,
        facts.params, tuple(sorted(facts.prices, key=lambda table: table.version)), facts.snapshot_block,
        facts.snapshot_block_hash, facts.beacon_block, facts.beacon_block_hash, facts.previous_round,
        facts.previous_bundle_hash, bytes(32), ZERO_HASH, bytes(32),
    )  # fmt: skip


def _sorted(section: Section, items: Iterable[T]) -> tuple[T, ...]:
    return tuple(sorted(items, key=lambda item: sort_key(section, item)))


def _key_text(section: Section, item: msgspec.Struct) -> str:
    try:
        return describe_key(section, item)
    except (ValueError, RemoteProtocolError):
        return ""
