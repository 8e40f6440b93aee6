"""What batches, statuses, commitments, reveals and votes must be to stand in a bundle.

Every function raises RemoteProtocolError with the code of its kind of evidence. Signatures are
checked here and nowhere else; `signatures=False` is for a hub that checked them on arrival.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from emcd.accounting.plan import compute_commitment, compute_probes_hash
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.proto.address import address_bytes
from emcd.proto.bundle import CommitmentEntry, ProbeResult, RevealEntry, StatusEntry, VoteEntry
from emcd.proto.eip712 import TypedStruct
from emcd.proto.messages import PlanCommitment, Verdict
from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.proto.records import BATCH_RECORDS, RecordBatch, RecordKind
from emcd.proto.signing import require_signer
from emcd.types import ZERO_HASH, Address

NO_CALL = bytes(16)
MAX_VOTES = 4096
"""Of one validator in a round: more than it is ever drawn for, and no room to flood a bundle with."""
_KINDS = frozenset(int(kind) for kind in RecordKind)
_VERDICTS = frozenset(int(verdict) for verdict in Verdict)


def require_batch(
    terms: RoundTerms, batch: RecordBatch, signature: bytes, *, signatures: bool = True
) -> None:
    """Raises: RemoteProtocolError EMC-1910."""
    if batch.kind not in _KINDS:
        raise RemoteProtocolError("EMC-1910", f"{batch.kind} is no kind of record")
    if not 0 < batch.count <= BATCH_RECORDS:
        raise RemoteProtocolError("EMC-1910", f"a batch of {batch.count} records")
    if batch.kind != RecordKind.RECEIPT and batch.signer != terms.hub:
        raise RemoteProtocolError("EMC-1910", f"{batch.signer} signed records that only the hub may sign")
    _require_signature("EMC-1910", terms, batch, signature, batch.signer, signatures)


def require_status(terms: RoundTerms, entry: StatusEntry, *, signatures: bool = True) -> None:
    """Raises: RemoteProtocolError EMC-1920."""
    status = entry.status
    if status.hub != terms.hub:
        raise RemoteProtocolError("EMC-1920", f"the status is for hub {status.hub}")
    if not terms.start_ms - MAX_CLOCK_SKEW_MS <= status.sent_at_ms < terms.end_ms + MAX_CLOCK_SKEW_MS:
        raise RemoteProtocolError(
            "EMC-1920", f"the status was sent at {status.sent_at_ms}, outside the round"
        )
    _require_signature("EMC-1920", terms, status, entry.signature, status.node, signatures)


def require_commitment(terms: RoundTerms, entry: CommitmentEntry, *, signatures: bool = True) -> None:
    """Raises: RemoteProtocolError EMC-1921."""
    plan = entry.commitment
    _require_member("EMC-1921", terms, plan.validator, plan.round)
    if plan.signed_at_ms >= terms.start_ms:
        raise RemoteProtocolError(
            "EMC-1921", f"the plan was made at {plan.signed_at_ms}, after the round began"
        )
    _require_signature("EMC-1921", terms, plan, entry.signature, plan.validator, signatures)


def require_reveal(
    terms: RoundTerms, entry: RevealEntry, plans: Mapping[Address, PlanCommitment], *, signatures: bool = True
) -> None:
    """Raises: RemoteProtocolError EMC-1922 (does not open its commitment), EMC-1924 (a probe not its own)."""
    reveal = entry.reveal
    _require_member("EMC-1922", terms, reveal.validator, reveal.round)
    plan = plans.get(reveal.validator)
    if plan is None:
        raise RemoteProtocolError("EMC-1922", "there is no commitment to open")
    if compute_commitment(reveal.seed, reveal.corpus_root, reveal.salt) != plan.commitment:
        raise RemoteProtocolError("EMC-1922", "seed, corpus root and salt do not open the commitment")
    if compute_probes_hash(entry.probes) != reveal.probes_hash:
        raise RemoteProtocolError("EMC-1922", "the probes are not those that the reveal hashes")
    keys = [(address_bytes(probe.node), probe.slot) for probe in entry.probes]
    if any(a >= b for a, b in pairwise(keys)):
        raise RemoteProtocolError("EMC-1922", "the probes are not sorted by node and slot")
    for probe in entry.probes:
        _require_probe(terms, reveal.validator, probe)
    _require_signature("EMC-1922", terms, reveal, entry.signature, reveal.validator, signatures)


class VoteRule:
    """The rule for the votes of one bundle, taken one after the other."""

    def __init__(self, terms: RoundTerms, votable: Mapping[bytes, bytes], *, signatures: bool = True) -> None:
        self._terms = terms
        self._votable = votable
        self._signatures = signatures
        self._cast: Counter[Address] = Counter()

    def require(self, entry: VoteEntry) -> None:
        """Raises: RemoteProtocolError EMC-1923, also for a validator's vote after its 4096th."""
        voter = entry.vote.validator
        if self._cast[voter] >= MAX_VOTES:
            raise RemoteProtocolError("EMC-1923", f"{voter} gives more than {MAX_VOTES} votes")
        require_vote(self._terms, entry, self._votable, signatures=self._signatures)
        self._cast[voter] += 1


def require_vote(
    terms: RoundTerms, entry: VoteEntry, votable: Mapping[bytes, bytes], *, signatures: bool = True
) -> None:
    """One vote a call and validator, about proven answers to revealed probes alone: so they are bounded.

    Args: `votable`: the receipt hash of every call that may be voted on (`ProbeOutcome.votable`). Only
    who says ERROR, since it saw no evidence, need not know the receipt: zero.
    Raises: RemoteProtocolError EMC-1923.
    """
    vote = entry.vote
    _require_member("EMC-1923", terms, vote.validator, vote.round)
    if vote.verdict not in _VERDICTS:
        raise RemoteProtocolError("EMC-1923", f"{vote.verdict} is no verdict")
    receipt_hash = votable.get(vote.call_id)
    if receipt_hash is None:
        raise RemoteProtocolError("EMC-1923", "no revealed probe with an answer is about this call")
    saw_nothing = vote.verdict == Verdict.ERROR and vote.receipt_hash == ZERO_HASH
    if receipt_hash != vote.receipt_hash and not saw_nothing:
        raise RemoteProtocolError("EMC-1923", "the vote is about another receipt of the call")
    _require_signature("EMC-1923", terms, vote, entry.signature, vote.validator, signatures)


def _require_probe(terms: RoundTerms, validator: Address, probe: ProbeResult) -> None:
    planned = terms.assignments.get((probe.node, probe.slot))
    if planned is None or planned.validator != validator:
        owner = planned.validator if planned else "nobody"
        raise RemoteProtocolError("EMC-1924", f"probe {probe.slot} of node {probe.node} is for {owner}")
    if probe.verdict not in _VERDICTS:
        raise RemoteProtocolError("EMC-1922", f"{probe.verdict} is no verdict")
    if probe.call_id == NO_CALL and not probe.request_hash == probe.response_hash == ZERO_HASH:
        raise RemoteProtocolError(
            "EMC-1922", f"probe {probe.slot} of node {probe.node} has hashes and no call"
        )


def _require_member(code: str, terms: RoundTerms, validator: Address, index: int) -> None:
    if validator not in terms.powers:
        raise RemoteProtocolError(code, f"{validator} is not in the epoch's validator set")
    if index != terms.round:
        raise RemoteProtocolError(code, f"it is about round {index}")


def _require_signature(
    code: str, terms: RoundTerms, struct: TypedStruct, signature: bytes, signer: Address, wanted: bool
) -> None:
    if not wanted:
        return
    try:
        require_signer(terms.domain, struct, signature, signer)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError(code, exc.detail) from exc
