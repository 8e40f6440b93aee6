"""Effective stake and reward weight. Source: DESIGN 2.3 and 2.5; tests/vectors/settlement.json."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from emcd.money import BPS
from emcd.proto.bundle import SnapshotEntry
from emcd.proto.params import NetworkParams
from emcd.types import ParticipantRole

WEIGHT_BYTES = 64


def multiplier_bps(params: NetworkParams, role: int, lock_days: int) -> int:
    """The lock multiplier; a lock between two of the table earns the shorter one's."""
    return params.multiplier_bps(role, lock_days)


def is_lock_known(params: NetworkParams, role: int, lock_days: int) -> bool:
    """A compute node's lock stands in a snapshot as a row of the table."""
    return role != ParticipantRole.COMPUTE or any(days == lock_days for days, _ in params.compute_locks)


def settle_locks(params: NetworkParams, entries: Iterable[SnapshotEntry]) -> tuple[SnapshotEntry, ...]:
    """A snapshot whose locks are rows of the table in force: one that it lost counts as the next shorter."""
    return tuple(
        entry
        if is_lock_known(params, entry.role, entry.lock_days)
        else msgspec.structs.replace(
            entry, lock_days=max(days for days, _ in params.compute_locks if days <= entry.lock_days)
        )
        for entry in entries
    )


def effective_stake_floor(params: NetworkParams, stake_wei: int, role: int, lock_days: int) -> int:
    """Stake times multiplier in wei, for people; weights use the exact product."""
    return stake_wei * params.multiplier_bps(role, lock_days) // BPS


def reward_weight(
    params: NetworkParams, credits_micro: int, stake_wei: int, role: int, lock_days: int
) -> int:
    """credits_micro * stake_wei * multiplier_bps, exactly."""
    return credits_micro * stake_wei * params.multiplier_bps(role, lock_days)


def encode_weight(weight: int) -> bytes:
    """The 64 bytes of a weight in the bundle. Raises: OverflowError above 2**512 - 1."""
    return weight.to_bytes(WEIGHT_BYTES, "big")
