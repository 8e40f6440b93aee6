"""What open rounds would give if they ended like this: an estimate, and shown as one. Pure.

It takes probes as passed and reveals as given, which only the close of the round can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emcd.accounting.eligibility import Deeds, Reason, check_eligibility
from emcd.accounting.emission import issue_wei
from emcd.accounting.settlement import split_rewards
from emcd.accounting.weights import reward_weight
from emcd.proto.bundle import SnapshotEntry
from emcd.proto.params import NetworkParams
from emcd.types import Address, ParticipantRole
from emcd_hub.rounds.view import RoundView


@dataclass(frozen=True)
class NodeSoFar:
    """What a node did in a round until now."""

    successes: int = 0
    vault_micro: int = 0


def estimate_rewards(
    view: RoundView,
    params: NetworkParams,
    nodes: Mapping[Address, NodeSoFar],
    online: frozenset[Address],
    elapsed_bps: int,
) -> dict[Address, int]:
    """Estimated wei by wallet. `elapsed_bps`: how much of the round is over."""
    weights = {entry.node: _weight(entry, view, params, nodes, online) for entry in view.participants}
    issue = issue_wei(view.round, params.epoch_rounds) - int.from_bytes(params.publish_fee_wei, "big")
    rewards = split_rewards(max(0, issue * elapsed_bps // 10_000), weights) if any(weights.values()) else {}
    by_wallet: dict[Address, int] = {}
    for entry in view.participants:
        by_wallet[entry.wallet] = by_wallet.get(entry.wallet, 0) + rewards.get(entry.node, 0)
    return by_wallet


def _weight(
    entry: SnapshotEntry,
    view: RoundView,
    params: NetworkParams,
    nodes: Mapping[Address, NodeSoFar],
    online: frozenset[Address],
) -> int:
    done = nodes.get(entry.node, NodeSoFar())
    is_validator = entry.role == ParticipantRole.VALIDATOR and entry.node in view.powers
    deeds = Deeds(entry.node in online, False, done.successes > 0, is_validator)
    if entry.role not in (ParticipantRole.COMPUTE, ParticipantRole.VALIDATOR):
        return 0
    if check_eligibility(params, view.round, entry, deeds) is not Reason.ELIGIBLE:
        return 0
    credits_micro = (
        params.validator_round_micro if is_validator else done.vault_micro + params.standard_task_micro
    )
    stake_wei = int.from_bytes(entry.stake_wei, "big")
    return reward_weight(params, credits_micro, stake_wei, entry.role, entry.lock_days)
