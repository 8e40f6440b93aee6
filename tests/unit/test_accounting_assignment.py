from __future__ import annotations

from collections import Counter

import pytest

from emcd.accounting.assignment import (
    assign_probes,
    draw_leaf,
    draw_time_ms,
    draw_value,
    probe_window_ms,
    probed_nodes,
)
from emcd.money import encode_wei
from emcd.proto.hashing import keccak
from emcd.proto.params import devnet_params, mainnet_params
from tests.support.round_world import GENESIS_S, World, address_of, edited

PARAMS = mainnet_params(GENESIS_S)
BEACON = keccak(b"beacon")
NODES = [address_of(f"node {n}") for n in range(40)]
VALIDATORS = [(address_of(f"validator {n}"), 10**24) for n in range(4)]


def test_assignment_gives_each_node_two_different_validators() -> None:
    probes = assign_probes(BEACON, 3, NODES, VALIDATORS, PARAMS)

    assert len(probes) == 2 * len(NODES)
    for node in NODES:
        mine = [probe for probe in probes if probe.node == node]
        assert [probe.slot for probe in mine] == [0, 1]
        assert len({probe.validator for probe in mine}) == 2


def test_draw_time_is_inside_the_window_of_the_round() -> None:
    first, last = probe_window_ms(PARAMS, 3)
    seed = keccak(b"seed")
    times = [draw_time_ms(seed, BEACON, node, slot, PARAMS, 3) for node in NODES for slot in range(2)]

    assert first <= min(times) < max(times) < last
    assert len(set(times)) > len(times) // 2


def test_probe_window_leaves_hardly_a_time_that_is_known_to_be_free_of_probes() -> None:
    long, short = mainnet_params(0), devnet_params(0)

    assert probe_window_ms(long, 0) == (240_000, 7_200_000 - 90_000)
    assert probe_window_ms(short, 2) == (30_000 + 3_000, 30_000 + 12_750)


def test_draw_time_needs_the_seed() -> None:
    seeds = [keccak(b"seed %d" % number) for number in range(20)]

    assert len({draw_time_ms(seed, BEACON, NODES[0], 0, PARAMS, 3) for seed in seeds}) == len(seeds)


def test_assignment_does_not_depend_on_the_order_of_its_input() -> None:
    assert assign_probes(BEACON, 3, NODES[::-1], VALIDATORS[::-1], PARAMS) == assign_probes(
        BEACON, 3, NODES, VALIDATORS, PARAMS
    )


@pytest.mark.parametrize("change", ["beacon", "round"])
def test_assignment_changes_with_beacon_and_round(change: str) -> None:
    beacon, index = (keccak(b"other"), 3) if change == "beacon" else (BEACON, 4)

    other = assign_probes(beacon, index, NODES, VALIDATORS, PARAMS)

    own = assign_probes(BEACON, 3, NODES, VALIDATORS, PARAMS)
    assert [probe.validator for probe in other] != [probe.validator for probe in own]


def test_assignment_draws_by_stake() -> None:
    heavy = [(address_of("heavy"), 9 * 10**24), (address_of("light"), 10**24), (address_of("none"), 0)]
    nodes = [address_of(f"many {n}") for n in range(400)]

    first = Counter(p.validator for p in assign_probes(BEACON, 0, nodes, heavy, PARAMS) if p.slot == 0)

    assert 330 <= first[address_of("heavy")] <= 390
    assert address_of("none") not in first


def test_assignment_with_one_validator_gives_one_probe_and_with_none_none() -> None:
    assert len(assign_probes(BEACON, 0, NODES[:1], VALIDATORS[:1], PARAMS)) == 1
    assert assign_probes(BEACON, 0, NODES, [], PARAMS) == ()


def test_probed_nodes_are_compute_nodes_with_the_minimum() -> None:
    world = World()
    rows = world.participants()
    rows[0] = edited(rows[0], stake_wei=encode_wei(3_000 * 10**18 - 1))
    rows[1] = edited(rows[1], stake_wei=encode_wei(3_000 * 10**18), suspended_until_round=99)

    assert probed_nodes(rows, PARAMS) == (rows[1].node, rows[2].node)


def test_draw_depends_on_every_input_and_stays_in_bounds() -> None:
    seed, other = keccak(b"seed"), keccak(b"other seed")
    draws = {
        draw_leaf(seed, BEACON, NODES[0], 0, 2**60),
        draw_leaf(other, BEACON, NODES[0], 0, 2**60),
        draw_leaf(seed, other, NODES[0], 0, 2**60),
        draw_leaf(seed, BEACON, NODES[1], 0, 2**60),
        draw_leaf(seed, BEACON, NODES[0], 1, 2**60),
        draw_value(seed, BEACON, NODES[0], 0, "temperature", 2**60),
    }
    assert len(draws) == 6
    assert all(0 <= draw_leaf(seed, BEACON, node, 0, 7) < 7 for node in NODES)


def test_draw_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError):
        draw_leaf(keccak(b"seed"), BEACON, NODES[0], 0, 0)
