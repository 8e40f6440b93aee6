"""Staking, validator sets: who has power in which epoch, and that it is frozen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emcd.proto.hashing import keccak
from emcd.proto.signing import sign_digest
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    EPOCH_ROUNDS,
    VALIDATOR_MIN,
    Member,
    Network,
    actor,
    build_network,
    by_address,
    member,
    stranger,
)
from tests.support.evm import refused

DIGEST = keccak(b"something signed")
BLOCK_GAS = 30_000_000


def addresses(members: tuple[Member, ...] | list[Member]) -> set[str]:
    return {who.node.address for who in members}


def sign_all(members: list[Member]) -> bytes:
    return b"".join(sign_digest(DIGEST, who.node.key) for who in members)


def leave(network: Network, who: Member) -> None:
    network.staking.send(who.wallet.address, "requestExit", who.node.address)


def test_set_of_genesis_validators_counts_from_epoch_0(running: Network) -> None:
    assert running.validator_set(0) == dict.fromkeys(addresses(running.validators), VALIDATOR_MIN)


def test_set_is_listed_by_ascending_node(running: Network) -> None:
    found = running.staking.view("validatorSet", 0)
    assert found.nodes == [who.node.address for who in by_address(running.validators)]


def test_set_gives_no_instant_power_to_a_new_stake(running: Network) -> None:
    rich = running.join("rich", Role.VALIDATOR, 100 * VALIDATOR_MIN)
    running.to_round(EPOCH_ROUNDS - 1)
    assert rich.node.address not in running.validator_set(0)
    assert running.validator_set(1)[rich.node.address] == 100 * VALIDATOR_MIN
    running.to_epoch(1)
    assert rich.node.address not in running.validator_set(0)
    assert rich.node.address in running.validator_set(1)


def test_set_gives_no_instant_power_to_a_top_up(running: Network) -> None:
    who = running.validators[0]
    running.top_up(who, 50 * VALIDATOR_MIN)
    assert running.validator_set(0)[who.node.address] == VALIDATOR_MIN
    assert running.validator_set(1)[who.node.address] == 51 * VALIDATOR_MIN


def test_set_keeps_who_signs_and_leaves_until_its_epoch_is_over(running: Network) -> None:
    leaver = running.validators[0]
    running.evm.move_to(running.participant(leaver).lockEnd)
    epoch = running.staking.view("currentEpoch")
    leave(running, leaver)
    assert running.validator_set(epoch)[leaver.node.address] == VALIDATOR_MIN
    assert leaver.node.address not in running.validator_set(epoch + 1)
    assert leaver.node.address not in running.staking.view("candidates")


def test_set_takes_the_largest_stakes_only(running: Network) -> None:
    larger = [
        running.join(f"larger {index}", Role.VALIDATOR, VALIDATOR_MIN + index + 1) for index in range(3)
    ]
    chosen = running.validator_set(1)
    assert addresses(larger) < set(chosen)
    assert len(chosen) == 4


def test_set_gives_a_tie_to_the_lower_address(running: Network) -> None:
    rival = running.join("rival", Role.VALIDATOR, VALIDATOR_MIN)
    expected = by_address([*running.validators, rival])[:4]
    assert set(running.validator_set(1)) == addresses(expected)


def test_set_has_no_compute_node_or_router_however_large(running: Network) -> None:
    running.join("compute", Role.COMPUTE, 100 * VALIDATOR_MIN)
    running.join("router", Role.ROUTER, 100 * VALIDATOR_MIN)
    assert set(running.validator_set(1)) == addresses(running.validators)


def test_set_frozen_late_equals_the_one_that_was_seen_in_its_epoch(running: Network) -> None:
    running.join("joiner", Role.VALIDATOR, 2 * VALIDATOR_MIN)
    seen = {}
    for epoch in range(4):
        running.to_epoch(epoch)
        seen[epoch] = running.validator_set(epoch)
    running.top_up(running.validators[1], 7 * VALIDATOR_MIN)
    running.to_epoch(6)
    running.join("later", Role.VALIDATOR, 9 * VALIDATOR_MIN)
    assert {epoch: running.validator_set(epoch) for epoch in seen} == seen
    assert len(running.validator_set(5)) == 4
    assert running.validator_set(5) == running.validator_set(4)


def test_freeze_set_by_anyone_changes_nothing_that_is_seen(running: Network) -> None:
    running.join("joiner", Role.VALIDATOR, 2 * VALIDATOR_MIN)
    running.to_epoch(2)
    seen = [running.validator_set(epoch) for epoch in range(5)]
    outcome = running.staking.send(stranger(), "freezeSet", 1)
    assert outcome.event("SetFrozen")["size"] == 4
    assert [running.validator_set(epoch) for epoch in range(5)] == seen
    assert running.staking.view("firstUnfrozenEpoch") == 2
    assert running.staking.send(stranger(), "freezeSet", 2).events == []


def test_freeze_set_of_an_epoch_not_begun_is_refused(network: Network) -> None:
    with refused("EpochNotBegun"):
        network.staking.send(stranger(), "freezeSet", 0)
    network.to_epoch(0)
    with refused("EpochNotBegun"):
        network.staking.send(stranger(), "freezeSet", 1)


def test_freeze_set_without_a_change_writes_no_second_record(running: Network) -> None:
    running.staking.send(stranger(), "freezeSet", 0)
    running.to_epoch(3)
    assert running.staking.send(stranger(), "freezeSet", 3).events == []
    assert running.validator_set(2) == running.validator_set(0)


def test_set_before_the_first_record_is_that_of_epoch_0() -> None:
    network = build_network(validators=0)
    network.to_epoch(0)
    assert network.validator_set(0) == {}
    first = network.join("first", Role.VALIDATOR, VALIDATOR_MIN)
    assert network.validator_set(0) == {}
    assert set(network.validator_set(1)) == {first.node.address}


@pytest.fixture(scope="module")
def prepared_crowd() -> tuple[Network, list[Member]]:
    """As many stakes as there may be candidates, for one seat; they can leave at once."""
    roles = [(COMPUTE_MIN, 0), (0, 0), (VALIDATOR_MIN, 0), (0, 0)]
    network = build_network(validators=0, rules={"set_size": 31, "roles": roles})
    size = network.staking.view("MAX_CANDIDATES")
    everyone = [
        network.join(f"small {index}", Role.VALIDATOR, VALIDATOR_MIN + index, 0) for index in range(size)
    ]
    return network, everyone


def test_candidates_when_full_admit_only_a_larger_stake(prepared_crowd: tuple[Network, list[Member]]) -> None:
    network, small = prepared_crowd[0].fork(), prepared_crowd[1]
    equal = network.join("equal", Role.VALIDATOR, VALIDATOR_MIN, 0)
    assert equal.node.address not in network.staking.view("candidates")
    large = network.join("large", Role.VALIDATOR, 2 * VALIDATOR_MIN, 0)
    assert set(network.staking.view("candidates")) == addresses([*small[1:], large])
    assert set(network.validator_set(0)) == addresses([*small[-30:], large])
    network.top_up(small[0], 2 * VALIDATOR_MIN)
    assert set(network.staking.view("candidates")) == addresses([small[0], *small[2:], large])


def test_enroll_brings_a_displaced_stake_back_when_there_is_room(
    prepared_crowd: tuple[Network, list[Member]],
) -> None:
    network, small = prepared_crowd[0].fork(), prepared_crowd[1]
    network.join("large", Role.VALIDATOR, 2 * VALIDATOR_MIN, 0)
    with refused("NotACandidate"):
        network.staking.send(stranger(), "enroll", small[0].node.address)
    leave(network, small[1])
    network.staking.send(stranger(), "enroll", small[0].node.address)
    assert small[0].node.address in network.staking.view("candidates")


def test_freeze_of_the_fullest_set_at_every_change_fits_a_block(
    prepared_crowd: tuple[Network, list[Member]],
) -> None:
    network = replace(prepared_crowd[0].fork(), validators=tuple(prepared_crowd[1][-31:]))
    network.to_epoch(0)
    roles = [(COMPUTE_MIN, 0), (0, 0), (VALIDATOR_MIN, 0), (0, 0)]
    for epoch in range(2, 5):
        network.change(epoch, set_size=31 - 3 * (epoch % 2), roles=roles)
    network.to_epoch(40)
    at_once = network.fork().staking.send(stranger(), "freezeSet", 40)
    assert [event.values["size"] for event in at_once.events] == [31, 28, 31]
    most = network.parameters.view("MAX_LEAD_EPOCHS")
    assert at_once.gas_used * most // 3 < BLOCK_GAS
    for epoch in range(2, 5):
        step = network.staking.send(stranger(), "freezeSet", epoch)
        assert step.event("SetFrozen")["fromEpoch"] == epoch
        assert step.gas_used < BLOCK_GAS // 10
    assert network.staking.send(stranger(), "freezeSet", 40).events == []


@pytest.mark.parametrize("role", [Role.COMPUTE, Role.ROUTER])
def test_enroll_of_another_role_a_stranger_or_a_candidate_is_refused(running: Network, role: Role) -> None:
    who = running.join("not a validator", role, 2 * VALIDATOR_MIN)
    for node in (who.node.address, stranger(), running.validators[0].node.address):
        with refused("NotACandidate"):
            running.staking.send(stranger(), "enroll", node)


def test_signed_power_adds_each_member_once(running: Network) -> None:
    signers = by_address(running.validators)
    for count in range(5):
        found = running.staking.view("signedPower", 0, DIGEST, sign_all(signers[:count]))
        assert (found.signed, found.total) == (count * VALIDATOR_MIN, 4 * VALIDATOR_MIN)


def test_signed_power_of_duplicate_or_unsorted_signatures_is_refused(running: Network) -> None:
    signers = by_address(running.validators)
    for chosen in ([signers[0], signers[0]], signers[::-1], [signers[0], signers[2], signers[1]]):
        with refused("SignaturesUnsorted"):
            running.staking.view("signedPower", 0, DIGEST, sign_all(chosen))


def test_signed_power_of_an_outsider_a_wallet_or_an_empty_signature_is_refused(running: Network) -> None:
    who = running.validators[0]
    outsider = running.join("outsider", Role.VALIDATOR, 9 * VALIDATOR_MIN)
    for key in (outsider.node.key, who.wallet.key, actor("nobody").key):
        with refused("NotInSet"):
            running.staking.view("signedPower", 0, DIGEST, sign_digest(DIGEST, key))
    for signature, error in ((bytes(64), "BadSignatures"), (bytes(65), "ECDSAInvalidSignature")):
        with refused(error):
            running.staking.view("signedPower", 0, DIGEST, signature)
    with refused("NotInSet"):
        running.staking.view("signedPower", 0, keccak(b"another thing"), sign_all([who]))


def test_set_of_validators_bound_but_not_staked_is_unchanged(running: Network) -> None:
    running.bind(member("idle", Role.VALIDATOR))
    assert set(running.validator_set(1)) == addresses(running.validators)
