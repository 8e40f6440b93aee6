"""Staking, slashing: by quorum, bounded, once an evidence, unbonding stakes too."""

from __future__ import annotations

import pytest

from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import Slash
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    EPOCH_ROUNDS,
    TOKEN,
    VALIDATOR_MIN,
    Member,
    Network,
    fields,
    signatures,
    stranger,
)
from tests.support.evm import CHAIN_ID, refused

EVIDENCE = keccak(b"two outcomes signed")


def order_of(who: Member, bps: int = 5_000, evidence: bytes = EVIDENCE, epoch: int = 0) -> Slash:
    return Slash(who.node.address, bps, evidence, epoch)


@pytest.fixture
def accused(running: Network) -> Member:
    return running.join("accused", Role.COMPUTE, COMPUTE_MIN)


def test_slash_by_more_than_two_thirds_burns_the_share(running: Network, accused: Member) -> None:
    supply_wei = running.token.view("totalSupply")
    outcome = running.slash(order_of(accused, bps=1_000), running.validators[:3])
    burnt_wei = COMPUTE_MIN // 10
    assert outcome.event("Slashed")["amountWei"] == burnt_wei
    assert running.participant(accused).stakeWei == COMPUTE_MIN - burnt_wei
    assert running.token.view("totalSupply") == supply_wei - burnt_wei
    assert running.token.view("balanceOf", running.staking.address) == running.staking.view("totalStakedWei")


def test_slash_by_half_or_nobody_is_refused(running: Network, accused: Member) -> None:
    for count in (0, 1, 2):
        with refused("NoQuorum"):
            running.slash(order_of(accused), running.validators[:count])


def test_slash_by_exactly_two_thirds_is_refused(running: Network, accused: Member) -> None:
    running.top_up(running.validators[0], VALIDATOR_MIN)
    running.top_up(running.validators[1], VALIDATOR_MIN)
    running.to_epoch(1)
    assert sorted(running.validator_set(1).values()) == [VALIDATOR_MIN] * 2 + [2 * VALIDATOR_MIN] * 2
    with refused("NoQuorum"):
        running.slash(order_of(accused, epoch=1), running.validators[:2])
    running.slash(order_of(accused, epoch=1), running.validators[:3])


def test_slash_with_the_same_evidence_is_refused_even_for_another(running: Network, accused: Member) -> None:
    running.slash(order_of(accused, bps=100), running.validators)
    other = running.join("other", Role.COMPUTE, COMPUTE_MIN)
    for order in (order_of(accused, bps=100), order_of(other), order_of(accused, bps=200)):
        with refused("EvidenceUsed"):
            running.slash(order, running.validators)
    assert running.staking.view("evidenceUsed", EVIDENCE)


@pytest.mark.parametrize("bps", [0, 5_001, 10_000, 65_535])
def test_slash_of_nothing_or_more_than_half_is_refused(running: Network, accused: Member, bps: int) -> None:
    with refused("BadSlashBps"):
        running.slash(order_of(accused, bps=bps), running.validators)


def test_slash_reaches_a_pending_top_up_too(running: Network, accused: Member) -> None:
    running.top_up(accused, COMPUTE_MIN)
    running.slash(order_of(accused), running.validators)
    found = running.participant(accused)
    assert (found.stakeWei, found.pendingWei) == (COMPUTE_MIN // 2, COMPUTE_MIN // 2)


def test_slash_reaches_a_stake_that_unbonds(running: Network, accused: Member) -> None:
    running.staking.send(accused.wallet.address, "requestExit", accused.node.address)
    running.to_round(23)
    running.slash(order_of(accused, epoch=1), running.validators)
    assert running.participant(accused).unbondingWei == COMPUTE_MIN // 2
    running.to_round(24)
    running.staking.send(accused.wallet.address, "withdraw", accused.node.address)
    assert running.token.view("balanceOf", accused.wallet.address) == COMPUTE_MIN // 2
    with refused("NotStaked"):
        running.slash(order_of(accused, evidence=keccak(b"late"), epoch=2), running.validators)


def test_slash_of_a_validator_that_signed_and_left_hits_its_stake(running: Network) -> None:
    leaver = running.validators[0]
    running.evm.move_to(running.participant(leaver).lockEnd)
    epoch = running.staking.view("currentEpoch")
    running.staking.send(leaver.wallet.address, "requestExit", leaver.node.address)
    running.to_round((epoch + 3) * EPOCH_ROUNDS, -1)
    with refused("StillUnbonding"):
        running.staking.send(leaver.wallet.address, "withdraw", leaver.node.address)
    running.slash(order_of(leaver, epoch=epoch + 2), running.validators[1:])
    assert running.participant(leaver).unbondingWei == VALIDATOR_MIN // 2


def test_slash_of_a_validator_keeps_this_epochs_power_and_ends_it_below_the_minimum(running: Network) -> None:
    who = running.validators[0]
    running.slash(order_of(who, bps=1), running.validators[1:])
    assert running.validator_set(0)[who.node.address] == VALIDATOR_MIN
    assert who.node.address not in running.validator_set(1)
    assert who.node.address not in running.staking.view("candidates")
    running.top_up(who, TOKEN * 100)
    assert who.node.address in running.validator_set(1)


def test_slash_by_the_set_of_another_epoch_than_this_or_the_last_is_refused(
    running: Network, accused: Member
) -> None:
    for epoch in (1, 2**64 - 1):
        with refused("WrongEpoch"):
            running.slash(order_of(accused, epoch=epoch), running.validators)
    running.to_epoch(2)
    with refused("WrongEpoch"):
        running.slash(order_of(accused, epoch=0), running.validators)
    running.slash(order_of(accused, epoch=1), running.validators)


def test_slash_before_genesis_is_refused(network: Network) -> None:
    accused = network.join("accused", Role.COMPUTE, COMPUTE_MIN)
    with refused("WrongEpoch"):
        network.slash(order_of(accused), network.validators)


def test_slash_signed_for_another_order_chain_or_contract_is_refused(
    running: Network, accused: Member
) -> None:
    order = order_of(accused)
    for domain, signed in (
        (running.staking_domain, order_of(accused, bps=4_999)),
        (running.staking_domain, order_of(running.validators[3])),
        (running.staking_domain, order_of(accused, evidence=keccak(b"other"))),
        (Domain(CHAIN_ID + 1, running.staking.address), order),
        (Domain(CHAIN_ID, running.distributor.address), order),
    ):
        forged = b"".join(signatures(domain, signed, running.validators))
        with refused("(NotInSet|SignaturesUnsorted)"):
            running.staking.send(stranger(), "slash", fields(order), forged)
    assert running.participant(accused).stakeWei == COMPUTE_MIN


def test_slash_with_duplicate_or_unsorted_signatures_is_refused(running: Network, accused: Member) -> None:
    order = order_of(accused)
    good = signatures(running.staking_domain, order, running.validators)
    for signed in ([good[0]] * 3, good[::-1], [*good, good[-1]]):
        with refused("SignaturesUnsorted"):
            running.staking.send(stranger(), "slash", fields(order), b"".join(signed))


def test_slash_by_instant_power_is_refused(running: Network, accused: Member) -> None:
    attacker = running.join("attacker", Role.VALIDATOR, 300 * VALIDATOR_MIN)
    with refused("NotInSet"):
        running.slash(order_of(accused), [attacker])
