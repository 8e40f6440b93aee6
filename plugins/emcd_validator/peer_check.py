"""Whether what a peer says may be believed. Pure: statements and evidence in, checked ones out.

Every statement is checked against the round's terms (from this validator's own view of the chain)
and the signer that the chain names. A strike is believed by nobody: it is a claim to recompute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from emcd.accounting.evidence_rule import require_commitment, require_reveal, require_vote
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle import CommitmentEntry, ProbeResult, RevealEntry, VoteEntry
from emcd.proto.eip712 import Domain
from emcd.proto.messages import BundleSeal, RoundRoot
from emcd.proto.signing import require_signer
from emcd.types import Address
from emcd_validator.corpus import Leaf, decode_leaf
from emcd_validator.corpus_tree import is_leaf, leaf_hash
from emcd_validator.entry import ResultsEntry
from emcd_validator.judge import Exchange, find_receipt_fault
from emcd_validator.model import JudgedModel
from emcd_validator.plan import Draws, Slot, draw_plan, own_slots
from emcd_validator.statement import Evidence
from emcd_validator.token_count import request_variants


@dataclass(frozen=True)
class CheckedStrike:
    """Evidence of a strike that holds together: what remains is to judge the answer."""

    exchange: Exchange
    leaf: Leaf
    model: JudgedModel


def check_commitment(terms: RoundTerms, peer: Address, entry: CommitmentEntry) -> CommitmentEntry:
    """Raises: RemoteProtocolError EMC-1921 (not this round's, late, or not signed by the peer)."""
    if entry.commitment.validator != peer:
        raise RemoteProtocolError("EMC-1921", f"{peer} serves a commitment of {entry.commitment.validator}")
    require_commitment(terms, entry)
    return entry


def check_reveal(
    terms: RoundTerms, peer: Address, entry: RevealEntry, commitment: CommitmentEntry | None
) -> RevealEntry:
    """Raises: RemoteProtocolError EMC-1922 (does not open its commitment, not signed), EMC-1924."""
    if entry.reveal.validator != peer:
        raise RemoteProtocolError("EMC-1922", f"{peer} serves a reveal of {entry.reveal.validator}")
    plans = {} if commitment is None else {peer: commitment.commitment}
    require_reveal(terms, entry, plans)
    return entry


def check_results(terms: RoundTerms, entry: ResultsEntry) -> None:
    """Whether a member of the round's set signed these results. Raises: RemoteProtocolError EMC-1864."""
    said = entry.results
    if said.round != terms.round or said.validator not in terms.powers or len(said.probes_hash) != 32:
        raise RemoteProtocolError("EMC-1864", f"results of {said.validator} for round {said.round}")
    try:
        require_signer(terms.domain, said, entry.signature, said.validator)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError("EMC-1864", exc.detail) from exc


def check_votes(
    terms: RoundTerms,
    peer: Address,
    entries: tuple[VoteEntry, ...],
    votable: Collection[bytes],
    struck: Mapping[bytes, bytes],
) -> tuple[VoteEntry, ...]:
    """The peer's votes on calls that were revealed; those on other calls are passed over.

    Args: `struck`: receipt hash by call id, where this validator knows it; else the peer's is taken
    as it is, and whoever closes the round compares it.
    Raises: RemoteProtocolError EMC-1923.
    """
    kept: dict[bytes, VoteEntry] = {}
    for entry in entries:
        if entry.vote.validator != peer:
            raise RemoteProtocolError("EMC-1923", f"{peer} serves a vote of {entry.vote.validator}")
        call_id = entry.vote.call_id
        if call_id not in votable:
            continue
        require_vote(terms, entry, {call_id: struck.get(call_id, entry.vote.receipt_hash)})
        kept.setdefault(entry.vote.call_id, entry)
    return tuple(kept.values())


def check_seal(terms: RoundTerms, seal: BundleSeal, signature: bytes) -> None:
    """Raises: RemoteProtocolError EMC-1807 when the hub did not sign this for the round."""
    if seal.hub != terms.hub or seal.round != terms.round:
        raise RemoteProtocolError("EMC-1807", f"a seal of {seal.hub} for round {seal.round}")
    try:
        require_signer(terms.domain, seal, signature, terms.hub)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError("EMC-1807", exc.detail) from exc


def check_root(
    domain: Domain,
    members: Collection[Address],
    round_index: int,
    author: Address,
    root: RoundRoot,
    signature: bytes,
) -> None:
    """Whether a member of the round's set attested this.

    Args: `domain` the distributor's. Raises: RemoteProtocolError EMC-1840.
    """
    if root.round != round_index or author not in members:
        raise RemoteProtocolError("EMC-1840", f"an attestation of {author} for round {root.round}")
    try:
        require_signer(domain, root, signature, author)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError("EMC-1840", exc.detail) from exc


def check_evidence(
    terms: RoundTerms,
    beacon_hash: bytes,
    entry: RevealEntry,
    probe: ProbeResult,
    evidence: Evidence,
    models: Mapping[str, JudgedModel],
) -> CheckedStrike:
    """Follow a strike from the commitment to the signed answer.

    Raises: RemoteProtocolError EMC-1814 naming the first link that does not hold, EMC-1815 when
    the model is none that this validator judges.
    """
    model = models.get(evidence.model)
    if model is None:
        raise RemoteProtocolError("EMC-1815", f"model {evidence.model[:80]!r}")
    leaf = _check_leaf(terms, beacon_hash, entry, probe, evidence)
    drawn = request_variants(Draws(entry.reveal.seed, beacon_hash), Slot(probe.node, probe.slot), leaf, model)
    if (evidence.request_path, evidence.request_body) not in [(item.path, item.body) for item in drawn]:
        raise RemoteProtocolError("EMC-1814", "the request is not the one that the leaf makes")
    call = evidence.receipt
    if call.forward.call_id != probe.call_id or call.forward.request_hash != probe.request_hash:
        raise RemoteProtocolError("EMC-1814", "the receipt is of another call than was revealed")
    if call.receipt is None or call.receipt.response_hash != probe.response_hash:
        raise RemoteProtocolError("EMC-1814", "the receipt is of another answer than was revealed")
    if call.delivery.round != terms.round:
        raise RemoteProtocolError("EMC-1814", f"the call belongs to round {call.delivery.round}")
    exchange = Exchange(
        node=probe.node,
        call_id=probe.call_id,
        model_hash=model.model_hash,
        request_path=evidence.request_path,
        request_body=evidence.request_body,
        status=evidence.response_status,
        response_body=evidence.response_body,
        receipt=call,
    )
    if fault := find_receipt_fault(terms.domain, terms.hub, exchange):
        raise RemoteProtocolError("EMC-1814", fault)
    return CheckedStrike(exchange, leaf, model)


def _check_leaf(
    terms: RoundTerms, beacon_hash: bytes, entry: RevealEntry, probe: ProbeResult, evidence: Evidence
) -> Leaf:
    reveal = entry.reveal
    slots = own_slots(terms.assignments.values(), reveal.validator)
    plan = draw_plan(Draws(reveal.seed, beacon_hash), slots, evidence.leaf_count, terms.params, terms.round)
    drawn = next((item.leaf_index for item in plan if item.slot == Slot(probe.node, probe.slot)), None)
    if drawn is None or not drawn == probe.leaf_index == evidence.leaf_index:
        raise RemoteProtocolError("EMC-1814", f"seed and beacon draw leaf {drawn}, not {evidence.leaf_index}")
    hashed = leaf_hash(evidence.leaf)
    if not is_leaf(reveal.corpus_root, evidence.leaf_count, evidence.leaf_index, hashed, evidence.leaf_path):
        raise RemoteProtocolError("EMC-1814", "the leaf does not stand in the corpus that was committed to")
    return decode_leaf(evidence.leaf)
