"""P10: for every step from binding to claim, a round in which it is the one that breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emcd.accounting.payment_path import (
    STEPS,
    ChainFacts,
    MissingCall,
    PathStep,
    trace_call,
    trace_missing,
    trace_node,
)
from emcd.accounting.round_close import CallRecords
from emcd.money import WEI_PER_TOKEN, encode_wei
from emcd.proto.bundle import Bundle, SnapshotEntry
from emcd.proto.messages import Verdict
from emcd.proto.records import CallStatus, format_call_id
from emcd.types import Address, ParticipantRole
from tests.support.round_world import World, address_of, edited

ROUND = 7
NODE = address_of("node-1")
WALLET = address_of("wallet of node-1")
VALIDATOR = address_of("validator-1")
ROUTER = address_of("router-1")
ALL_CLAIMED = ChainFacts(published_round=ROUND, active_round=ROUND, claimed_wei=10**30)


def broken(steps: list[PathStep]) -> PathStep:
    """The last step, which must be the only one that is not done."""
    assert steps
    assert all(step.is_done for step in steps[:-1])
    assert not steps[-1].is_done
    return steps[-1]


def names(steps: list[PathStep]) -> list[str]:
    return [step.name for step in steps]


def close(world: World, *, participants: list[SnapshotEntry] | None = None, **evidence: Any) -> Bundle:
    facts = {} if participants is None else {"participants": participants}
    return world.close(facts, **evidence).bundle


def with_entry(world: World, node: Address, **changes: Any) -> list[SnapshotEntry]:
    return [edited(entry, **changes) if entry.node == node else entry for entry in world.participants()]


def without_node(world: World) -> dict[str, Any]:
    """Evidence of a round in which NODE was never called."""
    return {
        "calls": [call for call in world.calls if call.forward.node != NODE],
        "batches": world.batches([call for call in world.calls if call.forward.node != NODE]),
    }


def failed(world: World) -> None:
    """Every call of NODE becomes one that the node failed."""
    world.calls = [
        world.make_call("node-1", call.forward.started_at_ms, status=CallStatus.NODE_ERROR)
        if call.forward.node == NODE
        else call
        for call in world.calls
    ]


def granted(world: World) -> None:
    """Users paid NODE's calls with grants, and its probes failed."""
    world.calls = [
        world.make_call("node-1", call.forward.started_at_ms, from_vault=False)
        if call.forward.node == NODE and call.delivery.vault_micro
        else call
        for call in world.calls
    ]


def user_call(world: World) -> CallRecords:
    """The first call of NODE that a user made."""
    return next(call for call in world.calls if call.forward.node == NODE and call.delivery.vault_micro)


def probe_call(world: World, name: str = "node-1") -> bytes:
    return next(p.call_id for rows in world.probes.values() for p in rows if p.node == address_of(name))


# ------------------------------------------------------------------------------------ of a node


def test_node_with_everything_done_shows_every_step() -> None:
    steps = trace_node(close(World()), NODE, ALL_CLAIMED)

    assert names(steps) == list(STEPS)
    assert all(step.is_done for step in steps)
    assert all(step.evidence for step in steps)


def test_node_that_is_not_bound_breaks_at_bound() -> None:
    step = broken(trace_node(close(World()), address_of("stranger"), ALL_CLAIMED))

    assert (step.name, step.evidence) == ("bound", "no binding at the round's snapshot, block 1000")


def test_node_that_served_unbound_breaks_at_bound() -> None:
    world = World()
    others = [entry for entry in world.participants() if entry.node != NODE]

    assert broken(trace_node(close(world, participants=others), NODE, ALL_CLAIMED)).name == "bound"


def test_node_with_too_little_stake_breaks_at_staked_with_both_amounts() -> None:
    world = World()
    low = with_entry(world, NODE, stake_wei=encode_wei(2_999 * WEI_PER_TOKEN))

    step = broken(trace_node(close(world, participants=low), NODE, ALL_CLAIMED))

    assert (step.name, step.evidence) == ("staked", "2,999 EMC for 0 days, 3,000 needed")


def test_node_suspended_breaks_at_staked_and_says_until_when() -> None:
    world = World()
    suspended = with_entry(world, NODE, suspended_until_round=ROUND + 3)

    step = broken(trace_node(close(world, participants=suspended), NODE, ALL_CLAIMED))

    assert step.name == "staked"
    assert step.evidence.startswith("suspended until round 10 by a verdict; 5,000 EMC")


def test_node_whose_suspension_is_over_goes_on() -> None:
    world = World()
    over = with_entry(world, NODE, suspended_until_round=ROUND)

    assert trace_node(close(world, participants=over), NODE, ALL_CLAIMED)[-1].is_done


def test_node_without_a_status_breaks_at_online() -> None:
    world = World()
    others = [entry for entry in world.statuses() if entry.status.node != NODE]

    step = broken(trace_node(close(world, statuses=others), NODE, ALL_CLAIMED))

    assert (step.name, step.evidence) == ("online", "no signed status of it in the round")


def test_node_online_shows_its_first_status() -> None:
    online = trace_node(close(World()), NODE, ALL_CLAIMED)[2]

    assert (online.name, online.is_done) == ("online", True)
    assert online.evidence.startswith("status 9, 1 models, emcd ")


def test_node_that_was_never_called_breaks_at_routed() -> None:
    world = World()

    step = broken(trace_node(close(world, **without_node(world)), NODE, ALL_CLAIMED))

    assert (step.name, step.evidence) == ("routed", "0 calls forwarded to it")


def test_node_whose_calls_all_failed_breaks_at_served_and_names_how() -> None:
    world = World()
    failed(world)

    step = broken(trace_node(close(world), NODE, ALL_CLAIMED))

    assert (step.name, step.evidence) == ("served", "no call succeeded: NODE_ERROR")


def test_node_without_receipts_breaks_at_served() -> None:
    world = World(node_names=("node-1",), calls_per_node=1)
    call = world.make_call(
        "node-1",
        world.params.round_start_ms(ROUND),
        edit=lambda kind, record: None if kind == "receipt" else record,
    )
    world.calls = [call]

    step = broken(trace_node(close(world), NODE, ALL_CLAIMED))

    assert (step.name, step.evidence) == ("served", "no call succeeded: OK without a receipt")


def test_node_paid_by_grants_alone_breaks_at_metered() -> None:
    world = World(verdicts={"node-1": Verdict.ERROR})
    granted(world)

    step = broken(trace_node(close(world), NODE, ALL_CLAIMED))

    assert step.name == "metered"
    assert step.evidence == "0.00 credits that weigh (vault-paid calls and passed probes)"


def test_node_whose_only_calls_are_failed_probes_breaks_at_metered_with_the_verdict() -> None:
    world = World(verdicts={"node-1": Verdict.GROSS}, calls_per_node=0)

    step = broken(trace_node(close(world), NODE, ALL_CLAIMED))

    assert step.name == "metered"
    assert f"{format_call_id(probe_call(world))}: GROSS (statistic " in step.evidence
    assert "its probes failed: call_" in step.evidence


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.GROSS])
def test_node_with_a_standing_verdict_breaks_at_settled_with_its_number(verdict: Verdict) -> None:
    world = World(verdicts={"node-1": verdict})

    step = broken(trace_node(close(world), NODE, ALL_CLAIMED))

    assert step.name == "settled"
    assert step.evidence.startswith("a verdict stands against it: call_")
    assert f"{format_call_id(probe_call(world))}: {verdict.name} (statistic " in step.evidence
    assert f"{verdict.name} (statistic 1.2e-09) by 0x" in step.evidence
    assert f"{verdict.name} stands" in step.evidence


def test_node_not_eligible_for_another_reason_breaks_at_settled_and_names_it() -> None:
    bundle = close(World())
    results = tuple(edited(r, reason="no-success") if r.node == NODE else r for r in bundle.results)

    step = broken(trace_node(edited(bundle, results=results), NODE, ALL_CLAIMED))

    assert (step.name, step.evidence) == ("settled", "not eligible: no-success")


def test_node_settled_shows_its_reward() -> None:
    bundle = close(World())
    reward_wei = next(int.from_bytes(r.reward_wei, "big") for r in bundle.results if r.node == NODE)

    settled = trace_node(bundle, NODE, ALL_CLAIMED)[6]

    assert (settled.name, settled.is_done) == ("settled", True)
    assert (
        settled.evidence == f"{reward_wei // 10**18:,}.{reward_wei % 10**18 // 10**14:04} EMC in the bundle"
    )


@pytest.mark.parametrize(("newest", "shown"), [(-1, "none"), (ROUND - 1, "6")])
def test_node_of_a_round_not_yet_published_breaks_at_published(newest: int, shown: str) -> None:
    step = broken(trace_node(close(World()), NODE, ChainFacts(newest, newest, 10**30)))

    assert (step.name, step.evidence) == ("published", f"newest round on chain: {shown}")


def test_node_of_a_void_round_breaks_at_published() -> None:
    step = broken(trace_node(close(World()), NODE, replace(ALL_CLAIMED, is_void=True)))

    assert step.name == "published"
    assert step.evidence.startswith("the round is void")


def test_node_of_a_round_in_its_challenge_delay_breaks_at_claimed() -> None:
    step = broken(trace_node(close(World()), NODE, ChainFacts(ROUND, ROUND - 1, 10**30)))

    assert step.name == "claimed"
    assert step.evidence.endswith("the challenge delay still runs")


def test_node_that_claimed_earlier_rounds_only_breaks_at_claimed() -> None:
    bundle = close(World())
    reward_wei = next(int.from_bytes(r.reward_wei, "big") for r in bundle.results if r.node == NODE)
    before_wei = 5
    facts = ChainFacts(ROUND, ROUND, before_wei + reward_wei - 1)

    step = broken(trace_node(bundle, NODE, facts))

    assert step.name == "claimed"
    assert WALLET in step.evidence
    assert step.evidence.endswith("the root is active")
    assert trace_node(bundle, NODE, replace(facts, claimed_wei=before_wei + reward_wei))[-1].is_done


def test_claimed_asks_for_all_nodes_of_the_wallet() -> None:
    world = World()
    shared = with_entry(world, address_of("node-2"), wallet=WALLET)
    bundle = close(world, participants=shared)
    mine = (NODE, address_of("node-2"))
    due_wei = 5 + sum(int.from_bytes(r.reward_wei, "big") for r in bundle.results if r.node in mine)

    assert not trace_node(bundle, NODE, ChainFacts(ROUND, ROUND, due_wei - 1))[-1].is_done
    assert trace_node(bundle, NODE, ChainFacts(ROUND, ROUND, due_wei))[-1].is_done


# ------------------------------------------------------------------------------------ of other roles


def test_validator_with_everything_done_needs_no_status_and_no_calls() -> None:
    world = World()
    busy = next(validator for validator, probes in world.probes.items() if probes)

    steps = trace_node(close(world), busy, ALL_CLAIMED)

    assert names(steps) == ["bound", "staked", "served", "metered", "settled", "published", "claimed"]
    assert all(step.is_done for step in steps)
    assert steps[2].evidence.startswith("its plan is revealed: ")


def test_validator_without_a_reveal_breaks_at_served() -> None:
    world = World()
    others = [entry for entry in world.reveals() if entry.reveal.validator != VALIDATOR]

    step = broken(trace_node(close(world, reveals=others), VALIDATOR, ALL_CLAIMED))

    assert (step.name, step.evidence) == ("served", "it did not reveal its plan of the round")


def test_validator_under_its_minimum_breaks_at_staked() -> None:
    world = World()
    low = with_entry(world, VALIDATOR, stake_wei=encode_wei(999_999 * WEI_PER_TOKEN))

    step = broken(trace_node(close(world, participants=low), VALIDATOR, ALL_CLAIMED))

    assert (step.name, step.evidence) == ("staked", "999,999 EMC for 360 days, 1,000,000 needed")


def test_validator_without_a_probe_drawn_breaks_at_metered() -> None:
    bundle = close(World())
    results = tuple(edited(r, credits_micro=0) if r.node == VALIDATOR else r for r in bundle.results)

    step = broken(trace_node(edited(bundle, results=results), VALIDATOR, ALL_CLAIMED))

    assert (step.name, step.evidence) == (
        "metered",
        "0.00 credits that weigh (probes and re-checks done of those planned)",
    )


def through_router(world: World) -> list[SnapshotEntry]:
    """All calls of users go through a router; the participants with it."""

    def route(kind: str, record: Any) -> Any:
        return edited(record, router=ROUTER) if kind == "forward" else record

    world.calls = [
        world.make_call(world.by_address[call.forward.node], call.forward.started_at_ms, edit=route)
        if call.delivery.vault_micro
        else call
        for call in world.calls
    ]
    stake_wei = encode_wei(100_000 * WEI_PER_TOKEN)
    entry = SnapshotEntry(ROUTER, address_of("its wallet"), int(ParticipantRole.ROUTER), stake_wei, 180, 0)
    return [*world.participants(), entry]


PROBED = {(name, slot): "router-1" for name in ("node-1", "node-2", "node-3") for slot in range(2)}


def test_router_with_everything_done_needs_no_status() -> None:
    world = World(routes=PROBED)

    steps = trace_node(close(world, participants=through_router(world)), ROUTER, ALL_CLAIMED)

    assert names(steps) == [name for name in STEPS if name != "online"]
    assert all(step.is_done for step in steps)
    assert steps[2].evidence == "18 calls forwarded through it"


def test_router_without_probes_breaks_at_metered() -> None:
    world = World()

    step = broken(trace_node(close(world, participants=through_router(world)), ROUTER, ALL_CLAIMED))

    assert (step.name, step.evidence) == (
        "metered",
        "0.00 credits that weigh (its nodes' probes that went through it and were answered)",
    )


def test_router_that_forwarded_nothing_breaks_at_routed() -> None:
    idle = World()

    step = broken(trace_node(close(idle, participants=through_router(World())), ROUTER, ALL_CLAIMED))

    assert (step.name, step.evidence) == ("routed", "0 calls forwarded through it")


def test_hub_breaks_at_bound_since_it_earns_nothing() -> None:
    world = World()
    entry = SnapshotEntry(world.hub, WALLET, int(ParticipantRole.HUB), bytes(32), 0, 0)

    step = broken(
        trace_node(close(world, participants=[*world.participants(), entry]), world.hub, ALL_CLAIMED)
    )

    assert step.name == "bound"
    assert "a hub, which earns no reward" in step.evidence


# ------------------------------------------------------------------------------------ of a call


def test_call_with_everything_done_shows_every_step() -> None:
    world = World()
    call = user_call(world)

    steps = trace_call(close(world), call.forward.call_id, ALL_CLAIMED)

    assert names(steps) == list(STEPS)
    assert all(step.is_done for step in steps)
    assert {step.name: step.evidence for step in steps}["routed"] == f"to {NODE}"
    assert {step.name: step.evidence for step in steps}["metered"] == (
        "1.500000 of 1.500000 credits were bought in the vault"
    )


def test_call_that_the_bundle_does_not_hold_is_refused() -> None:
    with pytest.raises(KeyError, match="call_"):
        trace_call(close(World()), bytes(16), ALL_CLAIMED)


def call_in(world: World, **fields: Any) -> tuple[Bundle, bytes]:
    """A round with one more call of NODE, and the call's id."""
    call = world.make_call("node-1", world.params.round_start_ms(ROUND) + 9, **fields)
    world.calls.append(call)
    return close(world), call.forward.call_id


def drop_receipt(kind: str, record: Any) -> Any:
    return None if kind == "receipt" else record


def move_receipt(kind: str, record: Any) -> Any:
    return edited(record, finished_at_ms=record.finished_at_ms + 60_000) if kind == "receipt" else record


@pytest.mark.parametrize("status", [CallStatus.CLIENT_ERROR, CallStatus.NODE_ERROR])
def test_call_that_failed_breaks_at_served(status: CallStatus) -> None:
    bundle, call_id = call_in(World(), status=status)

    steps = trace_call(bundle, call_id, ALL_CLAIMED)

    assert names(steps) == ["routed", "served"]
    assert broken(steps).evidence == f"no call succeeded: {status.name}"


def test_call_without_a_receipt_breaks_at_served() -> None:
    bundle, call_id = call_in(World(), edit=drop_receipt)

    assert (
        broken(trace_call(bundle, call_id, ALL_CLAIMED)).evidence == "no call succeeded: OK without a receipt"
    )


def test_call_whose_node_clock_is_off_breaks_at_metered() -> None:
    bundle, call_id = call_in(World(), edit=move_receipt)

    step = broken(trace_call(bundle, call_id, ALL_CLAIMED))

    assert step.name == "metered"
    assert (
        step.evidence == "the call does not count: the node's times differ from the hub's by more than 30 s"
    )


def test_call_outside_every_signed_batch_breaks_at_metered() -> None:
    world = World()
    batches = world.batches()
    late = world.make_call("node-1", world.params.round_start_ms(ROUND) + 9)
    world.calls.append(late)

    step = broken(trace_call(close(world, batches=batches), late.forward.call_id, ALL_CLAIMED))

    assert step.name == "metered"
    assert step.evidence == "the call does not count: no signed batch holds all three records"


def test_call_paid_by_a_grant_breaks_at_metered_with_both_amounts() -> None:
    bundle, call_id = call_in(World(), from_vault=False)

    step = broken(trace_call(bundle, call_id, ALL_CLAIMED))

    assert step.name == "metered"
    assert step.evidence == "0.000000 of 1.500000 credits were bought in the vault"


def test_call_that_was_a_passed_probe_is_metered_as_one() -> None:
    world = World()

    steps = trace_call(close(world), probe_call(world), ALL_CLAIMED)

    assert all(step.is_done for step in steps)
    assert "a probe, found PASS" in {step.name: step.evidence for step in steps}["metered"]


def test_call_that_was_a_failed_probe_breaks_at_metered() -> None:
    world = World(verdicts={"node-1": Verdict.GROSS})

    step = broken(trace_call(close(world), probe_call(world), ALL_CLAIMED))

    assert step.name == "metered"
    assert step.evidence.startswith("a probe, found GROSS (statistic 1.2e-09) by 0x")
    assert step.evidence.endswith("more than 2/3 of the power agree; probes count by passing")


def test_call_that_a_probe_names_wrongly_breaks_at_its_nodes_metered() -> None:
    """The reveal says PASS about a request that was not made: no call backs it, nothing is earned."""
    world = World(calls_per_node=0)
    for validator, probes in world.probes.items():
        world.probes[validator] = [
            edited(probe, request_hash=bytes(32)) if probe.node == NODE else probe for probe in probes
        ]

    step = broken(trace_call(close(world), probe_call(world), ALL_CLAIMED))

    assert step.name == "metered"
    assert step.evidence.startswith("0.00 credits that weigh")


NODE_FAULTS: dict[str, tuple[str, Callable[[World], tuple[Bundle, ChainFacts]]]] = {
    "unbound": (
        "bound",
        lambda w: (close(w, participants=[e for e in w.participants() if e.node != NODE]), ALL_CLAIMED),
    ),
    "understaked": (
        "staked",
        lambda w: (close(w, participants=with_entry(w, NODE, stake_wei=encode_wei(1))), ALL_CLAIMED),
    ),
    "suspended": (
        "staked",
        lambda w: (close(w, participants=with_entry(w, NODE, suspended_until_round=9)), ALL_CLAIMED),
    ),
    "offline": (
        "online",
        lambda w: (close(w, statuses=[s for s in w.statuses() if s.status.node != NODE]), ALL_CLAIMED),
    ),
    "unpublished": ("published", lambda w: (close(w), ChainFacts(-1, -1, 0))),
    "void": ("published", lambda w: (close(w), replace(ALL_CLAIMED, is_void=True))),
    "delayed": ("claimed", lambda w: (close(w), ChainFacts(ROUND, -1, 0))),
    "unclaimed": ("claimed", lambda w: (close(w), ChainFacts(ROUND, ROUND, 0))),
}


@pytest.mark.parametrize("fault", NODE_FAULTS)
def test_good_call_of_a_node_at_fault_breaks_where_the_node_does(fault: str) -> None:
    step_name, make = NODE_FAULTS[fault]
    world = World()
    bundle, facts = make(world)

    steps = trace_call(bundle, user_call(world).forward.call_id, facts)

    assert broken(steps).name == step_name
    assert names(steps) == list(STEPS)[: STEPS.index(step_name) + 1]


def test_good_call_of_a_convicted_node_breaks_at_settled() -> None:
    world = World(verdicts={"node-1": Verdict.GROSS})

    step = broken(trace_call(close(world), user_call(world).forward.call_id, ALL_CLAIMED))

    assert step.name == "settled"
    assert "GROSS" in step.evidence


# ------------------------------------------------------------------------------------ what chain and settler add


def test_slashed_node_under_its_minimum_breaks_at_staked_with_the_slash() -> None:
    low = close(World(), participants=with_entry(World(), NODE, stake_wei=encode_wei(2_700 * WEI_PER_TOKEN)))
    slashed = replace(ALL_CLAIMED, slashes=("300.0000 EMC (10 %) in epoch 4, evidence 0xab",))

    step = broken(trace_node(low, NODE, slashed))

    assert step.name == "staked"
    assert step.evidence.endswith("3,000 needed; slashed: 300.0000 EMC (10 %) in epoch 4, evidence 0xab")


def test_unclaimed_reward_says_that_the_contract_is_paused() -> None:
    facts = ChainFacts(ROUND, ROUND, 0, paused_until="2026-01-01 00:00:00 UTC")

    step = broken(trace_node(close(World()), NODE, facts))

    assert step.name == "claimed"
    assert step.evidence.endswith("claims are paused by the guardian until 2026-01-01 00:00:00 UTC")


def test_unclaimed_reward_says_what_the_settler_says() -> None:
    words = (
        "its extraction request through round 7 is synchronised; the settler 0x1 says: below 1 EMC, the least"
    )
    facts = ChainFacts(ROUND, ROUND, 0, request=words)

    step = broken(trace_node(close(World()), NODE, facts))

    assert (step.name, step.evidence.endswith(words)) == ("claimed", True)
    assert words not in trace_node(close(World()), NODE, replace(ALL_CLAIMED, request=words))[-1].evidence


def test_call_of_an_earlier_round_is_shown_as_carried() -> None:
    world = World()
    late = world.make_call("node-1", world.params.round_start_ms(ROUND - 1) + 9)
    world.calls.append(late)

    steps = trace_call(close(world), late.forward.call_id, ALL_CLAIMED)

    assert steps[0].name in ("bound", "routed")
    routed = next(step for step in steps if step.name == "routed")
    assert routed.evidence == f"to {NODE} in round {ROUND - 1}, carried into the bundle of round {ROUND}"


@pytest.mark.parametrize("state", ["open", "grace"])
def test_call_of_a_round_that_is_not_closed_breaks_at_settled(state: str) -> None:
    step = broken(trace_missing(MissingCall(ROUND, state)))

    assert (step.name, f"is {state}" in step.evidence) == ("settled", True)


def test_call_filed_as_an_omission_names_who_holds_it_and_until_when() -> None:
    step = broken(trace_missing(MissingCall(ROUND, "closed", (VALIDATOR,), ROUND + 12)))

    assert step.name == "metered"
    assert f"filed as an omission with {VALIDATOR}" in step.evidence
    assert step.evidence.endswith(f"up to round {ROUND + 12}")


def test_call_that_nobody_holds_says_what_can_be_behind_it() -> None:
    step = broken(trace_missing(MissingCall(ROUND, "active", (), ROUND + 12)))

    assert step.name == "metered"
    assert f"no bundle through round {ROUND + 12} holds it" in step.evidence
    assert "signed batch has not come" in step.evidence


def test_every_step_has_a_test_that_breaks_it() -> None:
    """P10: a test for each step. The steps that this file's tests break, as their assertions name them."""
    text = Path(__file__).read_text("utf-8")
    for step in STEPS:
        assert re.search(rf"def test_[a-z_]*breaks_at_{step}", text), f"no test breaks {step}"
