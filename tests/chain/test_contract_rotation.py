"""Staking, key rotation: the cold wallet replaces the hot key, with a delay, and nothing is shaken off by it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emcd.proto.eip712 import Domain
from emcd.proto.hashing import keccak
from emcd.proto.messages import Binding, Slash
from emcd.proto.signing import sign, sign_digest
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    EPOCH_ROUNDS,
    ROUTER_MIN,
    TOKEN,
    UNBONDING_ROUNDS,
    VALIDATOR_MIN,
    Actor,
    Member,
    Network,
    actor,
    fields,
    round_root,
    stranger,
)
from tests.support.evm import CHAIN_ID, refused

NEXT = actor("next key")
DIGEST = keccak(b"something signed")


@pytest.fixture
def who(running: Network) -> Member:
    """A validator, in round 3 of epoch 1."""
    running.to_round(EPOCH_ROUNDS + 3)
    return running.validators[0]


@pytest.fixture
def router(running: Network, who: Member) -> Member:
    return running.join("router", Role.ROUTER, ROUTER_MIN)


def rotated(who: Member, key: Actor = NEXT) -> Member:
    return replace(who, node=key)


def test_rotation_is_in_force_from_the_epoch_after_the_next(running: Network, who: Member) -> None:
    outcome = running.rotate(who, NEXT)
    assert outcome.event("RotationRequested") == {
        "node": who.node.address, "nextNode": NEXT.address, "fromEpoch": 3, "nonce": 2,
    }  # fmt: skip
    for epoch, key in ((1, who.node), (2, who.node), (3, NEXT), (9, NEXT)):
        running.to_epoch(max(epoch, 2))
        assert running.validator_set(epoch)[key.address] == VALIDATOR_MIN
        assert len(running.validator_set(epoch)) == 4
    found = running.participant(who)
    assert (found.node, found.account, found.nonce) == (NEXT.address, who.node.address, 2)
    assert (found.nextNode, found.nextFromEpoch) == ("0x" + "0" * 40, 0)


def test_rotation_that_waits_is_shown(running: Network, router: Member) -> None:
    running.rotate(router, NEXT)
    found = running.participant(router)
    assert (found.node, found.nextNode, found.nextFromEpoch) == (router.node.address, NEXT.address, 3)
    running.to_epoch(3)
    listed = {entry.node: entry for entry in running.staking.view("participants", 0, 100)}
    assert listed[NEXT.address].account == router.node.address
    assert router.node.address not in listed


def test_account_is_found_by_every_key_it_had(running: Network, who: Member) -> None:
    third = actor("third key")
    running.rotate(who, NEXT)
    running.to_epoch(3)
    running.rotate(rotated(who), third, nonce=3)
    running.to_epoch(5)
    found = [running.participant(rotated(who, key)) for key in (who.node, NEXT, third)]
    assert found[0] == found[1] == found[2]
    assert (found[0].node, found[0].stakeWei) == (third.address, VALIDATOR_MIN)
    assert third.address in running.staking.view("candidates")
    assert running.staking.view("participantCount") == len(running.validators)


@pytest.mark.parametrize("cancelled", [False, True])
def test_second_rotation_keeps_the_second_key_until_it_is_in_force(
    running: Network, who: Member, cancelled: bool
) -> None:
    third = actor("third key")
    running.rotate(who, NEXT)
    running.to_epoch(3)
    running.rotate(rotated(who), third, nonce=3)
    if cancelled:
        running.staking.send(who.wallet.address, "cancelRotation", who.node.address)
    assert running.participant(who).node == NEXT.address
    running.to_epoch(5)
    last = NEXT if cancelled else third
    assert running.participant(who).node == last.address
    keys = [
        set(running.validator_set(epoch)) & {who.node.address, NEXT.address, third.address}
        for epoch in range(6)
    ]
    first, second = {who.node.address}, {NEXT.address}
    assert keys == [first, first, first, second, second, {last.address}]


def test_signatures_count_by_the_key_of_their_epoch(running: Network, who: Member) -> None:
    running.rotate(who, NEXT)
    for epoch, right, wrong in ((2, who.node, NEXT), (3, NEXT, who.node)):
        running.to_epoch(epoch)
        found = running.staking.view("signedPower", epoch, DIGEST, sign_digest(DIGEST, right.key))
        assert found.signed == VALIDATOR_MIN
        with refused("NotInSet"):
            running.staking.view("signedPower", epoch, DIGEST, sign_digest(DIGEST, wrong.key))


def test_rounds_on_both_sides_of_a_rotation_are_published_by_their_keys(
    running: Network, who: Member
) -> None:
    running.rotate(who, NEXT)
    after = (rotated(who), *running.validators[1:])
    running.to_round(3 * EPOCH_ROUNDS + 1)
    running.publish(round_root(3 * EPOCH_ROUNDS - 1, TOKEN), running.validators)
    with refused("NotInSet"):
        running.publish(round_root(3 * EPOCH_ROUNDS, 2 * TOKEN), running.validators)
    running.publish(round_root(3 * EPOCH_ROUNDS, 2 * TOKEN), after)


def test_set_that_waits_for_a_rotation_keeps_its_other_changes_apart(running: Network, who: Member) -> None:
    running.top_up(running.validators[1], VALIDATOR_MIN)
    running.rotate(who, NEXT)
    running.to_epoch(2)
    running.top_up(running.validators[2], VALIDATOR_MIN)
    running.to_epoch(9)
    running.staking.send(stranger(), "freezeSet", 9)
    second, third = (running.validators[index].node.address for index in (1, 2))
    powers = [
        (found.get(second), found.get(third), NEXT.address in found)
        for found in (running.validator_set(epoch) for epoch in (1, 2, 3))
    ]
    one, two = VALIDATOR_MIN, 2 * VALIDATOR_MIN
    assert powers == [(one, one, False), (two, one, False), (two, two, True)]


def test_rotation_taken_back_leaves_the_key_and_uses_the_other_up(running: Network, who: Member) -> None:
    running.rotate(who, NEXT)
    outcome = running.staking.send(who.wallet.address, "cancelRotation", who.node.address)
    assert outcome.event("RotationCancelled") == {"node": who.node.address, "nextNode": NEXT.address}
    running.to_epoch(4)
    assert who.node.address in running.validator_set(3)
    assert NEXT.address not in running.validator_set(4)
    with refused("KeyUsed"):
        running.rotate(who, NEXT, nonce=3)
    with refused("NoRotation"):
        running.staking.send(who.wallet.address, "cancelRotation", who.node.address)
    running.rotate(who, actor("third key"), nonce=3)
    running.to_epoch(6)
    assert actor("third key").address in running.validator_set(6)


def test_cancel_rotation_by_another_or_when_in_force_is_refused(running: Network, who: Member) -> None:
    running.rotate(who, NEXT)
    for caller in (stranger(), who.node.address, NEXT.address, running.guardian.address):
        with refused("NotWallet"):
            running.staking.send(caller, "cancelRotation", who.node.address)
    running.to_epoch(3)
    with refused("NoRotation"):
        running.staking.send(who.wallet.address, "cancelRotation", who.node.address)


def test_rotation_sent_by_another_than_the_wallet_is_refused(running: Network, who: Member) -> None:
    record = Binding(NEXT.address, who.wallet.address, int(who.role), 2, running.evm.now_s)
    signature = sign(running.staking_domain, record, NEXT.key)
    for caller in (stranger(), who.node.address, NEXT.address, running.validators[1].wallet.address):
        with refused("NotWallet"):
            running.staking.send(caller, "rotateKey", who.node.address, fields(record), signature)


def test_rotation_signed_by_another_key_chain_or_contract_is_refused(running: Network, who: Member) -> None:
    record = Binding(NEXT.address, who.wallet.address, int(who.role), 2, running.evm.now_s)
    other_chain = Domain(CHAIN_ID + 1, running.staking.address)
    for domain, key in (
        (running.staking_domain, who.node),
        (running.staking_domain, who.wallet),
        (other_chain, NEXT),
        (running.distributor_domain, NEXT),
    ):
        signature = sign(domain, record, key.key)
        with refused("WrongSigner"):
            running.staking.send(who.wallet.address, "rotateKey", who.node.address, fields(record), signature)
    with refused("ECDSAInvalidSignatureLength"):
        running.staking.send(who.wallet.address, "rotateKey", who.node.address, fields(record), b"")


def test_rotation_with_another_wallet_role_nonce_or_too_late_is_refused(
    running: Network, who: Member
) -> None:
    for changes, error in (
        ({"wallet": stranger()}, "NotWallet"),
        ({"role": int(Role.ROUTER)}, "BadRole"),
        ({"nonce": 1}, "NonceUsed"),
        ({"nonce": 2**64}, "NonceUsed"),
        ({"deadline": running.evm.now_s - 1}, "Expired"),
    ):
        with refused(error):
            running.rotate(who, NEXT, **changes)
    with refused("NodeIsWallet"):
        running.rotate(who, who.wallet)


def test_rotation_to_a_key_that_was_ever_used_is_refused(
    running: Network, who: Member, router: Member
) -> None:
    released = Member(actor("gone"), actor("gone wallet"), Role.HUB)
    running.bind(released)
    running.staking.send(released.wallet.address, "release", released.node.address)
    running.rotate(router, NEXT)
    for key in (who.node, running.validators[1].node, router.node, NEXT, released.node):
        with refused("KeyUsed"):
            running.rotate(who, key)


def test_rotation_of_a_compute_node_is_refused(running: Network, who: Member) -> None:
    compute = running.join("compute", Role.COMPUTE, COMPUTE_MIN)
    with refused("BadRole"):
        running.rotate(compute, NEXT)


def test_rotation_while_another_waits_or_the_stake_unbonds_is_refused(running: Network, who: Member) -> None:
    running.rotate(who, NEXT)
    with refused("RotationPending"):
        running.rotate(who, actor("third key"), nonce=3)
    leaver = running.validators[1]
    running.evm.move_to(running.participant(leaver).lockEnd)
    running.staking.send(leaver.wallet.address, "requestExit", leaver.node.address)
    with refused("StillUnbonding"):
        running.rotate(leaver, actor("third key"))


def test_bind_by_a_key_that_waits_is_over_or_was_replaced_is_refused(
    running: Network, router: Member
) -> None:
    running.rotate(router, NEXT)
    with refused("RotationPending"):
        running.bind(router, nonce=3)
    with refused("KeyNotInForce"):
        running.bind(rotated(router), nonce=3)
    running.to_epoch(3)
    with refused("KeyNotInForce"):
        running.bind(router, nonce=3)
    running.bind(rotated(router), nonce=3)
    assert running.participant(router).nonce == 3


def test_binding_used_for_a_rotation_is_not_used_again(running: Network, router: Member) -> None:
    running.rotate(router, NEXT)
    running.to_epoch(3)
    with refused("NonceUsed"):
        running.bind(rotated(router), nonce=2)


def test_wallet_moves_a_rotated_node_by_the_key_in_force(running: Network, router: Member) -> None:
    running.rotate(router, NEXT)
    running.to_epoch(3)
    heir = actor("heir")
    running.staking.send(router.wallet.address, "approveWallet", router.node.address, heir.address)
    running.bind(Member(NEXT, heir, Role.ROUTER), nonce=3)
    assert running.participant(router).wallet == heir.address
    with refused("NotWallet"):
        running.rotate(router, actor("third key"), nonce=4)


def test_endpoint_is_set_by_the_key_in_force_or_the_wallet(running: Network, router: Member) -> None:
    running.rotate(router, NEXT)
    with refused("NotWallet"):
        running.staking.send(NEXT.address, "setEndpoint", router.node.address, "https://x")
    running.to_epoch(3)
    with refused("NotWallet"):
        running.staking.send(router.node.address, "setEndpoint", router.node.address, "https://x")
    for caller in (NEXT.address, router.wallet.address):
        outcome = running.staking.send(caller, "setEndpoint", router.node.address, "https://x")
        assert outcome.event("EndpointSet")["node"] == NEXT.address


def test_slash_by_a_key_of_before_reaches_the_stake(running: Network, who: Member) -> None:
    running.rotate(who, NEXT)
    running.to_epoch(3)
    signers = (rotated(who), *running.validators[1:])
    running.slash(Slash(who.node.address, 5_000, b"\x01" * 32, 3), signers)
    assert running.participant(rotated(who)).stakeWei == VALIDATOR_MIN // 2
    with refused("EvidenceUsed"):
        running.slash(Slash(NEXT.address, 5_000, b"\x01" * 32, 3), signers)
    assert NEXT.address not in running.staking.view("candidates")


def test_stake_is_moved_by_the_wallet_under_any_key(running: Network, who: Member) -> None:
    running.rotate(who, NEXT)
    running.to_epoch(3)
    for key in (who.node, NEXT):
        running.top_up(rotated(who, key), TOKEN)
    running.evm.move_to(running.participant(who).lockEnd)
    running.staking.send(who.wallet.address, "requestExit", NEXT.address)
    running.to_round(running.staking.view("currentRound") + UNBONDING_ROUNDS + EPOCH_ROUNDS)
    running.staking.send(who.wallet.address, "withdraw", who.node.address)
    assert running.token.view("balanceOf", who.wallet.address) == VALIDATOR_MIN + 2 * TOKEN


def test_release_keeps_keys_and_nonce_for_ever(running: Network) -> None:
    hub = Member(actor("hub"), actor("hub wallet"), Role.HUB)
    running.bind(hub)
    running.rotate(hub, NEXT)
    with refused("RotationPending"):
        running.staking.send(hub.wallet.address, "release", hub.node.address)
    running.to_epoch(2)
    running.staking.send(hub.wallet.address, "release", hub.node.address)
    for key, nonce, error in ((hub.node, 3, "KeyNotInForce"), (NEXT, 2, "NonceUsed")):
        with refused(error):
            running.bind(Member(key, actor("new wallet"), Role.HUB), nonce=nonce)
    running.bind(Member(NEXT, actor("new wallet"), Role.COMPUTE), nonce=3)
    found = running.participant(hub)
    assert (found.node, found.wallet, found.account) == (
        NEXT.address, actor("new wallet").address, hub.node.address,
    )  # fmt: skip


def test_rotation_before_genesis_is_in_force_from_epoch_1(network: Network) -> None:
    who = network.validators[0]
    network.rotate(who, NEXT)
    network.to_epoch(0)
    assert who.node.address in network.validator_set(0)
    network.to_epoch(1)
    assert who.node.address in network.validator_set(0)
    assert NEXT.address in network.validator_set(1)
