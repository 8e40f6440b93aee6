"""The way from a binding to the money, for one node in one round or one call: where does it break?

Reads a bundle that passed its audit, and what the chain says; decides nothing anew. Source: P10.
"""

from __future__ import annotations

from dataclasses import dataclass

from emcd.accounting.call_rule import CallStanding, check_standing
from emcd.accounting.eligibility import Reason, minimum_stake_wei
from emcd.accounting.verdict_words import tell_mistakes, tell_probe, tell_strikes, tell_work
from emcd.money import format_credits_floor, format_token_floor
from emcd.proto.bundle import Bundle, CallEntry, ResultEntry, SnapshotEntry
from emcd.proto.records import CallStatus, format_call_id
from emcd.types import Address, ParticipantRole

STEPS = ("bound", "staked", "online", "routed", "served", "metered", "settled", "published", "claimed")


@dataclass(frozen=True)
class PathStep:
    """One step: `evidence` is the number or record that shows it."""

    name: str
    is_done: bool
    evidence: str


@dataclass(frozen=True)
class ChainFacts:
    """What the distributor says: the newest published and active round (-1 for none), wei claimed.

    `is_void`: the round was vetoed, or found no quorum in time. `paused_until`: in words, "" when the
    contract is not paused. `request`: the state of the wallet's newest extraction request and what the
    settler says of it, in words. `slashes`: what was slashed of the node's stake, in words.
    """

    published_round: int
    active_round: int
    claimed_wei: int
    is_void: bool = False
    paused_until: str = ""
    request: str = ""
    slashes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MissingCall:
    """What is known of a call that no bundle holds. `filed_with`: validators that hold it as an omission."""

    round: int
    round_state: str
    filed_with: tuple[Address, ...] = ()
    last_round: int = -1


def trace_node(bundle: Bundle, node: Address, chain: ChainFacts) -> list[PathStep]:
    """Every step up to and including the first that is broken."""
    entry = next((item for item in bundle.participants if item.node == node), None)
    result = next((item for item in bundle.results if item.node == node), None)
    steps = [_bound(bundle, entry)]
    if entry is not None and steps[0].is_done:
        steps += [
            _staked(bundle, entry, chain),
            *_worked(bundle, entry),
            _metered(bundle, entry, result),
            _settled(bundle, node, result),
            *_on_chain(bundle, entry, chain),
        ]
    return _up_to_broken(steps)


def trace_call(bundle: Bundle, call_id: bytes, chain: ChainFacts) -> list[PathStep]:
    """The same for one call of the bundle; a call's own fault is told before its node's.

    Raises: KeyError when the bundle does not hold it.
    """
    call = next((item for item in bundle.calls if item.forward.call_id == call_id), None)
    if call is None:
        raise KeyError(format_call_id(call_id))
    own = [PathStep("routed", True, f"to {call.forward.node}"), _served([call]), _call_metered(bundle, call)]
    if call.delivery.round != bundle.header.round:
        own[0] = PathStep(
            "routed", True, f"{own[0].evidence} in round {call.delivery.round}, {_carried(bundle)}"
        )
    if not all(step.is_done for step in own):
        return _up_to_broken(own)
    merged = {step.name: step for step in own}
    for step in trace_node(bundle, call.forward.node, chain):
        if step.name not in merged or not step.is_done:
            merged[step.name] = step
    return _up_to_broken([merged[name] for name in STEPS if name in merged])


def trace_missing(call: MissingCall) -> list[PathStep]:
    """The way of a call that no bundle holds: where it waits, and what will come of it."""
    place = f"its round {call.round} is {call.round_state}"
    if call.round_state in ("open", "grace"):
        return [PathStep("settled", False, f"{place}: calls are settled when the grace is over")]
    if call.filed_with:
        names = ", ".join(call.filed_with)
        evidence = (
            f"left out of the bundle of round {call.round}, and filed as an omission with {names}: they refuse"
            f" every bundle that does not carry it, up to round {call.last_round}"
        )
        return [PathStep("metered", False, evidence)]
    evidence = (
        f"{place}, and no bundle through round {call.last_round} holds it: either the hub never answered it, or its"
        " node's signed batch has not come, or it was left out; its node files it with the validators by itself"
        " when it has the hub's signature"
    )
    return [PathStep("metered", False, evidence)]


def _carried(bundle: Bundle) -> str:
    return f"carried into the bundle of round {bundle.header.round}"


def _up_to_broken(steps: list[PathStep]) -> list[PathStep]:
    broken = next((index for index, step in enumerate(steps) if not step.is_done), len(steps) - 1)
    return steps[: broken + 1]


def _bound(bundle: Bundle, entry: SnapshotEntry | None) -> PathStep:
    block = bundle.header.snapshot_block
    if entry is None:
        return PathStep("bound", False, f"no binding at the round's snapshot, block {block}")
    if entry.role == ParticipantRole.HUB:
        return PathStep("bound", False, f"to wallet {entry.wallet} as a hub, which earns no reward")
    return PathStep("bound", True, f"to wallet {entry.wallet} at block {block}")


def _staked(bundle: Bundle, entry: SnapshotEntry, chain: ChainFacts) -> PathStep:
    needed = minimum_stake_wei(bundle.header.params, entry.role)
    held = f"{_token(entry.stake_wei)} EMC for {entry.lock_days} days, {_token(needed)} needed"
    if chain.slashes:
        held += f"; slashed: {'; '.join(chain.slashes)}"
    if entry.suspended_until_round > bundle.header.round:
        return PathStep(
            "staked", False, f"suspended until round {entry.suspended_until_round} by a verdict; {held}"
        )
    return PathStep("staked", entry.stake_wei >= needed, held)


def _worked(bundle: Bundle, entry: SnapshotEntry) -> list[PathStep]:
    """What its role asks of it: a status and calls, a revealed plan, or calls passed on."""
    match ParticipantRole(entry.role):
        case ParticipantRole.VALIDATOR:
            return [_revealed(bundle, entry.node)]
        case ParticipantRole.ROUTER:
            calls = [call for call in bundle.calls if call.forward.router == entry.node]
            return [_routed(calls, "through it"), _served(calls)]
        case _:
            calls = [call for call in bundle.calls if call.forward.node == entry.node]
            return [_online(bundle, entry.node), _routed(calls, "to it"), _served(calls)]


def _revealed(bundle: Bundle, node: Address) -> PathStep:
    reveal = next((item for item in bundle.reveals if item.reveal.validator == node), None)
    if reveal is None:
        return PathStep("served", False, "it did not reveal its plan of the round")
    shown = f"its plan is revealed: {len(reveal.probes)} probes, {tell_work(bundle, node)}"
    return PathStep("served", True, shown)


def _online(bundle: Bundle, node: Address) -> PathStep:
    status = next((item.status for item in bundle.statuses if item.status.node == node), None)
    if status is None:
        return PathStep("online", False, "no signed status of it in the round")
    return PathStep(
        "online", True, f"status {status.sequence}, {len(status.models)} models, emcd {status.version}"
    )


def _routed(calls: list[CallEntry], how: str) -> PathStep:
    return PathStep("routed", bool(calls), f"{len(calls)} calls forwarded {how}")


def _served(calls: list[CallEntry]) -> PathStep:
    good = [c for c in calls if CallStatus(c.delivery.status).is_success and c.receipt is not None]
    if good:
        return PathStep("served", True, f"{len(good)} of {len(calls)} calls answered and receipted")
    return PathStep("served", False, f"no call succeeded: {', '.join(sorted(set(map(_ending, calls))))}")


def _ending(call: CallEntry) -> str:
    status = CallStatus(call.delivery.status)
    return f"{status.name} without a receipt" if status.is_success else status.name


_WEIGHS = {
    ParticipantRole.COMPUTE: "vault-paid calls and passed probes",
    ParticipantRole.ROUTER: "its nodes' probes that went through it and were answered",
    ParticipantRole.VALIDATOR: "probes and re-checks done of those planned",
}


def _metered(bundle: Bundle, entry: SnapshotEntry, result: ResultEntry | None) -> PathStep:
    credits_micro = 0 if result is None else result.credits_micro
    shown = (
        f"{format_credits_floor(credits_micro)} credits that weigh ({_WEIGHS[ParticipantRole(entry.role)]})"
    )
    if not credits_micro and (strikes := tell_strikes(bundle, entry.node)):
        shown += f"; its probes failed: {strikes}"
    if result is not None and result.reason == Reason.MISTAKE:
        shown += f"; its word was proven wrong: {tell_mistakes(bundle, entry.node)}"
    return PathStep("metered", credits_micro > 0, shown)


def _call_metered(bundle: Bundle, call: CallEntry) -> PathStep:
    is_proven = None not in (call.forward_ref, call.receipt_ref, call.delivery_ref)
    standing = check_standing(call.forward, call.receipt, call.delivery, is_proven=is_proven)
    if standing is not CallStanding.COUNTS:
        return PathStep("metered", False, f"the call does not count: {standing.value}")
    told = tell_probe(bundle, call)
    if told is not None:
        return PathStep("metered", *told)
    paid = f"{format_credits_floor(call.delivery.vault_micro, 6)} of "
    paid += f"{format_credits_floor(call.delivery.credits_micro, 6)} credits were bought in the vault"
    return PathStep("metered", call.delivery.vault_micro > 0, paid)


def _settled(bundle: Bundle, node: Address, result: ResultEntry | None) -> PathStep:
    reason = Reason.UNBOUND if result is None else Reason(result.reason)
    if reason is Reason.VERDICT:
        return PathStep("settled", False, f"a verdict stands against it: {tell_strikes(bundle, node)}")
    if reason is not Reason.ELIGIBLE or result is None:
        return PathStep("settled", False, f"not eligible: {reason.value}")
    reward_wei = int.from_bytes(result.reward_wei, "big")
    return PathStep("settled", reward_wei > 0, f"{format_token_floor(reward_wei)} EMC in the bundle")


def _on_chain(bundle: Bundle, entry: SnapshotEntry, chain: ChainFacts) -> list[PathStep]:
    number = bundle.header.round
    newest = f"newest round on chain: {_round(chain.published_round)}"
    if chain.is_void:
        newest = (
            "the round is void: it was vetoed or found no quorum, and gives nothing; its calls are carried"
        )
    published = PathStep("published", chain.published_round >= number and not chain.is_void, newest)
    is_active = chain.active_round >= number
    due_wei = _cumulative_wei(bundle, entry.wallet)
    claimed = f"{format_token_floor(chain.claimed_wei)} EMC claimed by {entry.wallet} so far, "
    claimed += f"{format_token_floor(due_wei)} EMC due with this round; "
    claimed += "the root is active" if is_active else "the challenge delay still runs"
    is_done = is_active and chain.claimed_wei >= due_wei
    if not is_done and chain.paused_until:
        claimed += f"; claims are paused by the guardian until {chain.paused_until}"
    if not is_done and chain.request:
        claimed += f"; {chain.request}"
    return [published, PathStep("claimed", is_done, claimed)]


def _cumulative_wei(bundle: Bundle, wallet: Address) -> int:
    """Everything that the bundle's root gives the wallet, over all its nodes and rounds."""
    nodes = {item.node for item in bundle.participants if item.wallet == wallet}
    before = (total.cumulative_wei for total in bundle.totals if total.wallet == wallet)
    rewards = (result.reward_wei for result in bundle.results if result.node in nodes)
    return sum(int.from_bytes(amount, "big") for amount in (*before, *rewards))


def _round(index: int) -> str:
    return "none" if index < 0 else str(index)


def _token(amount: bytes) -> str:
    return format_token_floor(int.from_bytes(amount, "big"), 0)
