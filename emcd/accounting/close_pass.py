"""The one pass over a round's evidence that writes its bundle. `round_close.py` is the way in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

from emcd.accounting.batch_pick import BatchPick
from emcd.accounting.call_sum import CallSums
from emcd.accounting.call_take import CallTake
from emcd.accounting.evidence_rule import VoteRule, require_commitment, require_reveal, require_status
from emcd.accounting.probe_outcome import compute_probe_outcome
from emcd.accounting.round_close import MAX_LEFT_OUT, ClosedRound, Evidence, LeftOut, RoundFacts
from emcd.accounting.round_result import RoundEvidence, RoundResult, compute_round_result, encode_totals
from emcd.accounting.tally import CallTally
from emcd.accounting.terms import FORMAT_VERSION, RoundTerms, make_terms, require_participant
from emcd.errors import ProtocolError, RemoteProtocolError
from emcd.money import encode_wei
from emcd.proto.bundle import BundleHeader, CommitmentEntry, DepositEntry, RevealEntry, StatusEntry
from emcd.proto.bundle_codec import Section, describe_key, sort_key
from emcd.proto.bundle_shape import require_shape
from emcd.proto.bundle_write import BundleWriter, CallWriter, number_signers, write_batches
from emcd.proto.records import format_call_id
from emcd.types import ZERO_HASH

T = TypeVar("T", bound=msgspec.Struct)
Progress = Callable[[int, int], None]


class _Kept(NamedTuple):
    statuses: tuple[StatusEntry, ...]
    commitments: tuple[CommitmentEntry, ...]
    reveals: tuple[RevealEntry, ...]
    deposits: tuple[DepositEntry, ...]


class ClosePass:
    """Closes one round into one file."""

    def __init__(
        self, facts: RoundFacts, out: BinaryIO, *, signatures: bool, progress: Progress | None
    ) -> None:
        """Raises: RemoteProtocolError EMC-1905, EMC-1926 when the facts are wrong."""
        self._signatures = signatures
        self._progress = progress
        self._left_out: list[LeftOut] = []
        self._left_out_count = 0
        self._batches = 0
        self._participants = _sorted(Section.PARTICIPANTS, facts.participants)
        for entry in self._participants:
            require_participant(facts.params, entry)
        self._validators = tuple(v for v in _sorted(Section.VALIDATORS, facts.validators) if any(v.power_wei))
        self._totals = facts.totals
        self._header = _draft_header(facts)
        self._terms: RoundTerms = make_terms(self._header, self._participants, self._validators)
        self._writer = BundleWriter(out)

    def run(self, evidence: Evidence) -> ClosedRound:
        """Raises: LocalProtocolError EMC-1904 when the calls do not ascend."""
        terms, signatures = self._terms, self._signatures
        kept = self._keep_first(evidence)
        for section, items in (
            (Section.HEADER, (self._header,)),
            (Section.PARTICIPANTS, self._participants),
            (Section.VALIDATORS, self._validators),
            (Section.TOTALS, encode_totals(self._totals)),
        ):
            self._writer.write_items(section, items)
        tally = self._write_calls(evidence, kept.reveals)
        online = frozenset(entry.status.node for entry in kept.statuses)
        probes = compute_probe_outcome(terms, kept.reveals, tally, online)
        rule = VoteRule(terms, probes.votable, signatures=signatures)
        votes = self._keep(Section.VOTES, evidence.votes, rule.require)
        result = compute_round_result(
            terms, RoundEvidence(self._participants, self._totals, tally, online, kept.reveals, probes, votes)
        )
        for section, rows in (
            (Section.STATUSES, kept.statuses),
            (Section.COMMITMENTS, kept.commitments),
            (Section.REVEALS, kept.reveals),
            (Section.VOTES, votes),
            (Section.DEPOSITS, kept.deposits),
            (Section.RESULTS, result.results),
        ):
            self._writer.write_items(section, rows)
        return self._finish(result, tally)

    def _finish(self, result: RoundResult, tally: CallTally) -> ClosedRound:
        header = msgspec.structs.replace(
            self._header,
            issue_wei=encode_wei(result.issue_wei),
            root=result.root,
            cumulative_wei=encode_wei(result.cumulative_wei),
        )
        bundle_hash, size = self._writer.finish(header)
        return ClosedRound(
            header=header,
            bundle_hash=bundle_hash,
            size_bytes=size,
            result=result,
            left_out=tuple(self._left_out),
            left_out_count=self._left_out_count,
            calls=tally.calls,
            batches=self._batches,
        )

    def _keep_first(self, evidence: Evidence) -> _Kept:
        """What is read before the calls."""
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
        return _Kept(statuses, commitments, reveals, deposits)

    def _write_calls(self, evidence: Evidence, reveals: tuple[RevealEntry, ...]) -> CallTally:
        """Calls and batches: the only sections that are not in memory."""

        def refuse(call_id: bytes, exc: ProtocolError) -> None:
            name = format_call_id(call_id) if isinstance(call_id, bytes) else ""
            self._leave_out(LeftOut(Section.CALLS, name, exc.code, exc.detail))

        def refuse_batch(root: str, exc: ProtocolError) -> None:
            self._leave_out(LeftOut(Section.BATCHES, root, exc.code, exc.detail))

        sums = CallSums(self._terms, {probe.call_id for entry in reveals for probe in entry.probes})
        take = CallTake(self._terms, CallWriter(self._writer), sums, refuse)
        take.take(evidence.calls, self._progress)
        entries, places = BatchPick(
            self._terms, take.index(), evidence.batches, refuse_batch, signatures=self._signatures
        ).choose()
        tally = take.settle(places)
        write_batches(self._writer, entries, number_signers(self._terms.hub, take.nodes))
        self._batches = len(entries)
        return tally

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
                self._leave_out(LeftOut(section, _key_text(section, item), exc.code, exc.detail))
        return tuple(kept[key] for key in sorted(kept))

    def _leave_out(self, row: LeftOut) -> None:
        self._left_out_count += 1
        if len(self._left_out) < MAX_LEFT_OUT:
            self._left_out.append(row)


def _draft_header(facts: RoundFacts) -> BundleHeader:
    return BundleHeader(
        FORMAT_VERSION, facts.round, facts.hub, facts.chain_id, facts.staking, facts.distributor,
        facts.params, facts.prices, facts.prices_from, facts.snapshot_block, facts.snapshot_block_hash,
        facts.beacon_block, facts.beacon_block_hash, facts.previous_round,
        facts.previous_bundle_hash, bytes(32), ZERO_HASH, bytes(32),
    )  # fmt: skip


def _sorted(section: Section, items: Iterable[T]) -> tuple[T, ...]:
    return tuple(sorted(items, key=lambda item: sort_key(section, item)))


def _key_text(section: Section, item: msgspec.Struct) -> str:
    try:
        return describe_key(section, item)
    except (ValueError, RemoteProtocolError):
        return ""
