"""Distributor, guardian: a short pause of publishing and claiming, now and then, and nothing else."""

from __future__ import annotations

import pytest

from emcd.proto.messages import Slash
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    DAY_S,
    TOKEN,
    UNBONDING_ROUNDS,
    Network,
    actor,
    leaf_hash,
    round_root,
    stranger,
)
from tests.support.evm import Reverted, refused

WEEK_S = 7 * DAY_S
EARNER = actor("earner")


def pause(network: Network, duration_s: int = WEEK_S) -> None:
    network.distributor.send(network.guardian.address, "pause", duration_s)


def claim(network: Network) -> None:
    network.distributor.send(EARNER.address, "claim", EARNER.address, TOKEN, [], EARNER.address)


@pytest.fixture
def active(running: Network) -> Network:
    running.publish_at_end(round_root(0, TOKEN, leaf_hash(EARNER.address, TOKEN)))
    running.activate(0)
    return running


def test_pause_stops_publishing_claiming_and_fees_until_it_ends(active: Network) -> None:
    pause(active)
    end_s = active.evm.now_s + WEEK_S
    active.evm.move_to(end_s - 1)
    newest = active.staking.view("currentRound") - 1
    for act in (
        lambda: claim(active),
        lambda: active.publish(round_root(newest, 2 * TOKEN)),
        lambda: active.distributor.send(stranger(), "payFee", 0),
    ):
        with refused("IsPaused"):
            act()
    active.evm.move_to(end_s)
    claim(active)
    active.publish(round_root(newest, 2 * TOKEN))
    active.distributor.send(stranger(), "payFee", 0)


def test_pause_stops_neither_vetoes_nor_exits_nor_slashing(active: Network) -> None:
    leaver = active.join("leaver", Role.COMPUTE, COMPUTE_MIN)
    what = round_root(active.staking.view("currentRound") - 1, 2 * TOKEN)
    active.publish(what)
    pause(active)
    active.veto(what, active.validators[:2])
    epoch = active.staking.view("currentEpoch")
    active.slash(Slash(leaver.node.address, 100, b"\x01" * 32, epoch), active.validators)
    active.staking.send(leaver.wallet.address, "requestExit", leaver.node.address)
    active.to_round(active.staking.view("currentRound") + UNBONDING_ROUNDS)
    assert active.distributor.view("pausedUntil") > active.evm.now_s
    active.staking.send(leaver.wallet.address, "withdraw", leaver.node.address)


def test_pause_by_another_account_is_refused(active: Network) -> None:
    for caller in (stranger(), active.validators[0].wallet.address, actor("deployer").address):
        for name, arguments in (("pause", (60,)), ("unpause", ())):
            with refused("NotGuardian"):
                active.distributor.send(caller, name, *arguments)


@pytest.mark.parametrize("duration_s", [0, WEEK_S + 1, 2**64 - 1])
def test_pause_of_no_or_more_than_seven_days_is_refused(active: Network, duration_s: int) -> None:
    with refused("BadPause"):
        pause(active, duration_s)


def test_pause_again_before_the_cooldown_is_refused_even_after_a_short_one(active: Network) -> None:
    pause(active, 60)
    allowed_s = active.evm.now_s + 5 * WEEK_S
    for at_s in (active.evm.now_s, allowed_s - 1):
        active.evm.move_to(at_s)
        with refused("PauseTooSoon"):
            pause(active, 60)
    active.evm.move_to(allowed_s)
    pause(active)


def test_unpause_ends_the_pause_and_not_the_cooldown(active: Network) -> None:
    pause(active)
    active.distributor.send(active.guardian.address, "unpause")
    claim(active)
    with refused("PauseTooSoon"):
        pause(active)


@pytest.mark.parametrize("name", ["EMCToken", "Parameters", "Staking", "Distributor", "CreditVault"])
def test_contracts_have_no_owner_no_upgrade_and_no_ether(network: Network, name: str) -> None:
    contract = {
        "EMCToken": network.token,
        "Parameters": network.parameters,
        "Staking": network.staking,
        "Distributor": network.distributor,
        "CreditVault": network.vault,
    }[name]
    names = {entry["name"] for entry in contract.abi if entry["type"] == "function"}
    words = ("owner", "upgrade", "admin", "initialize", "implementation", "proxy")
    assert not {found for found in names for word in words if word in found.lower()}
    assert not [entry for entry in contract.abi if entry.get("stateMutability") == "payable"]
    assert not [entry for entry in contract.abi if entry["type"] in ("receive", "fallback")]


def test_guardian_can_do_nothing_else(active: Network) -> None:
    guardian = active.guardian.address
    who = active.join("target", Role.COMPUTE, COMPUTE_MIN)
    for contract, name, arguments in (
        (active.staking, "requestExit", (who.node.address,)),
        (active.staking, "release", (who.node.address,)),
        (active.token, "mint", (guardian, 1)),
        (active.distributor, "claim", (EARNER.address, TOKEN, [], guardian)),
    ):
        with pytest.raises(Reverted):
            contract.send(guardian, name, *arguments)
