"""What is punished with a part of the stake, and what proves it. Pure. Source: DESIGN 2.3.

A proof is judged from scratch, whoever brought it: two statements about one round that one key
signed for this chain, a PASS signed for an answer that the judge's own model calls a GROSS, or a
conviction that the judge itself found in a bundle that counts.
Invariants: one deed has one identity, so one punishment; nothing that an honest key ever signed
proves anything against it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgspec

from emcd.accounting.suspension import Conduct, Conviction, Strike, find_conviction, group_verdicts
from emcd.errors import ProtocolError, RemoteProtocolError
from emcd.proto.eip712 import Domain, TypedStruct
from emcd.proto.json_form import from_json, to_json
from emcd.proto.messages import BundleSeal, Offence, Results, RoundRoot, Slash, Task, TaskResult, Verdict
from emcd.proto.params import NetworkParams
from emcd.proto.signing import require_signer
from emcd.proto.transcript import Transcript, require_transcript, transcript_hash
from emcd.types import Address, Hash


class OffenceKind(IntEnum):
    """The deeds; the numbers are part of the identity."""

    DOUBLE_SEAL = 1  # a hub sealed two bundles of a round
    DOUBLE_ATTESTATION = 2  # a validator attested two outcomes of a round
    FALSE_VERDICT = 3  # a validator signed a PASS for a GROSS answer
    GROSS = 4  # a compute node's GROSS stands
    CONVICTION = 5  # a compute node's FAILs convict it
    DOUBLE_RESULTS = 6  # a validator signed two results of its probes of a round


SLASH_BPS = {
    OffenceKind.DOUBLE_SEAL: 5_000,
    OffenceKind.DOUBLE_ATTESTATION: 5_000,
    OffenceKind.FALSE_VERDICT: 500,
    OffenceKind.GROSS: 1_000,
    OffenceKind.CONVICTION: 100,
    OffenceKind.DOUBLE_RESULTS: 500,
}
_SLASHED = {Conviction.GROSS: OffenceKind.GROSS, Conviction.FAILS: OffenceKind.CONVICTION}
_MAX_ROUND = 1 << 40


class SignedSeal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    seal: BundleSeal
    signature: bytes


class SignedRoot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    round_root: RoundRoot
    signature: bytes


class DoubleSeal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Two bundles of one round, sealed by one hub."""

    first: SignedSeal
    second: SignedSeal


class DoubleAttestation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Two outcomes of one round, signed by one validator."""

    validator: Address
    first: SignedRoot
    second: SignedRoot


class SignedResults(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    results: Results
    signature: bytes


class DoubleResults(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Two outcomes of a validator's probes of one round, both signed by it."""

    first: SignedResults
    second: SignedResults


class SignedTask(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    task: Task
    signature: bytes


class SignedTaskResult(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    result: TaskResult
    signature: bytes


class FalseVerdict(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A PASS that a validator signed for a transcript that another one gave it to judge."""

    task: SignedTask
    result: SignedTaskResult
    transcript: Transcript


class StandingStrike(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node that the bundle of a round convicts; `kind` is GROSS or CONVICTION."""

    kind: int
    node: Address
    round: int
    bundle_hash: bytes


Proof = DoubleSeal | DoubleAttestation | FalseVerdict | StandingStrike | DoubleResults

_FORMS: dict[int, tuple[str, type[msgspec.Struct]]] = {
    OffenceKind.DOUBLE_SEAL: ("double_seal", DoubleSeal),
    OffenceKind.DOUBLE_ATTESTATION: ("double_attestation", DoubleAttestation),
    OffenceKind.FALSE_VERDICT: ("false_verdict", FalseVerdict),
    OffenceKind.GROSS: ("strike", StandingStrike),
    OffenceKind.CONVICTION: ("strike", StandingStrike),
    OffenceKind.DOUBLE_RESULTS: ("double_results", DoubleResults),
}


@dataclass(frozen=True, kw_only=True)
class OffenceTerms:
    """What a judge knows by itself.

    Attributes:
        staking, distributor: where seals and attestations are signed for.
        hubs: keys of the network's hub.
        members: the validators of the frozen set of the offence's round.
        first_round, last_round: what is judged; before it no stake may be left, after it is to come.
        strikes: convictions of bundles that were accepted here and can't become void.
        recomputed: the judge's own verdict on a false verdict's transcript; None when it has none yet.
    """

    staking: Domain
    distributor: Domain
    hubs: Collection[Address]
    members: Collection[Address]
    first_round: int
    last_round: int
    strikes: Collection[StandingStrike] = field(default=())
    recomputed: Verdict | None = None


def offence_of(proof: Proof) -> Offence:
    """The deed that a proof claims; nothing is checked."""
    if isinstance(proof, DoubleSeal):
        return Offence(OffenceKind.DOUBLE_SEAL, proof.first.seal.hub, proof.first.seal.round)
    if isinstance(proof, DoubleAttestation):
        return Offence(OffenceKind.DOUBLE_ATTESTATION, proof.validator, proof.first.round_root.round)
    if isinstance(proof, DoubleResults):
        said = proof.first.results
        return Offence(OffenceKind.DOUBLE_RESULTS, said.validator, said.round)
    if isinstance(proof, FalseVerdict):
        result = proof.result.result
        return Offence(OffenceKind.FALSE_VERDICT, result.validator, result.round)
    return Offence(proof.kind, proof.node, proof.round)


def evidence_hash(offence: Offence) -> Hash:
    """What stands in the order, and what the contract takes once."""
    return offence.struct_hash()


def slash_order(offence: Offence, epoch: int) -> Slash:
    """What all validators of an epoch sign for a deed."""
    return Slash(offence.offender, SLASH_BPS[OffenceKind(offence.kind)], evidence_hash(offence), epoch)


def check_offence(terms: OffenceTerms, proof: Proof) -> Offence:
    """Judge a proof.

    Returns: the deed, proven.
    Raises: RemoteProtocolError EMC-1980 (malformed), 1981 (shows nothing), 1982 (not signed by those
    whom it names), 1983 (other role), 1984 (too old, or to come), 1985 (no such strike counts here),
    1991 (the judge's own run calls the answer no GROSS).
    """
    offence = offence_of(proof)
    if not terms.first_round <= offence.round <= terms.last_round:
        raise RemoteProtocolError(
            "EMC-1984", f"round {offence.round}; rounds {terms.first_round} to {terms.last_round} are judged"
        )
    if isinstance(proof, DoubleSeal):
        _check_double_seal(terms, proof)
    elif isinstance(proof, DoubleAttestation):
        _check_double_attestation(terms, proof)
    elif isinstance(proof, DoubleResults):
        _check_double_results(terms, proof)
    elif isinstance(proof, FalseVerdict):
        require_statement(terms, proof)
        if terms.recomputed is not Verdict.GROSS:
            found = "none" if terms.recomputed is None else terms.recomputed.name
            raise RemoteProtocolError("EMC-1991", f"the own verdict is {found}")
    elif proof not in terms.strikes:
        raise RemoteProtocolError("EMC-1985", f"{proof.node} in round {proof.round}")
    return offence


def _check_double_seal(terms: OffenceTerms, proof: DoubleSeal) -> None:
    first, second = proof.first.seal, proof.second.seal
    if (first.hub, first.round) != (second.hub, second.round):
        raise RemoteProtocolError("EMC-1981", "the seals are not about one hub and round")
    if first.bundle_hash == second.bundle_hash:
        raise RemoteProtocolError("EMC-1981", "both seals are on one bundle")
    if first.hub not in terms.hubs:
        raise RemoteProtocolError("EMC-1983", f"{first.hub} is not this network's hub")
    for item in (proof.first, proof.second):
        _require_signed(terms.staking, item.seal, item.signature, first.hub)


def _check_double_attestation(terms: OffenceTerms, proof: DoubleAttestation) -> None:
    first, second = proof.first.round_root, proof.second.round_root
    if first.round != second.round:
        raise RemoteProtocolError("EMC-1981", "the attestations are not about one round")
    if first == second:
        raise RemoteProtocolError("EMC-1981", "both attestations are of one outcome")
    if proof.validator not in terms.members:
        raise RemoteProtocolError("EMC-1983", f"{proof.validator} is not in the round's validator set")
    for item in (proof.first, proof.second):
        _require_signed(terms.distributor, item.round_root, item.signature, proof.validator)


def _check_double_results(terms: OffenceTerms, proof: DoubleResults) -> None:
    first, second = proof.first.results, proof.second.results
    if (first.validator, first.round) != (second.validator, second.round):
        raise RemoteProtocolError("EMC-1981", "the results are not about one validator and round")
    if first.probes_hash == second.probes_hash:
        raise RemoteProtocolError("EMC-1981", "both results are of one outcome")
    if first.validator not in terms.members:
        raise RemoteProtocolError("EMC-1983", f"{first.validator} had no say in round {first.round}")
    for item in (proof.first, proof.second):
        _require_signed(terms.staking, item.results, item.signature, first.validator)


def require_statement(terms: OffenceTerms, proof: FalseVerdict) -> None:
    """Everything about a false verdict but the verdict: run the transcript only when this is right.

    Raises: RemoteProtocolError EMC-1980 to 1983, EMC-1990 (the transcript is none).
    """
    task, result = proof.task.task, proof.result.result
    require_transcript(proof.transcript)
    if (task.receiver, task.round, task.task_hash) != (result.validator, result.round, result.task_hash):
        raise RemoteProtocolError("EMC-1981", "task and result are not about one thing")
    if transcript_hash(proof.transcript) != result.task_hash:
        raise RemoteProtocolError("EMC-1981", "the result is about another transcript")
    if result.verdict != Verdict.PASS:
        raise RemoteProtocolError("EMC-1981", "only a PASS can be a false verdict")
    if task.sender == task.receiver or not {task.sender, task.receiver} <= set(terms.members):
        raise RemoteProtocolError("EMC-1983", f"sender and receiver had no say in round {task.round}")
    _require_signed(terms.staking, task, proof.task.signature, task.sender)
    _require_signed(terms.staking, result, proof.result.signature, result.validator)


def _require_signed(domain: Domain, struct: TypedStruct, signature: bytes, accused: Address) -> None:
    try:
        require_signer(domain, struct, signature, accused)
    except ProtocolError as exc:
        raise RemoteProtocolError("EMC-1982", exc.detail) from exc


def list_convictions(
    before: Mapping[Address, Conduct],
    index: int,
    bundle_hash: bytes,
    strikes: Iterable[Strike],
    params: NetworkParams,
) -> tuple[StandingStrike, ...]:
    """The nodes that the bundle of round `index` convicts of what is slashed, sorted by node.

    Args: `before`: everybody's conduct without the bundle's `strikes`.
    """
    verdicts = group_verdicts(strikes)
    found = []
    for node in sorted(verdicts):
        conviction = find_conviction(before.get(node, Conduct()), index, verdicts[node], params)
        if conviction in _SLASHED:
            found.append(StandingStrike(_SLASHED[conviction], node, index, bundle_hash))
    return tuple(found)


def judged_rounds(params: NetworkParams, current_round: int) -> tuple[int, int]:
    """First and last round whose offences are judged now: as long as a stake unbonds."""
    return max(0, current_round - params.unbonding_rounds), current_round


def write_proof(proof: Proof) -> dict[str, Any]:
    """The JSON form in which validators serve and take a proof."""
    kind = int(offence_of(proof).kind)
    return {"kind": kind, _FORMS[kind][0]: to_json(proof)}


def read_proof(page: object) -> Proof:
    """Read the JSON form. Raises: RemoteProtocolError EMC-1980."""
    if not isinstance(page, dict):
        raise RemoteProtocolError("EMC-1980", "an object is wanted")
    kind = page.get("kind")
    form = _FORMS.get(kind) if type(kind) is int else None
    if form is None or page.keys() != {"kind", form[0]}:
        raise RemoteProtocolError("EMC-1980", f"kind {str(kind)[:20]} and its proof are wanted, nothing else")
    try:
        proof: Any = from_json(form[1], page[form[0]])
    except RemoteProtocolError as exc:
        raise RemoteProtocolError("EMC-1980", exc.detail) from exc
    offence = offence_of(proof)
    if offence.kind != kind or not 0 <= offence.round < _MAX_ROUND:
        raise RemoteProtocolError("EMC-1980", f"kind {offence.kind}, round {offence.round}")
    if isinstance(proof, StandingStrike) and len(proof.bundle_hash) != 32:
        raise RemoteProtocolError("EMC-1980", "a bundle hash has 32 bytes")
    checked: Proof = proof
    return checked
