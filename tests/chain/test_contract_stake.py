"""Staking, stakes: minimums, locks, multipliers, top-ups, exits, withdrawals."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    DAY_S,
    EPOCH_ROUNDS,
    GENESIS_S,
    ROUTER_MIN,
    TOKEN,
    UNBONDING_ROUNDS,
    VALIDATOR_MIN,
    Member,
    Network,
    actor,
    member,
    rule_table,
    staking_config,
    stranger,
)
from tests.support.evm import Evm, refused

MULTIPLIERS_BPS = {0: 10_000, 7: 14_000, 30: 27_000, 90: 62_000, 180: 100_000}


def call(network: Network, who: Member, name: str, *arguments: int) -> None:
    network.staking.send(who.wallet.address, name, who.node.address, *arguments)


@pytest.mark.parametrize("lock_days", MULTIPLIERS_BPS)
def test_stake_of_a_compute_node_weighs_at_once_with_its_locks_multiplier(
    running: Network, lock_days: int
) -> None:
    running.to_round(14)
    who = running.join("compute", Role.COMPUTE, COMPUTE_MIN, lock_days)
    found = running.participant(who)
    assert (found.stakeWei, found.pendingWei) == (COMPUTE_MIN, 0)
    assert (found.lockDays, found.multiplierBps) == (lock_days, MULTIPLIERS_BPS[lock_days])
    assert found.lockEnd == running.evm.now_s + lock_days * DAY_S
    assert (found.activeFromEpoch, found.exitRound, found.unbondingWei) == (1, 0, 0)


@pytest.mark.parametrize(
    ("role", "minimum_wei"),
    [(Role.COMPUTE, COMPUTE_MIN), (Role.ROUTER, ROUTER_MIN), (Role.VALIDATOR, VALIDATOR_MIN)],
)
def test_stake_under_the_roles_minimum_is_refused(running: Network, role: Role, minimum_wei: int) -> None:
    who = member("poor", role)
    running.bind(who)
    assert running.parameters.view("stakeRuleAt", 1, int(role), 7).minimumWei == minimum_wei
    with refused("BelowMinimum"):
        running.stake(who, minimum_wei - 1)
    running.stake(who, minimum_wei)


@pytest.mark.parametrize(
    ("role", "lock_days"),
    [(Role.COMPUTE, 1), (Role.COMPUTE, 360), (Role.ROUTER, 0), (Role.ROUTER, 360), (Role.VALIDATOR, 180)],
)
def test_stake_with_a_lock_that_the_role_does_not_have_is_refused(
    running: Network, role: Role, lock_days: int
) -> None:
    who = member("locked", role)
    running.bind(who)
    with refused("BadLock"):
        running.stake(who, VALIDATOR_MIN, lock_days)


def test_stake_by_others_without_binding_or_twice_is_refused(running: Network) -> None:
    who = member("compute", Role.COMPUTE)
    running.fund(who.wallet.address, 3 * COMPUTE_MIN)
    with refused("NotBound"):
        call(running, who, "stake", COMPUTE_MIN, 0)
    running.bind(who)
    running.fund(stranger(), COMPUTE_MIN)
    with refused("NotWallet"):
        running.staking.send(stranger(), "stake", who.node.address, COMPUTE_MIN, 0)
    call(running, who, "stake", COMPUTE_MIN, 0)
    with refused("AlreadyStaked"):
        call(running, who, "stake", COMPUTE_MIN, 0)


def test_stake_without_allowance_or_of_an_absurd_amount_changes_nothing(running: Network) -> None:
    who = member("compute", Role.COMPUTE)
    running.bind(who)
    with refused("ERC20InsufficientAllowance"):
        call(running, who, "stake", COMPUTE_MIN, 0)
    with refused("BadAmount"):
        call(running, who, "stake", 2**96, 0)
    assert running.participant(who).stakeWei == 0


def test_stake_of_a_hub_may_be_any_amount_but_nothing(running: Network) -> None:
    who = member("hub", Role.HUB)
    running.bind(who)
    with refused("BadAmount"):
        running.stake(who, 0)
    running.stake(who, 1)
    assert running.participant(who).stakeWei == 1


def test_top_up_weighs_from_the_next_epoch_and_locks_the_whole_stake_anew(running: Network) -> None:
    who = running.join("compute", Role.COMPUTE, COMPUTE_MIN, 30)
    running.to_round(11, 100)
    running.top_up(who, 5 * TOKEN)
    found = running.participant(who)
    assert (found.stakeWei, found.pendingWei) == (COMPUTE_MIN, 5 * TOKEN)
    assert found.lockEnd == running.evm.now_s + 30 * DAY_S
    running.to_epoch(1)
    found = running.participant(who)
    assert (found.stakeWei, found.pendingWei) == (COMPUTE_MIN + 5 * TOKEN, 0)


def test_top_ups_of_two_epochs_mature_each_in_its_own(running: Network) -> None:
    who = running.join("compute", Role.COMPUTE, COMPUTE_MIN)
    running.top_up(who, TOKEN)
    running.top_up(who, 2 * TOKEN)
    running.to_epoch(1)
    running.top_up(who, 4 * TOKEN)
    found = running.participant(who)
    assert (found.stakeWei, found.pendingWei) == (COMPUTE_MIN + 3 * TOKEN, 4 * TOKEN)


def test_top_up_of_nothing_unstaked_or_exiting_is_refused(running: Network) -> None:
    who = member("compute", Role.COMPUTE)
    running.bind(who)
    with refused("NotStaked"):
        running.top_up(who, TOKEN)
    running.stake(who, COMPUTE_MIN)
    with refused("BadAmount"):
        call(running, who, "topUp", 0)
    call(running, who, "requestExit")
    with refused("StillUnbonding"):
        running.top_up(who, TOKEN)


def test_multiplier_falls_to_that_of_no_lock_when_the_lock_is_over(running: Network) -> None:
    who = running.join("compute", Role.COMPUTE, COMPUTE_MIN, 180)
    lock_end = running.participant(who).lockEnd
    running.evm.move_to(lock_end - 1)
    assert running.participant(who).multiplierBps == 100_000
    running.evm.move_to(lock_end)
    assert running.participant(who).multiplierBps == 10_000
    call(running, who, "extend", 90)
    assert running.participant(who).multiplierBps == 62_000


def test_extend_that_would_shorten_the_lock_is_refused(running: Network) -> None:
    who = running.join("compute", Role.COMPUTE, COMPUTE_MIN, 90)
    for lock_days, error in ((30, "LockNotLonger"), (90, "LockNotLonger"), (91, "BadLock")):
        with refused(error):
            call(running, who, "extend", lock_days)
    with refused("NotWallet"):
        running.staking.send(stranger(), "extend", who.node.address, 180)
    call(running, who, "extend", 180)
    assert running.participant(who).lockEnd == GENESIS_S + 180 * DAY_S


def test_exit_before_the_lock_is_over_is_refused(running: Network) -> None:
    who = running.join("compute", Role.COMPUTE, COMPUTE_MIN, 7)
    running.evm.move_to(GENESIS_S + 7 * DAY_S - 1)
    with refused("Locked"):
        call(running, who, "requestExit")
    running.evm.move_to(GENESIS_S + 7 * DAY_S)
    call(running, who, "requestExit")


def test_exit_of_a_compute_node_weighs_nothing_at_once_and_pays_after_unbonding(running: Network) -> None:
    who = running.join("compute", Role.COMPUTE, COMPUTE_MIN)
    running.top_up(who, TOKEN)
    running.to_round(5)
    call(running, who, "requestExit")
    found = running.participant(who)
    assert (found.stakeWei, found.pendingWei, found.unbondingWei) == (0, 0, COMPUTE_MIN + TOKEN)
    assert found.exitRound == 5 + UNBONDING_ROUNDS
    with refused("StillUnbonding"):
        call(running, who, "requestExit")
    running.to_round(5 + UNBONDING_ROUNDS, -1)
    with refused("StillUnbonding"):
        call(running, who, "withdraw")
    running.to_round(5 + UNBONDING_ROUNDS)
    with refused("NotWallet"):
        running.staking.send(who.node.address, "withdraw", who.node.address)
    call(running, who, "withdraw")
    assert running.token.view("balanceOf", who.wallet.address) == COMPUTE_MIN + TOKEN
    with refused("NotStaked"):
        call(running, who, "withdraw")
    running.stake(who, COMPUTE_MIN, 7)
    assert running.participant(who).multiplierBps == 14_000


def test_withdraw_without_a_requested_exit_is_refused(running: Network) -> None:
    who = running.join("compute", Role.COMPUTE, COMPUTE_MIN)
    running.to_round(1_000)
    with refused("NotStaked"):
        call(running, who, "withdraw")


def test_exit_of_a_validator_serves_its_epoch_and_unbonds_from_its_end(running: Network) -> None:
    leaver = running.validators[0]
    running.evm.move_to(running.participant(leaver).lockEnd)
    epoch = running.staking.view("currentEpoch")
    call(running, leaver, "requestExit")
    found = running.participant(leaver)
    assert found.exitRound == (epoch + 1) * EPOCH_ROUNDS + UNBONDING_ROUNDS
    assert found.stakeWei == VALIDATOR_MIN
    running.to_epoch(epoch + 1)
    assert running.participant(leaver).stakeWei == 0
    assert running.participant(leaver).unbondingWei == VALIDATOR_MIN


def test_stake_of_a_validator_is_pending_until_its_epoch(running: Network) -> None:
    who = running.join("late", Role.VALIDATOR, VALIDATOR_MIN)
    found = running.participant(who)
    assert (found.stakeWei, found.pendingWei, found.activeFromEpoch) == (0, VALIDATOR_MIN, 1)
    assert running.participant(running.validators[0]).activeFromEpoch == 0
    running.to_epoch(1)
    found = running.participant(who)
    assert (found.stakeWei, found.pendingWei) == (VALIDATOR_MIN, 0)


def test_staking_balance_equals_what_it_owes(running: Network) -> None:
    who = running.join("compute", Role.COMPUTE, COMPUTE_MIN)
    running.top_up(who, TOKEN)
    owed = len(running.validators) * VALIDATOR_MIN + COMPUTE_MIN + TOKEN
    assert running.staking.view("totalStakedWei") == owed
    assert running.token.view("balanceOf", running.staking.address) == owed


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"unbonding_rounds": 17}, "BadConfig"),
        ({"challenge_delay_rounds": 13}, "BadConfig"),
        ({"challenge_delay_rounds": 0}, "BadConfig"),
        ({"day_seconds": 0}, "BadConfig"),
        ({"token": "0x" + "0" * 40}, "BadConfig"),
        ({"day_seconds": 86_401}, "BadConfig"),
        ({"round_seconds": 0}, "BadClock"),
        ({"epoch_rounds": 0}, "BadClock"),
        ({"genesis_time": GENESIS_S + 1}, "BadClock"),
    ],
)
def test_staking_with_an_unsound_configuration_is_not_deployed(changes: dict[str, Any], error: str) -> None:
    evm = Evm(GENESIS_S)
    deployer = actor("deployer").address
    parameters = evm.deploy(deployer, "Parameters", evm.next_address(deployer, 1), rule_table(), "{}")
    config = staking_config(**({"token": stranger(), "parameters": parameters.address} | changes))
    with refused(error):
        evm.deploy(deployer, "Staking", config)


def test_staking_with_another_contracts_parameters_is_not_deployed() -> None:
    evm = Evm(GENESIS_S)
    deployer = actor("deployer").address
    parameters = evm.deploy(deployer, "Parameters", stranger("other staking"), rule_table(), "{}")
    with refused("BadConfig"):
        evm.deploy(deployer, "Staking", staking_config(stranger(), parameters.address))
