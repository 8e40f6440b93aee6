"""Effective stake and reward weight. Source: DESIGN 2.3 and 2.5; tests/vectors/settlement.json."""

from __future__ import annotations

from emcd.money import BPS
from emcd.types import ParticipantRole

COMPUTE_MULTIPLIERS_BPS = ((180, 100_000), (90, 62_000), (30, 27_000), (7, 14_000), (0, BPS))
WEIGHT_BYTES = 64


def multiplier_bps(role: int, lock_days: int) -> int:
    """The lock multiplier; a lock between two of the table earns the shorter one's."""
    if role != ParticipantRole.COMPUTE:
        return BPS
    return next(bps for days, bps in COMPUTE_MULTIPLIERS_BPS if lock_days >= days)


def is_lock_allowed(role: int, lock_days: int) -> bool:
    """A compute node's lock is one of the table's."""
    return role != ParticipantRole.COMPUTE or any(days == lock_days for days, _ in COMPUTE_MULTIPLIERS_BPS)


def effective_stake_floor(stake_wei: int, role: int, lock_days: int) -> int:
    """Stake times multiplier in wei, for people; weights use the exact product."""
    return stake_wei * multiplier_bps(role, lock_days) // BPS


def reward_weight(credits_micro: int, stake_wei: int, role: int, lock_days: int) -> int:
    """credits_micro * stake_wei * multiplier_bps, exactly."""
    return credits_micro * stake_wei * multiplier_bps(role, lock_days)


def encode_weight(weight: int) -> bytes:
    """The 64 bytes of a weight in the bundle. Raises: OverflowError above 2**512 - 1."""
    return weight.to_bytes(WEIGHT_BYTES, "big")
