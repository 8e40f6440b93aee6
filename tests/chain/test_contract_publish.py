"""Distributor, publication: quorum, order, time, schedule, fee."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from emcd.proto.eip712 import Domain, typed_data
from emcd.proto.messages import RoundRoot
from emcd.proto.signing import sign
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    DELAY_ROUNDS,
    FEE_WEI,
    GENESIS_S,
    ROUND_S,
    TOKEN,
    UNBONDING_ROUNDS,
    VALIDATOR_MIN,
    WINDOW_ROUNDS,
    Network,
    actor,
    build_network,
    by_address,
    deploy,
    emission_table,
    round_root,
    rule_table,
    signatures,
    staking_config,
    stranger,
)
from tests.support.evm import CHAIN_ID, Evm, refused

NONE, PENDING, ACTIVE, VOID = range(4)
VECTORS = Path(__file__).parent.parent / "vectors"
ISSUE_WEI = 4_166_666_666_666_666_666_667
"""A round of period 1, rounded up: what the contract allows."""


def test_publish_of_a_round_over_with_a_quorum_becomes_active_after_the_delay(running: Network) -> None:
    what = round_root(0, 100 * TOKEN)
    running.to_round(1)
    outcome = running.publish(what, running.validators[:3])
    active_at = running.evm.now_s + DELAY_ROUNDS * ROUND_S
    assert outcome.event("RootPublished") == {
        "round": 0, "publisher": running.publisher.address, "bundleHash": what.bundle_hash, "root": what.root,
        "cumulativeWei": what.cumulative_wei, "feeWei": FEE_WEI, "activeAt": active_at,
    }  # fmt: skip
    running.evm.move_to(active_at - 1)
    assert running.distributor.view("published", 0).state == PENDING
    assert running.distributor.view("activeRoot").root == bytes(32)
    running.evm.move_to(active_at)
    assert running.distributor.view("published", 0).state == ACTIVE
    found = running.distributor.view("activeRoot")
    assert (found.round, found.root, found.bundleHash) == (0, what.root, what.bundle_hash)
    assert found.cumulativeWei == what.cumulative_wei


def test_publish_before_the_round_is_over_is_refused(running: Network) -> None:
    what = round_root(3, TOKEN)
    running.to_round(4, -1)
    with refused("RoundNotOver"):
        running.publish(what)
    with refused("RoundNotOver"):
        running.publish(round_root(2**64 - 1, TOKEN))
    running.to_round(4)
    running.publish(what)


def test_publish_before_genesis_is_refused(network: Network) -> None:
    with refused("RoundNotOver"):
        network.publish(round_root(0, TOKEN))


def test_publish_of_a_round_whose_signers_may_have_left_is_refused(running: Network) -> None:
    window = running.distributor.view("publishWindowRounds")
    assert window == WINDOW_ROUNDS <= UNBONDING_ROUNDS - DELAY_ROUNDS
    running.to_round(5 + window + 1)
    with refused("RoundTooOld"):
        running.publish(round_root(5, TOKEN))
    running.to_round(5 + window)
    running.publish(round_root(5, TOKEN))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_publish_without_a_quorum_is_refused(running: Network, count: int) -> None:
    running.to_round(1)
    with refused("NoQuorum"):
        running.publish(round_root(0, TOKEN), running.validators[:count])


def test_publish_with_exactly_two_thirds_is_refused() -> None:
    network = build_network(validators=3)
    network.to_round(1)
    with refused("NoQuorum"):
        network.publish(round_root(0, TOKEN), network.validators[:2])
    network.publish(round_root(0, TOKEN))


def test_publish_without_any_validator_is_refused() -> None:
    network = build_network(validators=0)
    network.to_round(1)
    with refused("NoQuorum"):
        network.publish(round_root(0, TOKEN), [])


def test_publish_with_duplicate_unsorted_short_or_empty_signatures_is_refused(running: Network) -> None:
    what = round_root(0, TOKEN)
    running.to_round(1)
    good = running.attest(what, running.validators)
    for signed, error in (
        ([good[0]] * 4, "SignaturesUnsorted"),
        (good[::-1], "SignaturesUnsorted"),
        ([*good[:3], good[3][:64]], "BadSignatures"),
        ([*good, b"\x00"], "BadSignatures"),
        ([bytes(65), *good], "ECDSAInvalidSignature"),
    ):
        with refused(error):
            running.publish_signed(what, signed)


def test_publish_with_an_outsiders_or_an_owner_wallets_signature_is_refused(running: Network) -> None:
    what = round_root(0, TOKEN)
    running.to_round(1)
    for key in (actor("outsider").key, running.validators[0].wallet.key):
        with refused("NotInSet"):
            running.publish_signed(what, [sign(running.distributor_domain, what.struct(), key)])


def test_publish_signed_for_another_root_chain_or_contract_is_refused(running: Network) -> None:
    what = round_root(0, TOKEN)
    running.to_round(1)
    for domain, signed in (
        (running.distributor_domain, RoundRoot(0, what.bundle_hash, what.root, 2 * TOKEN)),
        (running.distributor_domain, RoundRoot(1, what.bundle_hash, what.root, TOKEN)),
        (running.distributor_domain, RoundRoot(0, what.root, what.bundle_hash, TOKEN)),
        (Domain(CHAIN_ID + 1, running.distributor.address), what.struct()),
        (Domain(CHAIN_ID, running.staking.address), what.struct()),
    ):
        with refused("(NotInSet|SignaturesUnsorted)"):
            running.publish_signed(what, signatures(domain, signed, running.validators))


def test_publish_with_signatures_by_eth_account_is_accepted(running: Network) -> None:
    what = round_root(0, TOKEN)
    running.to_round(1)
    message = encode_typed_data(full_message=typed_data(running.distributor_domain, what.struct()))
    signed = [
        bytes(Account.sign_message(message, who.node.key).signature) for who in by_address(running.validators)
    ]
    assert signed == running.attest(what, running.validators)
    running.publish_signed(what, signed)


def test_publish_by_instant_power_is_refused(running: Network) -> None:
    attacker = running.join("attacker", Role.VALIDATOR, 800 * VALIDATOR_MIN)
    running.to_round(1)
    with refused("NotInSet"):
        running.publish(round_root(0, 4_000 * TOKEN), [attacker])
    running.to_round(13)
    with refused("NotInSet"):  # power in epoch 1 is none over a round of epoch 0
        running.publish(round_root(11, 4_000 * TOKEN), [attacker])


def test_publish_counts_the_set_of_the_rounds_epoch_though_it_is_frozen_later(running: Network) -> None:
    newcomers = [running.join(f"newcomer {index}", Role.VALIDATOR, 2 * VALIDATOR_MIN) for index in range(4)]
    running.to_round(13)
    running.publish(round_root(11, TOKEN), running.validators)
    with refused("NotInSet"):
        running.publish(round_root(12, TOKEN), running.validators)
    running.publish(round_root(12, TOKEN), newcomers)


def test_publish_of_the_same_or_an_earlier_round_is_refused(running: Network) -> None:
    running.to_round(6)
    running.publish(round_root(3, TOKEN))
    for index in (3, 2, 0):
        with refused("RoundNotNewer"):
            running.publish(round_root(index, 2 * TOKEN))
    running.publish(round_root(5, 2 * TOKEN))
    assert running.distributor.view("lastRound").round == 5


def test_publish_of_an_empty_root_is_refused(running: Network) -> None:
    running.to_round(1)
    with refused("ZeroRoot"):
        running.publish(round_root(0, TOKEN, bytes(32)))


def test_publish_of_a_falling_total_is_refused_and_an_equal_one_accepted(running: Network) -> None:
    running.publish_at_end(round_root(0, 100 * TOKEN))
    running.to_round(2)
    with refused("CumulativeFell"):
        running.publish(round_root(1, 100 * TOKEN - 1))
    outcome = running.publish(round_root(1, 100 * TOKEN))
    assert outcome.event("RootPublished")["feeWei"] == 0


def test_publish_over_the_schedule_is_refused(running: Network) -> None:
    running.to_round(1)
    with refused("OverSchedule"):
        running.publish(round_root(0, ISSUE_WEI + 1))
    running.publish(round_root(0, ISSUE_WEI))
    running.to_round(4)
    with refused("OverSchedule"):
        running.publish(round_root(3, 4 * ISSUE_WEI + 1))
    running.publish(round_root(3, 4 * ISSUE_WEI))


def test_publish_takes_its_fee_out_of_what_the_growth_leaves(running: Network) -> None:
    running.to_round(1)
    outcome = running.publish(round_root(0, ISSUE_WEI - 3))
    assert outcome.event("RootPublished")["feeWei"] == 3
    running.to_round(2)
    outcome = running.publish(round_root(1, ISSUE_WEI - 3 + TOKEN))
    assert outcome.event("RootPublished")["feeWei"] == FEE_WEI


def test_publish_with_too_many_pending_is_refused_until_one_is_active(running: Network) -> None:
    for now, rounds in ((12, range(12)), (17, range(12, 16))):
        running.to_round(now)
        for index in rounds:
            running.publish(round_root(index, index * TOKEN))
    with refused("TooManyPending"):
        running.publish(round_root(16, 16 * TOKEN))
    running.activate(0)
    running.publish(round_root(16, 16 * TOKEN))
    assert running.distributor.view("activeRoot").round == 11


def test_pay_fee_once_and_only_when_active(running: Network) -> None:
    running.publish_at_end(round_root(0, TOKEN))
    with refused("NoFee"):
        running.distributor.send(stranger(), "payFee", 0)
    running.activate(0)
    outcome = running.distributor.send(stranger(), "payFee", 0)
    assert outcome.event("FeePaid")["feeWei"] == FEE_WEI
    assert running.token.view("balanceOf", running.publisher.address) == FEE_WEI
    assert running.distributor.view("totalFeesPaidWei") == FEE_WEI
    for index in (0, 1):
        with refused("NoFee"):
            running.distributor.send(stranger(), "payFee", index)


def test_schedule_is_never_under_and_at_most_a_wei_a_round_over_the_published_one(network: Network) -> None:
    rounds = json.loads((VECTORS / "emission.json").read_text())["rounds"]
    assert len(rounds) > 10
    for row in rounds:
        slack_wei = network.distributor.view("scheduledWei", row["round_index"]) - int(row["cumulative_wei"])
        assert 0 <= slack_wei <= row["round_index"] + 1
    assert network.distributor.view("scheduledWei", 2**64 - 1) == 100_000_000 * TOKEN


def test_distributor_that_is_not_the_tokens_minter_or_has_a_bad_table_is_not_deployed(
    network: Network,
) -> None:
    starts, rates = emission_table()
    deployer = stranger("second deployer")
    common = (network.token.address, network.staking.address)
    with refused("BadConfig"):
        network.evm.deploy(deployer, "Distributor", *common, starts, rates, 0, WINDOW_ROUNDS, deployer)
    for bad_starts, bad_rates in (([], []), ([1], [1]), ([0, 5, 5], [1, 1, 1]), ([0, 5], [1])):
        with refused("BadSchedule"):
            network.evm.deploy(
                deployer, "Distributor", *common, bad_starts, bad_rates, 0, WINDOW_ROUNDS, deployer
            )


def test_distributor_with_a_staking_contract_of_another_token_is_not_deployed(network: Network) -> None:
    evm = Evm(network.evm.now_s)
    deployer = actor("deployer").address
    minter, expected = evm.next_address(deployer, 3), evm.next_address(deployer, 2)
    holder = [stranger()], [900_000_000 * TOKEN]
    token = evm.deploy(deployer, "EMCToken", minter, *holder)
    parameters = evm.deploy(deployer, "Parameters", expected, rule_table(), "{}")
    config = staking_config(stranger("other token"), parameters.address)
    staking = evm.deploy(deployer, "Staking", config)
    common = (token.address, staking.address, *emission_table(), 0, WINDOW_ROUNDS, deployer)
    with refused("BadConfig"):
        evm.deploy(deployer, "Distributor", *common)


@pytest.mark.parametrize("window", [0, UNBONDING_ROUNDS - DELAY_ROUNDS + 1])
def test_distributor_with_an_unsound_window_is_not_deployed(window: int) -> None:
    evm = Evm(GENESIS_S)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.contract_network.WINDOW_ROUNDS", window)
        with refused("BadConfig"):
            deploy(evm)
