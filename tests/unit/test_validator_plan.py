"""The plan: what is drawn, for whom, and what it tells nobody."""

from __future__ import annotations

from emcd.accounting.assignment import ProbeAssignment, assign_probes
from emcd.proto.hashing import keccak
from emcd.testing import make_key
from emcd_validator.plan import Draws, Slot, draw_plan, own_slots, pick_model
from tests.support.validator_world import make_deployment

PARAMS = make_deployment(1_800_000_000).params
NODES = [make_key(f"node-{i}").address for i in range(6)]
VALIDATORS = [make_key(f"validator-{i}").address for i in range(4)]
BEACON = keccak(b"beacon")
ASSIGNMENTS = assign_probes(BEACON, 7, NODES, [(v, 10) for v in VALIDATORS], PARAMS)


def test_own_slots_split_all_assignments_among_the_validators() -> None:
    slots = [slot for validator in VALIDATORS for slot in own_slots(ASSIGNMENTS, validator)]
    assert sorted((s.node, s.slot) for s in slots) == sorted((n, s) for n in NODES for s in range(2))


def test_own_slots_are_in_byte_order_of_node() -> None:
    slots = own_slots(ASSIGNMENTS, VALIDATORS[0])
    assert list(slots) == sorted(slots, key=lambda s: (bytes.fromhex(s.node[2:]), s.slot))


def test_plan_same_seed_and_beacon_gives_the_same_plan() -> None:
    slots = own_slots(ASSIGNMENTS, VALIDATORS[0])
    plans = [draw_plan(Draws(keccak(b"seed"), BEACON), slots, 100, PARAMS, 7) for _ in range(2)]
    assert plans[0] == plans[1]


def test_plan_time_cannot_be_known_without_the_seed() -> None:
    slots = [Slot(item.node, item.slot) for item in ASSIGNMENTS]
    one = draw_plan(Draws(keccak(b"seed 1"), BEACON), slots, 100, PARAMS, 7)
    two = draw_plan(Draws(keccak(b"seed 2"), BEACON), slots, 100, PARAMS, 7)
    assert [p.due_at_ms for p in one] != [p.due_at_ms for p in two]


def test_plan_other_beacon_changes_leaf_and_time() -> None:
    slots = [Slot(item.node, item.slot) for item in ASSIGNMENTS]
    one = draw_plan(Draws(keccak(b"seed"), BEACON), slots, 1000, PARAMS, 7)
    two = draw_plan(Draws(keccak(b"seed"), keccak(b"other")), slots, 1000, PARAMS, 7)
    assert [p.leaf_index for p in one] != [p.leaf_index for p in two]


def test_pick_model_takes_only_what_is_offered_and_judged() -> None:
    draws, slot = Draws(keccak(b"seed"), BEACON), Slot(NODES[0], 0)
    assert pick_model(draws, slot, ["a", "b"], ["b", "c"]) == "b"
    assert pick_model(draws, slot, ["a"], ["b"]) is None


def test_own_slots_of_a_stranger_are_none() -> None:
    assert own_slots([ProbeAssignment(VALIDATORS[0], NODES[0], 0)], VALIDATORS[1]) == ()
