"""Recomputes a round from its bundle alone, and names the first thing that differs.

Order: the bytes, the header, then the sections in the order of the wire, the results, the issue,
the totals, the root; last the hash that was expected. Invariants: no bytes make it raise; the
calls are streamed, never all in memory; nothing is believed that can be recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emcd.accounting.batch_cover import BatchCover
from emcd.accounting.call_rule import check_standing, hash_call, require_call
from emcd.accounting.emission import cumulative_wei
from emcd.accounting.evidence_rule import (
    require_batch,
    require_commitment,
    require_reveal,
    require_status,
    require_vote,
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
from emcd.proto.bundle_codec import BundleFault, BundleReader, Section, describe_key
from emcd.proto.eip712 import Domain
from emcd.proto.messages import BundleSeal, RoundRoot
from emcd.proto.signing import recover
from emcd.types import Address, Hash


@dataclass(frozen=True)
class Difference:
    """Where a bundle differs from what it should be: the section, the record and why."""

    code: str
    section: str
    index: int
    record: str
    detail: str

    def __str__(self) -> str:
        name = f" ({self.record})" if self.record else ""
        return f"{self.code}: {self.section}[{self.index}]{name}: {self.detail}"


@dataclass(frozen=True)
class AuditOutcome:
    """What the audit came to; `result` and the counts are there when no difference was found."""

    bundle_hash: Hash | None
    header: BundleHeader | None
    result: RoundResult | None
    difference: Difference | None
    calls: int = 0
    counted_calls: int = 0

    @property
    def ok(self) -> bool:
        return self.difference is None

    @property
    def round_root(self) -> RoundRoot:
        """What a validator signs. Raises: ValueError when the bundle did not pass."""
        if self.difference or self.header is None or self.result is None or self.bundle_hash is None:
            raise ValueError("only a bundle that passed its audit has a root to sign")
        return RoundRoot(self.header.round, self.bundle_hash, self.result.root, self.result.cumulative_wei)


def audit_bundle(data: bytes, expected: Expectation | None = None) -> AuditOutcome:
    """Check every byte, signature and number of a bundle.

    Args: `expected` is what the auditor knows from elsewhere. CPU-bound: run it in a thread.
    """
    audit = _Audit(expected or Expectation())
    try:
        audit.run(data)
    except BundleFault as fault:
        place = Difference(fault.code, fault.section.label, fault.index, fault.record, fault.reason)
        return AuditOutcome(audit.bundle_hash, audit.header, None, place)
    except RemoteProtocolError as exc:
        return AuditOutcome(audit.bundle_hash, audit.header, None, audit.difference(exc))
    tally = audit.tally
    return AuditOutcome(audit.bundle_hash, audit.header, audit.result, None, tally.calls, tally.counted_calls)


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

    def __init__(self, expected: Expectation) -> None:
        self._expected = expected
        self._place: tuple[Section, int, str] = (Section.HEADER, 0, "")

    def difference(self, exc: RemoteProtocolError) -> Difference:
        section, index, record = self._place
        return Difference(exc.code, section.label, index, record, exc.detail)

    def run(self, data: bytes) -> None:
        self._reader = BundleReader(data)
        self.bundle_hash = self._reader.bundle_hash()
        self.header = header = next(self._walk(Section.HEADER))
        require_header(header)
        require_expected_header(self._expected, header)
        participants = self._read_participants()
        validators = self._read_validators()
        self._stand_at(Section.HEADER, 0)
        terms = make_terms(header, participants, validators)
        totals = self._read_totals(header)
        self._read_calls(terms)
        online = self._read_statuses(terms)
        reveals = self._read_reveals(terms)
        probes = compute_probe_outcome(terms, reveals, self.tally.probed, online)
        votes = []
        for entry in self._walk(Section.VOTES):
            require_vote(terms, entry, probes.struck)
            votes.append(entry)
        for _ in self._walk(Section.DEPOSITS):
            pass  # their purchases are the chain's to confirm
        revealed = frozenset(entry.reveal.validator for entry in reveals)
        evidence = RoundEvidence(participants, totals, self.tally, online, revealed, probes, votes)
        self.result = compute_round_result(terms, evidence)
        self._check_result(header)

    def _walk(self, section: Section) -> Iterator[Any]:
        for index, item in enumerate(self._reader.items(section)):
            self._place = (section, index, describe_key(section, item))
            yield item
        self._stand_at(section, self._reader.counts[section])

    def _stand_at(self, section: Section, index: int, record: str = "") -> None:
        self._place = (section, index, record)

    def _read_participants(self) -> list[Any]:
        wanted, rows = expected_participants(self._expected), []
        for entry in self._walk(Section.PARTICIPANTS):
            require_participant(entry)
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
        batches = []
        for entry in self._walk(Section.BATCHES):
            require_batch(terms, entry.batch, entry.signature)
            batches.append(entry)
        cover = BatchCover(terms, batches)
        probed = {probe.call_id for entry in self._reader.items(Section.REVEALS) for probe in entry.probes}
        settled = self._expected.settled_call_ids
        self.tally = CallTally(terms, probed)
        for call in self._walk(Section.CALLS):
            hashes = hash_call(call.forward, call.receipt, call.delivery)
            require_call(terms, call.forward, call.receipt, call.delivery, hashes)
            if settled is not None and call.forward.call_id in settled:
                raise RemoteProtocolError("EMC-1915", "an earlier bundle has paid this call")
            is_proven = cover.place(call, hashes)
            standing = check_standing(call.forward, call.receipt, call.delivery, is_proven=is_proven)
            self.tally.add(call.forward, call.receipt, call.delivery, hashes, standing, is_proven=is_proven)
        for index, entry in enumerate(batches):
            self._stand_at(Section.BATCHES, index, describe_key(Section.BATCHES, entry))
            cover.require_whole(index)

    def _read_statuses(self, terms: RoundTerms) -> frozenset[Address]:
        online = set()
        for entry in self._walk(Section.STATUSES):
            require_status(terms, entry)
            online.add(entry.status.node)
        return frozenset(online)

    def _read_reveals(self, terms: RoundTerms) -> list[Any]:
        plans = {}
        for entry in self._walk(Section.COMMITMENTS):
            require_commitment(terms, entry)
            plans[entry.commitment.validator] = entry.commitment
        reveals = []
        for entry in self._walk(Section.REVEALS):
            require_reveal(terms, entry, plans)
            reveals.append(entry)
        return reveals

    def _check_result(self, header: BundleHeader) -> None:
        require_result(self.result, self._walk(Section.RESULTS))
        self._stand_at(Section.HEADER, 0)
        for code, name, wanted in (
            ("EMC-1931", "issue_wei", self.result.issue_wei),
            ("EMC-1932", "cumulative_wei", self.result.cumulative_wei),
        ):
            found = int.from_bytes(getattr(header, name), "big")
            if found != wanted:
                raise RemoteProtocolError(code, f"{name} is {found}, recomputed {wanted}")
        if header.root != self.result.root:
            raise RemoteProtocolError(
                "EMC-1933", f"the root is 0x{header.root.hex()}, recomputed 0x{self.result.root.hex()}"
            )
        if self._expected.bundle_hash is not None and self.bundle_hash != self._expected.bundle_hash:
            raise RemoteProtocolError(
                "EMC-1907", f"expected was a bundle of hash 0x{self._expected.bundle_hash.hex()}"
            )
