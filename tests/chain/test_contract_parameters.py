"""Parameters: who may change the rules, from when, and what a change must not reach."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.parameters import ParametersChange
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    GENESIS_S,
    ROUTER_MIN,
    TOKEN,
    VALIDATOR_MIN,
    Network,
    actor,
    build_network,
    fields,
    hash_rules,
    rule_table,
    signatures,
    stranger,
)
from tests.support.evm import CHAIN_ID, Evm, refused

DAY_S = 86_400
HIGHER = [(COMPUTE_MIN, 0), (ROUTER_MIN, 180), (2 * VALIDATOR_MIN, 360), (0, 0)]


def versions(network: Network, *epochs: int) -> list[int]:
    return [network.parameters.view("versionAt", epoch).version for epoch in epochs]


def test_version_1_is_the_deployments(network: Network) -> None:
    found = network.parameters.view("version", 1)
    assert (found.version, found.fromEpoch) == (1, 0)
    assert (found.rulesHash, found.documentHash) == (hash_rules(rule_table()), keccak(b"{}"))
    assert network.parameters.view("versionCount") == 1
    assert versions(network, 0, 1, 2**64 - 1) == [1, 1, 1]
    assert network.parameters.view("rulesAt", 7).setSize == 4
    for number in (0, 2):
        with refused("NoVersion"):
            network.parameters.view("version", number)


def test_change_by_more_than_two_thirds_is_in_force_from_its_epoch(running: Network) -> None:
    outcome = running.change(3, running.validators[:3], "a document", set_size=7)
    event = outcome.event("ParametersChanged")
    assert event == {
        "version": 2,
        "fromEpoch": 3,
        "rulesHash": hash_rules(rule_table(set_size=7)),
        "documentHash": keccak(b"a document"),
        "document": "a document",
    }
    assert versions(running, 0, 2, 3, 99) == [1, 1, 2, 2]
    assert running.parameters.view("version", 2).blockNumber == running.evm.block_number - 1
    sizes = [running.parameters.view("rulesAt", epoch).setSize for epoch in (0, 2, 3)]
    assert sizes == [4, 4, 7]


def test_change_sent_by_anyone_counts_the_signatures_only(running: Network) -> None:
    assert running.publisher.address not in running.validator_set(0)
    running.change(2)
    assert versions(running, 2) == [2]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_change_without_a_quorum_is_refused(running: Network, count: int) -> None:
    with refused("NoQuorum"):
        running.change(2, running.validators[:count])


def test_change_with_exactly_two_thirds_is_refused() -> None:
    network = build_network(validators=3)
    network.to_round(0)
    with refused("NoQuorum"):
        network.change(2, network.validators[:2])
    network.change(2)


def test_change_by_power_of_another_epoch_is_refused(running: Network) -> None:
    newcomers = [running.join(f"new {index}", Role.VALIDATOR, 9 * VALIDATOR_MIN) for index in range(4)]
    with refused("NotInSet"):
        running.change(2, newcomers)
    running.to_epoch(1)
    with refused("NotInSet"):
        running.change(3, running.validators)
    running.change(3, newcomers)


def test_change_before_genesis_is_refused(network: Network) -> None:
    with refused("NotStarted"):
        network.change(2)


@pytest.mark.parametrize("from_epoch", [0, 5, 6, 23, 2**64 - 1])
def test_change_too_soon_or_too_far_ahead_is_refused(running: Network, from_epoch: int) -> None:
    running.to_epoch(5)
    with refused("BadEpoch") as caught:
        running.change(from_epoch)
    assert caught.value.arguments == (from_epoch, 7, 22)


@pytest.mark.parametrize("from_epoch", [7, 22])
def test_change_at_the_first_and_the_last_epoch_allowed_is_taken(running: Network, from_epoch: int) -> None:
    running.to_epoch(5)
    running.change(from_epoch)
    assert versions(running, from_epoch - 1, from_epoch) == [1, 2]


def test_change_in_or_before_the_last_ones_epoch_is_refused(running: Network) -> None:
    running.change(8)
    for from_epoch in (2, 7, 8):
        with refused("BadEpoch"):
            running.change(from_epoch)
    running.change(9)
    assert versions(running, 7, 8, 9) == [1, 2, 3]


@pytest.mark.parametrize("number", [0, 1, 3, 2**64 - 1])
def test_change_with_another_number_than_the_next_is_refused(running: Network, number: int) -> None:
    with refused("WrongVersion"):
        running.change(2, version=number)


def test_change_replayed_is_refused(running: Network) -> None:
    running.change(2)
    with refused("WrongVersion"):
        running.change(2, version=2)


def test_change_signed_for_other_rules_another_chain_or_contract_is_refused(running: Network) -> None:
    table, document = rule_table(set_size=7), "{}"
    right = ParametersChange(2, 3, hash_rules(table), keccak(document.encode()))
    for domain, signed in (
        (running.parameters_domain, ParametersChange(2, 4, right.rules_hash, right.document_hash)),
        (running.parameters_domain, ParametersChange(2, 3, bytes(32), right.document_hash)),
        (running.staking_domain, right),
        (running.distributor_domain, right),
        (Domain(CHAIN_ID + 1, running.parameters.address), right),
    ):
        forged = b"".join(signatures(domain, signed, running.validators))
        with refused("(NotInSet|SignaturesUnsorted)"):
            running.parameters.send(stranger(), "change", fields(right), table, document, forged)
    good = b"".join(signatures(running.parameters_domain, right, running.validators))
    for other_table, other_document in ((rule_table(set_size=4), document), (table, "{ }")):
        with refused("WrongHash"):
            running.parameters.send(stranger(), "change", fields(right), other_table, other_document, good)
    running.parameters.send(stranger(), "change", fields(right), table, document, good)


def test_change_with_a_document_over_16_kilobytes_is_refused(running: Network) -> None:
    with refused("DocumentTooLong"):
        running.change(2, document="x" * 16_385)
    running.change(2, document="x" * 16_384)


UNSOUND: list[dict[str, Any]] = [
    {"set_size": 12},
    {"set_size": 34},
    {"set_size": 0},
    {"roles": [(0, 0), *HIGHER[1:]]},
    {"roles": [*HIGHER[:2], (0, 360), (0, 0)]},
    {"roles": [*HIGHER[:3], (10_000_000 * TOKEN + 1, 0)]},
    {"roles": [*HIGHER[:3], (0, 3_651)]},
    {"compute_lock_days": [0, 7, 30, 90]},
    {"compute_lock_days": [1, 7, 30, 90, 180]},
    {"compute_lock_days": [0, 7, 7, 90, 180]},
    {"compute_lock_days": [0, 7, 30, 90, 3_651]},
    {"compute_multiplier_bps": [0, 14_000, 27_000, 62_000, 100_000]},
    {"compute_multiplier_bps": [10_000, 14_000, 13_999, 62_000, 100_000]},
    {"compute_multiplier_bps": [10_000, 14_000, 27_000, 62_000, 1_000_001]},
    {"compute_lock_days": [], "compute_multiplier_bps": []},
    {"compute_lock_days": list(range(33)), "compute_multiplier_bps": [10_000] * 33},
]


@pytest.mark.parametrize("rules", UNSOUND)
def test_rules_that_no_network_could_live_with_are_refused(running: Network, rules: dict[str, Any]) -> None:
    with refused("BadRules"):
        running.change(2, **rules)
    with refused("BadRules"):
        Evm(GENESIS_S).deploy(actor("deployer").address, "Parameters", stranger(), rule_table(**rules), "{}")


def test_a_change_of_the_size_reaches_the_sets_from_its_epoch_only(running: Network) -> None:
    running.join("fifth", Role.VALIDATOR, VALIDATOR_MIN)
    before = {epoch: running.validator_set(epoch) for epoch in (0, 1, 2)}
    running.change(3, set_size=1)
    running.to_epoch(9)
    assert {epoch: running.validator_set(epoch) for epoch in before} == before
    running.staking.send(stranger(), "freezeSet", 9)
    assert {epoch: running.validator_set(epoch) for epoch in before} == before
    assert [len(running.validator_set(epoch)) for epoch in (2, 3, 9)] == [4, 1, 1]


@pytest.mark.parametrize("freezing", [(), (1,), (2,), (4,), (2, 3, 4, 5, 6)])
def test_sets_are_the_same_whenever_they_are_frozen(running: Network, freezing: tuple[int, ...]) -> None:
    """Changes that wait for different epochs: each has its own record, whoever writes it down when."""
    rich = running.join("rich", Role.VALIDATOR, 3 * VALIDATOR_MIN)
    running.change(3, set_size=1)
    running.change(5, set_size=4, roles=HIGHER)
    running.rotate(rich, actor("rich again"))
    sizes, keys = [4, 4, 4, 1, 1, 1, 1], {2: actor("rich again"), 1: rich.node}
    for epoch in range(7):
        running.to_epoch(epoch)
        if epoch in freezing:
            running.staking.send(stranger(), "freezeSet", epoch)
    running.to_epoch(40)
    assert [len(running.validator_set(epoch)) for epoch in range(7)] == sizes
    for epoch, key in keys.items():
        assert key.address in running.validator_set(epoch)
    assert set(running.validator_set(3)) == set(running.validator_set(40)) == {keys[2].address}


def test_a_higher_minimum_takes_seats_from_its_epoch_and_a_lower_one_gives_them_back(
    running: Network,
) -> None:
    rich = running.join("rich", Role.VALIDATOR, 2 * VALIDATOR_MIN)
    running.change(2, roles=HIGHER)
    running.to_epoch(2)
    assert set(running.validator_set(1)) > {rich.node.address}
    assert set(running.validator_set(2)) == {rich.node.address}
    running.change(4, [rich])
    running.to_epoch(4)
    assert len(running.validator_set(4)) == 4
    assert len(running.validator_set(3)) == 1


def test_a_new_stake_follows_the_rules_of_the_epoch_from_which_it_weighs(running: Network) -> None:
    roles = [(2 * COMPUTE_MIN, 0), (ROUTER_MIN, 90), (2 * VALIDATOR_MIN, 30), (0, 0)]
    running.change(2, roles=roles)
    running.to_epoch(1)
    with refused("BadLock"):
        running.join("validator of epoch 2", Role.VALIDATOR, 2 * VALIDATOR_MIN, 360)
    running.join("router of epoch 1", Role.ROUTER, ROUTER_MIN, 180)
    running.join("compute of epoch 1", Role.COMPUTE, COMPUTE_MIN, 0)
    running.to_epoch(2)
    with refused("BelowMinimum"):
        running.join("compute of epoch 2", Role.COMPUTE, COMPUTE_MIN, 0)
    running.join("router of epoch 2", Role.ROUTER, ROUTER_MIN, 90)


def test_a_lock_that_left_the_table_counts_as_the_longest_that_is_not_longer(running: Network) -> None:
    who = running.join("locked", Role.COMPUTE, COMPUTE_MIN, 180)
    short = running.join("short", Role.COMPUTE, COMPUTE_MIN, 7)
    running.change(
        2, compute_lock_days=[0, 30, 90, 360], compute_multiplier_bps=[9_000, 20_000, 50_000, 80_000]
    )
    assert running.participant(who).multiplierBps == 100_000
    running.to_epoch(2)
    assert (running.participant(who).multiplierBps, running.participant(who).lockDays) == (50_000, 180)
    assert running.participant(short).multiplierBps == 9_000
    page = {found.node: found.multiplierBps for found in running.staking.view("participants", 0, 100)}
    assert (page[who.node.address], page[running.validators[0].node.address]) == (50_000, 10_000)
    with refused("BadLock"):
        running.staking.send(who.wallet.address, "extend", who.node.address, 180)
    running.top_up(who, TOKEN)
    assert running.participant(who).lockEnd == running.evm.now_s + 180 * DAY_S
    running.evm.move_to(running.participant(who).lockEnd)
    assert running.participant(who).multiplierBps == 9_000


def test_rules_change_is_told_to_staking_by_the_parameters_only(running: Network) -> None:
    for caller in (stranger(), running.guardian.address, running.validators[0].wallet.address):
        with refused("NotParameters"):
            running.staking.send(caller, "rulesChangeFrom", 3)


def test_many_versions_are_found_by_epoch(running: Network) -> None:
    for step in range(12):
        running.to_epoch(3 * step)
        running.change(3 * step + 2, document=str(step))
    expected = [1, 1, *(2 + (epoch - 2) // 3 for epoch in range(2, 40))]
    assert versions(running, *range(36)) == expected[:36]
