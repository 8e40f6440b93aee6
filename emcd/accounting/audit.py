"""Recomputes a round from its bundle alone, and names the first thing that differs.

Order: the bytes, the header, then the sections in the order of the wire, the results, the issue,
the totals, the root; last the hash that was expected. Invariants: no bytes make it raise; the
calls are taken group by group, never all in memory; nothing is believed that can be recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emcd.accounting.consequence import (
    Unequal,
    UnequalRecord,
    tell_cumulative,
    tell_issue,
    tell_plan,
    tell_root,
    tell_status,
    tell_vote,
)
from emcd.accounting.emission import cumulative_wei
from emcd.accounting.evidence_rule import (
    VoteRule,
    require_commitment,
    require_reveal,
    require_status,
)
from emcd.accounting.expectation import (
    Expectation,
    expected_participants,
    expected_totals,
    expected_validators,
    require_expected_header,
)
from emcd.accounting.probe_outcome import compute_probe_outcome
from emcd.accounting.result_check import require_result
from emcd.accounting.round_result import RoundEvidence, RoundResult, compute_round_result
from emcd.accounting.tally import CallTally
from emcd.accounting.terms import RoundTerms, make_terms, require_header, require_participant
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle import BundleHeader
from emcd.proto.bundle_codec import BundleFault, BundleReader, Section, Source, describe_key
from emcd.proto.eip712 import Domain
from emcd.proto.messages import BundleSeal, RoundRoot
from emcd.proto.signing import recover
from emcd.types import Address, Hash


@dataclass(frozen=True)
class Difference:
    """Where a bundle differs from what it should be: the section, the record and why.

    `effect`: what it would do and to whom, if nobody minded; empty where that can't be known.
    """

    code: str
    section: str
    index: int
    record: str
    detail: str
    effect: str = ""

    def __str__(self) -> str:
        name = f" ({self.record})" if self.record else ""
        effect = f"; {self.effect}" if self.effect else ""
        return f"{self.code}: {self.section}[{self.index}]{name}: {self.detail}{effect}"


@dataclass(frozen=True)
class AuditOutcome:
    """What the audit came to; `result` and the counts are there when no difference was found."""

    bundle_hash: Hash | None
    header: BundleHeader | None
    result: RoundResult | None
    difference: Difference | None
    calls: int = 0
    counted_calls: int = 0
    vault_micro: int = 0
    """Of all its calls: what they used of credits bought in the vault."""

    @property
    def ok(self) -> bool:
        return self.difference is None

    @property
    def round_root(self) -> RoundRoot:
        """What a validator signs. Raises: ValueError when the bundle did not pass."""
        if self.difference or self.header is None or self.result is None or self.bundle_hash is None:
            raise ValueError("only a bundle that passed its audit has a root to sign")
        return RoundRoot(self.header.round, self.bundle_hash, self.result.root, self.result.cumulative_wei)


def audit_bundle(
    data: Source, expected: Expectation | None = None, progress: Callable[[int, int], None] | None = None
) -> AuditOutcome:
    """Check every byte, signature and number of a bundle.

    Args: `expected` is what the auditor knows from elsewhere; `progress` is told calls done and calls
    in all. CPU-bound: run it in a thread, a large bundle in a process of its own.
    """
    audit = _Audit(expected or Expectation(), progress)
    try:
        audit.run(data)
    except RemoteProtocolError as exc:
        return AuditOutcome(audit.bundle_hash, audit.header, None, audit.difference(exc))
    tally = audit.tally
    return AuditOutcome(
        audit.bundle_hash,
        audit.header,
        audit.result,
        None,
        tally.calls,
        tally.counted_calls,
        tally.vault_micro,
    )


def check_seal(domain: Domain, hub: Address, index: int, bundle_hash: bytes, signature: bytes) -> bool:
    """Did the hub sign this hash for this round? (Staking domain.)"""
    try:
        return recover(domain, BundleSeal(hub, index, bundle_hash), signature) == hub
    except RemoteProtocolError:
        return False


class _Audit:
    """One run; remembers at which record it stands."""

    header: BundleHeader | None = None
    bundle_hash: Hash | None = None
    result: RoundResult
    tally: CallTally

    def __init__(self, expected: Expectation, progress: Callable[[int, int], None] | None) -> None:
        self._expected = expected
        self._progress = progress
        self._place: tuple[Section, int, str] = (Section.HEADER, 0, "")
        self._effect = ""
        """Of a fault of the record at which it stands."""

    def difference(self, exc: RemoteProtocolError) -> Difference:
        if isinstance(exc, BundleFault):
            effect = exc.effect if isinstance(exc, UnequalRecord) else ""
            return Difference(exc.code, exc.section.label, exc.index, exc.record, exc.reason, effect)
        section, index, record = self._place
        effect = exc.effect if isinstance(exc, Unequal) else self._effect
        return Difference(exc.code, section.label, index, record, exc.detail, effect)

    def run(self, data: Source) -> None:
        self._reader = BundleReader(data)
        self.bundle_hash = self._reader.bundle_hash()
        self.header = header = next(self._walk(Section.HEADER))
        require_header(header)
        require_expected_header(self._expected, header)
        participants = self._read_participants(header)
        validators = self._read_validators()
        self._stand_at(Section.HEADER, 0)
        terms = make_terms(header, participants, validators)
        totals = self._read_totals(header)
        self._read_calls(terms)
        online = self._read_statuses(terms)
        reveals = self._read_reveals(terms)
        probes = compute_probe_outcome(terms, reveals, self.tally, online)
        votes = []
        rule = VoteRule(terms, probes.votable)
        probed = {probe.call_id: probe.node for probe in probes.probes}
        for entry in self._walk(Section.VOTES):
            self._effect = tell_vote(entry.vote.validator, probed.get(entry.vote.call_id))
            rule.require(entry)
            votes.append(entry)
        for _ in self._walk(Section.DEPOSITS):
            pass  # their purchases are the chain's to confirm
        evidence = RoundEvidence(participants, totals, self.tally, online, reveals, probes, votes)
        self.result = compute_round_result(terms, evidence)
        self._check_result(header, {entry.node: entry.wallet for entry in participants})

    def _walk(self, section: Section) -> Iterator[Any]:
        for index, item in enumerate(self._reader.items(section)):
            self._place = (section, index, describe_key(section, item))
            yield item
        self._stand_at(section, self._reader.counts[section])

    def _stand_at(self, section: Section, index: int, record: str = "") -> None:
        self._place = (section, index, record)
        self._effect = ""

    def _read_participants(self, header: BundleHeader) -> list[Any]:
        wanted, rows = expected_participants(self._expected), []
        for entry in self._walk(Section.PARTICIPANTS):
            require_participant(header.params, entry)
            wanted.require(entry.node, entry)
            rows.append(entry)
        wanted.require_complete()
        return rows

    def _read_validators(self) -> list[Any]:
        wanted, rows = expected_validators(self._expected), []
        for entry in self._walk(Section.VALIDATORS):
            if not any(entry.power_wei):
                raise RemoteProtocolError("EMC-1926", "a validator without power")
            wanted.require(entry.node, entry)
            rows.append(entry)
        wanted.require_complete()
        return rows

    def _read_totals(self, header: BundleHeader) -> dict[Address, int]:
        wanted, totals = expected_totals(self._expected), {}
        bound = cumulative_wei(header.previous_round, header.params.epoch_rounds)
        given = 0
        for entry in self._walk(Section.TOTALS):
            amount = int.from_bytes(entry.cumulative_wei, "big")
            given += amount
            if not amount or given > bound:
                raise RemoteProtocolError("EMC-1926", f"{amount} wei: zero, or more than was issued before")
            wanted.require(entry.wallet, entry)
            totals[entry.wallet] = amount
        wanted.require_complete()
        return totals

    def _read_calls(self, terms: RoundTerms) -> None:
        from emcd.accounting.call_audit import audit_calls

        self.tally = audit_calls(terms, self._reader, self._expected.settled_call_ids, self._progress)

    def _read_statuses(self, terms: RoundTerms) -> frozenset[Address]:
        online = set()
        for entry in self._walk(Section.STATUSES):
            self._effect = tell_status(entry.status.node)
            require_status(terms, entry)
            online.add(entry.status.node)
        return frozenset(online)

    def _read_reveals(self, terms: RoundTerms) -> list[Any]:
        plans = {}
        for entry in self._walk(Section.COMMITMENTS):
            self._effect = tell_plan(entry.commitment.validator)
            require_commitment(terms, entry)
            plans[entry.commitment.validator] = entry.commitment
        reveals = []
        for entry in self._walk(Section.REVEALS):
            self._effect = tell_plan(entry.reveal.validator)
            require_reveal(terms, entry, plans)
            reveals.append(entry)
        return reveals

    def _check_result(self, header: BundleHeader, wallets: Mapping[Address, Address]) -> None:
        require_result(self.result, self._walk(Section.RESULTS), wallets)
        self._stand_at(Section.HEADER, 0)
        for code, name, wanted, tell in (
            ("EMC-1931", "issue_wei", self.result.issue_wei, tell_issue),
            ("EMC-1932", "cumulative_wei", self.result.cumulative_wei, tell_cumulative),
        ):
            found = int.from_bytes(getattr(header, name), "big")
            if found != wanted:
                raise Unequal(code, f"{name} is {found}, recomputed {wanted}", tell(found, wanted))
        if header.root != self.result.root:
            detail = f"the root is 0x{header.root.hex()}, recomputed 0x{self.result.root.hex()}"
            raise Unequal("EMC-1933", detail, tell_root())
        if self._expected.bundle_hash is not None and self.bundle_hash != self._expected.bundle_hash:
            raise RemoteProtocolError(
                "EMC-1907", f"expected was a bundle of hash 0x{self._expected.bundle_hash.hex()}"
            )
