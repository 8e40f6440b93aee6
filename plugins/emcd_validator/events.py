"""What the validator tells the rest of its daemon: for the display and the metrics, never as a fact."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.bus import Topic
from emcd.types import Address


@dataclass(frozen=True)
class ProbeMoved:
    """A planned probe entered another state: planned, sent, judged, lost."""

    validator: Address
    round: int
    node: Address
    slot: int
    state: str


@dataclass(frozen=True)
class VerdictGiven:
    """A validator judged a call: a probe of its own, or (by vote) one of another's."""

    validator: Address
    round: int
    node: Address
    call_id: bytes
    verdict: str
    statistic_e12: int
    is_vote: bool


@dataclass(frozen=True)
class AttestationGiven:
    """A validator decided on a round's bundle; `code` is empty when it signed."""

    validator: Address
    round: int
    bundle_hash: bytes
    code: str
    reason: str


@dataclass(frozen=True)
class OffenceFound:
    """An offence was proven to a validator; `kind` as in `OffenceKind`."""

    validator: Address
    kind: str
    offender: Address
    round: int
    evidence_hash: bytes


PROBE: Topic[ProbeMoved] = Topic("validator.probe")
VERDICT: Topic[VerdictGiven] = Topic("validator.verdict")
ATTESTATION: Topic[AttestationGiven] = Topic("validator.attestation")
OFFENCE: Topic[OffenceFound] = Topic("validator.offence")
