"""Who takes part in a round's reward, and the first reason why not. Source: DESIGN 2.4.

The reasons are stable texts: they stand in the bundle and `emcd why-unpaid` explains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from emcd.proto.bundle import SnapshotEntry
from emcd.proto.params import NetworkParams
from emcd.types import ParticipantRole


class Reason(StrEnum):
    """Why a participant gets nothing; empty when it is eligible."""

    ELIGIBLE = ""
    UNBOUND = "unbound"
    UNDERSTAKED = "understaked"
    SUSPENDED = "suspended"
    OFFLINE = "offline"
    VERDICT = "verdict"
    NO_SUCCESS = "no-success"
    NO_PLAN = "no-plan"
    MISTAKE = "mistake"


@dataclass(frozen=True)
class Deeds:
    """What a participant did in the round."""

    is_online: bool = False
    has_standing_strike: bool = False
    has_success: bool = False
    has_reveal: bool = False
    has_proven_mistake: bool = False


def check_eligibility(params: NetworkParams, index: int, entry: SnapshotEntry | None, deeds: Deeds) -> Reason:
    """The first reason against it, in the order in which a provider can mend them."""
    if entry is None:
        return Reason.UNBOUND
    if entry.stake_wei < minimum_stake_wei(params, entry.role) or not any(entry.stake_wei):
        return Reason.UNDERSTAKED
    if index < entry.suspended_until_round:
        return Reason.SUSPENDED
    if entry.role == ParticipantRole.VALIDATOR:
        if not deeds.has_reveal:
            return Reason.NO_PLAN
        return Reason.MISTAKE if deeds.has_proven_mistake else Reason.ELIGIBLE
    if entry.role == ParticipantRole.COMPUTE and not deeds.is_online:
        return Reason.OFFLINE
    if deeds.has_standing_strike:
        return Reason.VERDICT
    return Reason.ELIGIBLE if deeds.has_success else Reason.NO_SUCCESS


def minimum_stake_wei(params: NetworkParams, role: int) -> bytes:
    """The least stake of a role, as the 32 bytes of a bundle (they compare like the numbers)."""
    return {
        ParticipantRole.COMPUTE: params.compute_minimum_wei,
        ParticipantRole.ROUTER: params.router_minimum_wei,
        ParticipantRole.VALIDATOR: params.validator_minimum_wei,
    }[ParticipantRole(role)]
