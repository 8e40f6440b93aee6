"""A round's results, issue, totals and root, from its evidence. Source: DESIGN 2.2, 2.4, 2.5.

Both who closes a round and who audits it end here. Invariants: the rewards sum to the issue;
no wallet's total falls; the same evidence gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from emcd.accounting.credits import compute_node_credits_floor, router_credits_floor, validator_credits_floor
from emcd.accounting.eligibility import Deeds, Reason, check_eligibility
from emcd.accounting.emission import issue_wei
from emcd.accounting.probe_outcome import ProbeOutcome
from emcd.accounting.reward_tree import compute_reward_root
from emcd.accounting.ruling import Rulings, compute_rulings
from emcd.accounting.settlement import split_rewards
from emcd.accounting.suspension import Strike
from emcd.accounting.tally import CallTally, NodeTally
from emcd.accounting.terms import RoundTerms
from emcd.accounting.weights import encode_weight, reward_weight
from emcd.money import encode_wei
from emcd.proto.address import address_bytes
from emcd.proto.bundle import ResultEntry, RevealEntry, SnapshotEntry, Total, VoteEntry
from emcd.types import Address, Hash, ParticipantRole

__all__ = ["RoundEvidence", "RoundResult", "Strike", "compute_round_result", "round_issue_wei"]


@dataclass(frozen=True)
class RoundEvidence:
    """What passed its checks."""

    participants: Sequence[SnapshotEntry]
    totals: Mapping[Address, int]
    tally: CallTally
    online: frozenset[Address]
    reveals: Sequence[RevealEntry]
    probes: ProbeOutcome
    votes: Sequence[VoteEntry]

    @cached_property
    def revealed(self) -> frozenset[Address]:
        return frozenset(entry.reveal.validator for entry in self.reveals)


@dataclass(frozen=True)
class RoundResult:
    """What the round gives. `totals_after` are the cumulative wei of all wallets, sorted.

    `strikes` cost their nodes something; those in `shadowed` are written down alone.
    """

    results: tuple[ResultEntry, ...]
    issue_wei: int
    totals_after: tuple[Total, ...]
    cumulative_wei: int
    root: Hash
    strikes: tuple[Strike, ...]
    shadowed: tuple[Strike, ...] = ()


def compute_round_result(terms: RoundTerms, evidence: RoundEvidence) -> RoundResult:
    """Credits, weights, rewards, totals and root."""
    rulings = compute_rulings(terms, evidence.probes, evidence.reveals, evidence.votes)
    entries = {entry.node: entry for entry in evidence.participants if entry.role != ParticipantRole.HUB}
    hubs = {entry.node for entry in evidence.participants} - entries.keys()
    nodes = sorted((entries.keys() | evidence.tally.nodes.keys() | evidence.online) - hubs, key=address_bytes)
    credits = {node: _credits(terms, evidence, rulings, entries.get(node), node) for node in nodes}
    reasons = {node: _reason(terms, evidence, rulings, entries.get(node), node) for node in nodes}
    weights = {
        node: reward_weight(
            terms.params, credits[node], int.from_bytes(entry.stake_wei, "big"), entry.role, entry.lock_days
        )
        if reasons[node] is Reason.ELIGIBLE
        else 0
        for node, entry in entries.items()
    }
    issue = round_issue_wei(terms) if any(weights.values()) else 0
    rewards = split_rewards(issue, weights)
    after = _add_rewards(evidence.totals, entries, rewards)
    return RoundResult(
        tuple(
            ResultEntry(
                node,
                credits[node],
                encode_weight(weights.get(node, 0)),
                encode_wei(rewards.get(node, 0)),
                reasons[node].value,
            )
            for node in nodes
        ),
        issue,
        encode_totals(after),
        sum(after.values()),
        compute_reward_root(after),
        rulings.strikes,
        rulings.shadowed,
    )


def round_issue_wei(terms: RoundTerms) -> int:
    """What the round issues if anybody is eligible: the emission without the publisher's fee."""
    emission = issue_wei(terms.round, terms.params.epoch_rounds)
    return max(0, emission - int.from_bytes(terms.params.publish_fee_wei, "big"))


def encode_totals(totals: Mapping[Address, int]) -> tuple[Total, ...]:
    """Cumulative wei as a section of the bundle: sorted, nothing for wallets without any."""
    ordered = sorted(totals.items(), key=lambda item: address_bytes(item[0]))
    return tuple(Total(wallet, encode_wei(amount)) for wallet, amount in ordered if amount)


def decode_totals(totals: Iterable[Total]) -> dict[Address, int]:
    """The inverse of `encode_totals`."""
    return {total.wallet: int.from_bytes(total.cumulative_wei, "big") for total in totals}


def _credits(
    terms: RoundTerms, evidence: RoundEvidence, rulings: Rulings, entry: SnapshotEntry | None, node: Address
) -> int:
    probes = evidence.probes
    if entry is not None and entry.role == ParticipantRole.VALIDATOR:
        if node in rulings.mistaken:
            return 0
        return validator_credits_floor(terms.params, rulings.done[node], rulings.planned[node])
    if entry is not None and entry.role == ParticipantRole.ROUTER:
        return router_credits_floor(terms.params, probes.forwarded[node], probes.due[node])
    tally = evidence.tally.nodes.get(node, NodeTally())
    return compute_node_credits_floor(terms.params, tally.vault_micro, rulings.passed[node])


def _reason(
    terms: RoundTerms, evidence: RoundEvidence, rulings: Rulings, entry: SnapshotEntry | None, node: Address
) -> Reason:
    is_router = entry is not None and entry.role == ParticipantRole.ROUTER
    successes = (
        evidence.probes.forwarded[node]
        if is_router
        else evidence.tally.nodes.get(node, NodeTally()).counted_calls
    )
    deeds = Deeds(
        node in evidence.online,
        node in rulings.struck,
        successes > 0,
        node in evidence.revealed,
        node in rulings.mistaken,
    )
    return check_eligibility(terms.params, terms.round, entry, deeds)


def _add_rewards(
    totals: Mapping[Address, int], entries: Mapping[Address, SnapshotEntry], rewards: Mapping[Address, int]
) -> dict[Address, int]:
    after = dict(totals)
    for node, reward in rewards.items():
        wallet = entries[node].wallet
        after[wallet] = after.get(wallet, 0) + reward
    return after
