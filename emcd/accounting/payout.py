"""A provider's way to the money as one state machine: rewards by round, extraction requests. Pure.

A state follows from facts (what was signed, closed, published, claimed) and the time, so the same
facts give the same state to hub, command line and page, after any crash. What this module adds is
which state may follow which. Invariants: a state goes on or stays; it goes back only by one of the
three named moves (a veto, a reorganisation of the chain, a claim that failed); `claimed` and
`refused` are left by a reorganisation alone. The structs are the JSON form: wei are decimal strings,
hashes 0x-hex, `_at_ms` the hub's clock, `_at_s` the chain's. Source: DESIGN 2.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from emcd.errors import LocalProtocolError


class RewardState(StrEnum):
    """Where a reward of one round stands. `accrued` is an estimate; `void` is nothing, for good."""

    ACCRUED = "accrued"
    SETTLED = "settled"
    PUBLISHED = "published"
    CLAIMABLE = "claimable"
    CLAIMED = "claimed"
    VOID = "void"


class ExtractionState(StrEnum):
    """Where an extraction request stands."""

    REQUESTED = "requested"
    WAITING = "waiting"
    PUBLISHED = "published"
    SYNCHRONISED = "synchronised"
    SUBMITTED = "submitted"
    CLAIMED = "claimed"
    REFUSED = "refused"
    EXPIRED = "expired"

    @property
    def is_open(self) -> bool:
        """Whether something may still come of it."""
        return self not in (ExtractionState.CLAIMED, ExtractionState.REFUSED, ExtractionState.EXPIRED)


class Back(StrEnum):
    """Why a state went back."""

    VETO = "veto"
    REORGANISATION = "reorganisation"
    CLAIM_FAILED = "claim_failed"


EXTRACTION_ORDER: Mapping[ExtractionState, int] = {
    ExtractionState.REQUESTED: 0,
    ExtractionState.WAITING: 1,
    ExtractionState.PUBLISHED: 2,
    ExtractionState.SYNCHRONISED: 3,
    ExtractionState.SUBMITTED: 4,
    ExtractionState.EXPIRED: 5,
    ExtractionState.REFUSED: 6,
    ExtractionState.CLAIMED: 7,
}
"""A request that the hub's clock called expired may have been paid in its last second: the contract decides."""

_E = ExtractionState
_BACK_FROM: Mapping[Back, frozenset[ExtractionState]] = {
    Back.VETO: frozenset((_E.PUBLISHED, _E.SYNCHRONISED, _E.SUBMITTED)),
    Back.REORGANISATION: frozenset(_E) - {_E.REQUESTED, _E.EXPIRED},
    Back.CLAIM_FAILED: frozenset((_E.SUBMITTED,)),
}
"""A root that is active on chain can't be vetoed; a clock that is ahead may think it active a moment early."""


def require_extraction_move(before: ExtractionState, after: ExtractionState, back: Back | None) -> None:
    """Check one change of a request's state.

    Args: back: the named move that happened, None for the ordinary course of things.

    Raises: LocalProtocolError EMC-1791 when nothing explains the change: a bug.
    """
    if EXTRACTION_ORDER[after] >= EXTRACTION_ORDER[before] and before not in (_E.REFUSED, _E.CLAIMED):
        return
    if after is before or (back is not None and before in _BACK_FROM[back]):
        return
    cause = "the course of things" if back is None else f"a {back.value}"
    raise LocalProtocolError("EMC-1791", f"{cause} can't move a request from {before.value} to {after.value}")


class Published(msgspec.Struct, frozen=True):
    """The publication of a root that covers a round: `round` is the root's own."""

    round: int
    tx_hash: str
    block: int
    at_s: int | None
    active_at_s: int


class Submitted(msgspec.Struct, frozen=True):
    """The transaction of a claim, by the word of the settler who sent it."""

    tx_hash: str
    at_ms: int
    by: str


class Claimed(msgspec.Struct, frozen=True):
    """A payment of the contract."""

    tx_hash: str
    block: int
    at_s: int | None
    amount_wei: str
    recipient: str


class Note(msgspec.Struct, frozen=True):
    """A settler's word on why it does not go on."""

    by: str
    text: str
    at_ms: int


class WentBack(msgspec.Struct, frozen=True):
    """The last move back: from which state, and why."""

    state: ExtractionState
    why: Back
    at_ms: int


class ExtractionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request. `refused` is the reason, "" for none."""

    deadline_s: int
    settled_at_ms: int | None = None
    published: Published | None = None
    submitted: Submitted | None = None
    claimed: Claimed | None = None
    is_paid: bool = False
    refused: str = ""


def read_extraction(facts: ExtractionFacts, now_s: int) -> ExtractionState:
    """The state that follows from the facts at a time. The contract takes the deadline's second itself."""
    if facts.is_paid:
        return _E.CLAIMED
    if facts.refused:
        return _E.REFUSED
    if now_s > facts.deadline_s:
        return _E.EXPIRED
    if facts.published is None:
        return _E.REQUESTED if facts.settled_at_ms is None else _E.WAITING
    if now_s < facts.published.active_at_s:
        return _E.PUBLISHED
    return _E.SYNCHRONISED if facts.submitted is None else _E.SUBMITTED


def read_reward(
    *, is_void: bool, published: Published | None, claimed: Claimed | None, now_s: int
) -> RewardState:
    """The state of a closed round's reward. `published` stands; `claimed` is a payment that covers it."""
    if is_void:
        return RewardState.VOID
    if published is None:
        return RewardState.SETTLED
    if now_s < published.active_at_s:
        return RewardState.PUBLISHED
    return RewardState.CLAIMABLE if claimed is None else RewardState.CLAIMED


class ExtractionPath(msgspec.Struct, frozen=True, kw_only=True):
    """A request with every step it took; a step that was not taken is null.

    `synchronised_at_s`: from when an active root covers the round, known once a root is published.
    `reason`: why it ended without payment. `note`: why a settler leaves it for now.
    """

    id: str
    wallet: str
    state: ExtractionState
    reason: str
    through_round: int
    requested_at_ms: int
    settled_at_ms: int | None
    published: Published | None
    synchronised_at_s: int | None
    submitted: Submitted | None
    claimed: Claimed | None
    ended_at_ms: int | None
    note: Note | None
    went_back: WentBack | None
    extraction: dict[str, object]
    signature: str


class RewardPath(msgspec.Struct, frozen=True, kw_only=True):
    """The reward of one node in one closed round, with every step it took."""

    round: int
    node: str
    reward_wei: str
    reason: str
    state: RewardState
    settled_at_ms: int | None
    published: Published | None
    claimable_from_s: int | None
    claimed: Claimed | None


class Accrued(msgspec.Struct, frozen=True):
    """What an open round would give if it ended now: an estimate."""

    round: int
    estimate_wei: str
    is_estimate: bool = True
