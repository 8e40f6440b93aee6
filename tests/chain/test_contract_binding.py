"""Staking, identity: who may bind which node to which wallet."""

from __future__ import annotations

import pytest

from emcd.proto.eip712 import Domain
from emcd.proto.messages import Binding
from emcd.proto.signing import sign
from emcd.types import ZERO_ADDRESS, Address
from emcd.types import ParticipantRole as Role
from tests.support.contract_network import (
    COMPUTE_MIN,
    NEVER_S,
    UNBONDING_ROUNDS,
    Member,
    Network,
    actor,
    fields,
    member,
    stranger,
)
from tests.support.evm import CHAIN_ID, refused


def binding_of(who: Member, nonce: int = 1, deadline_s: int = NEVER_S) -> Binding:
    return Binding(who.node.address, who.wallet.address, int(who.role), nonce, deadline_s)


def send_bind(network: Network, sender: Address, record: Binding, signature: bytes) -> None:
    network.staking.send(sender, "bind", fields(record), signature)


@pytest.fixture
def who() -> Member:
    return member("new", Role.COMPUTE)


@pytest.fixture
def staked(running: Network) -> Member:
    return running.join("staked", Role.COMPUTE, COMPUTE_MIN)


def moved(who: Member, wallet: str = "other wallet", role: Role | None = None) -> Member:
    return Member(who.node, actor(wallet), role or who.role)


def test_bind_with_both_consents_registers_the_participant(running: Network, who: Member) -> None:
    before = running.staking.view("participantCount")
    outcome = running.bind(who)
    assert outcome.event("Bound") == {
        "node": who.node.address, "wallet": who.wallet.address, "role": 1, "nonce": 1,
    }  # fmt: skip
    found = running.participant(who)
    assert (found.wallet, found.role, found.nonce, found.stakeWei) == (who.wallet.address, 1, 1, 0)
    assert running.staking.view("participantCount") == before + 1


def test_bind_sent_by_another_account_is_refused(running: Network, who: Member) -> None:
    record = binding_of(who)
    signature = sign(running.staking_domain, record, who.node.key)
    for sender in (stranger(), who.node.address):
        with refused("NotWallet"):
            send_bind(running, sender, record, signature)


def test_bind_signed_by_another_key_is_refused(running: Network, who: Member) -> None:
    record = binding_of(who)
    for key in (who.wallet.key, actor("thief").key):
        with refused("WrongSigner"):
            send_bind(running, who.wallet.address, record, sign(running.staking_domain, record, key))


@pytest.mark.parametrize(
    "changes",
    [{"role": 3}, {"nonce": 2}, {"deadline": NEVER_S - 1}, {"node": actor("other node").address}],
    ids=lambda changes: next(iter(changes)),
)
def test_bind_with_a_field_changed_after_signing_is_refused(
    running: Network, who: Member, changes: dict[str, int | str]
) -> None:
    record = binding_of(who)
    signature = sign(running.staking_domain, record, who.node.key)
    changed = Binding(**{name: changes.get(name, getattr(record, name)) for name in record.__struct_fields__})
    with refused("WrongSigner"):
        send_bind(running, who.wallet.address, changed, signature)


def test_bind_replayed_by_another_wallet_is_refused(running: Network, who: Member) -> None:
    record = binding_of(who)
    signature = sign(running.staking_domain, record, who.node.key)
    thief = stranger("thief")
    stolen = Binding(record.node, thief, record.role, record.nonce, record.deadline)
    with refused("WrongSigner"):
        send_bind(running, thief, stolen, signature)


def test_bind_signed_for_another_chain_or_contract_is_refused(running: Network, who: Member) -> None:
    record = binding_of(who)
    for domain in (
        Domain(CHAIN_ID + 1, running.staking.address),
        Domain(CHAIN_ID, running.distributor.address),
    ):
        with refused("WrongSigner"):
            send_bind(running, who.wallet.address, record, sign(domain, record, who.node.key))


def test_bind_with_a_malformed_signature_is_refused(running: Network, who: Member) -> None:
    record = binding_of(who)
    good = sign(running.staking_domain, record, who.node.key)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    high_s = (order - int.from_bytes(good[32:64], "big")).to_bytes(32, "big")
    malleated = good[:32] + high_s + bytes([55 - good[64]])
    for signature, error in (
        (b"", "ECDSAInvalidSignatureLength"),
        (good[:64], "ECDSAInvalidSignatureLength"),
        (good + b"\0", "ECDSAInvalidSignatureLength"),
        (bytes(65), "ECDSAInvalidSignature"),
        (good[:64] + bytes([good[64] - 27]), "ECDSAInvalidSignature"),
        (malleated, "ECDSAInvalidSignatureS"),
    ):
        with refused(error):
            send_bind(running, who.wallet.address, record, signature)


def test_bind_after_its_deadline_is_refused_and_at_it_accepted(running: Network, who: Member) -> None:
    record = binding_of(who, deadline_s=running.evm.now_s)
    signature = sign(running.staking_domain, record, who.node.key)
    late = running.fork()
    late.evm.move_to(late.evm.now_s + 1)
    with refused("Expired"):
        send_bind(late, who.wallet.address, record, signature)
    running = running.fork()
    send_bind(running, who.wallet.address, record, signature)


@pytest.mark.parametrize("role", [0, 5, 255])
def test_bind_with_an_unknown_role_is_refused(running: Network, who: Member, role: int) -> None:
    with refused("BadRole"):
        running.bind(who, role=role)


def test_bind_of_a_node_to_its_own_address_is_refused(running: Network, who: Member) -> None:
    same = Member(who.node, who.node, who.role)
    with refused("NodeIsWallet"):
        running.bind(same)


@pytest.mark.parametrize("nonce", [0, 1, 5, 2**64, 2**256 - 1])
def test_bind_with_a_nonce_that_does_not_grow_or_is_absurd_is_refused(
    running: Network, who: Member, nonce: int
) -> None:
    running.bind(who, nonce=5)
    with refused("NonceUsed"):
        running.bind(who, nonce=nonce)


def test_bind_replayed_after_a_release_is_refused(running: Network, who: Member) -> None:
    record = binding_of(who)
    signature = sign(running.staking_domain, record, who.node.key)
    send_bind(running, who.wallet.address, record, signature)
    running.staking.send(who.wallet.address, "release", who.node.address)
    with refused("NonceUsed"):
        send_bind(running, who.wallet.address, record, signature)
    running.bind(who, nonce=2)
    assert running.participant(who).nonce == 2


def test_bind_of_a_node_without_stake_to_a_new_wallet_needs_only_node_and_wallet(
    running: Network, who: Member
) -> None:
    running.bind(who)
    running.bind(moved(who, role=Role.ROUTER), nonce=2)
    found = running.participant(who)
    assert (found.wallet, found.role) == (actor("other wallet").address, Role.ROUTER)


def test_bind_of_a_staked_node_with_a_stolen_node_key_is_refused(running: Network, staked: Member) -> None:
    with refused("StakeBound"):
        running.bind(moved(staked), nonce=2)


def test_bind_of_a_staked_node_to_the_wallet_its_owner_approved_moves_the_stake(
    running: Network, staked: Member
) -> None:
    heir = moved(staked)
    running.staking.send(staked.wallet.address, "approveWallet", staked.node.address, heir.wallet.address)
    with refused("StakeBound"):
        running.bind(moved(staked, "third wallet"), nonce=2)
    running.bind(heir, nonce=2)
    assert running.participant(staked).wallet == heir.wallet.address
    with refused("NotWallet"):
        running.staking.send(staked.wallet.address, "requestExit", staked.node.address)
    with refused("StakeBound"):  # the approval is spent
        running.bind(staked, nonce=3)
    running.staking.send(heir.wallet.address, "requestExit", staked.node.address)


def test_approve_wallet_by_another_account_is_refused_and_can_be_revoked(
    running: Network, staked: Member
) -> None:
    heir = moved(staked)
    for caller in (heir.wallet.address, staked.node.address):
        with refused("NotWallet"):
            running.staking.send(caller, "approveWallet", staked.node.address, heir.wallet.address)
    for approved in (heir.wallet.address, ZERO_ADDRESS):
        running.staking.send(staked.wallet.address, "approveWallet", staked.node.address, approved)
    with refused("StakeBound"):
        running.bind(heir, nonce=2)


def test_bind_of_a_staked_node_to_another_role_is_refused(running: Network, staked: Member) -> None:
    with refused("BadRole"):
        running.bind(Member(staked.node, staked.wallet, Role.VALIDATOR), nonce=2)


def test_bind_and_release_while_unbonding_are_refused(running: Network, staked: Member) -> None:
    running.staking.send(staked.wallet.address, "requestExit", staked.node.address)
    with refused("StillUnbonding"):
        running.bind(staked, nonce=2)
    with refused("StillUnbonding"):
        running.staking.send(staked.wallet.address, "release", staked.node.address)
    running.to_round(UNBONDING_ROUNDS)
    running.staking.send(staked.wallet.address, "withdraw", staked.node.address)
    running.bind(moved(staked), nonce=2)


def test_release_of_a_staked_node_or_by_another_account_is_refused(running: Network, staked: Member) -> None:
    with refused("StakeBound"):
        running.staking.send(staked.wallet.address, "release", staked.node.address)
    for caller in (stranger(), staked.node.address):
        with refused("NotWallet"):
            running.staking.send(caller, "release", staked.node.address)
    with refused("NotBound"):
        running.staking.send(staked.wallet.address, "release", stranger())


def test_release_takes_the_node_off_the_registry_and_keeps_the_others(running: Network) -> None:
    crowd = [member(f"crowd {index}", Role.COMPUTE) for index in range(5)]
    for who in crowd:
        running.bind(who)
    gone = crowd.pop(1)
    running.staking.send(gone.wallet.address, "release", gone.node.address)
    running.staking.send(crowd[-1].wallet.address, "release", crowd[-1].node.address)
    crowd.pop()
    listed = running.staking.view("participants", 0, 100)
    expected = {who.node.address for who in (*running.validators, *crowd)}
    assert {found.node for found in listed} == expected
    assert len(listed) == running.staking.view("participantCount") == len(expected)
    assert running.participant(gone).wallet == ZERO_ADDRESS
    assert running.participant(gone).endpoint == ""


def test_participants_pages_cover_the_registry_once(running: Network) -> None:
    for index in range(3):
        running.bind(member(f"paged {index}", Role.COMPUTE))
    pages = [running.staking.view("participants", offset, 3) for offset in (0, 3, 6, 9)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert len({found.node for page in pages for found in page}) == 7


def test_set_endpoint_by_wallet_or_node_is_published(running: Network, who: Member) -> None:
    running.bind(who)
    for caller, endpoint in (
        (who.wallet.address, "https://a.example:8421"),
        (who.node.address, "https://b.example"),
    ):
        outcome = running.staking.send(caller, "setEndpoint", who.node.address, endpoint)
        assert outcome.event("EndpointSet")["endpoint"] == endpoint
        assert running.participant(who).endpoint == endpoint


def test_set_endpoint_by_others_too_long_or_unbound_is_refused(running: Network, who: Member) -> None:
    with refused("NotBound"):
        running.staking.send(who.node.address, "setEndpoint", who.node.address, "https://a.example")
    running.bind(who)
    with refused("NotWallet"):
        running.staking.send(stranger(), "setEndpoint", who.node.address, "https://evil.example")
    with refused("EndpointTooLong"):
        running.staking.send(who.wallet.address, "setEndpoint", who.node.address, "x" * 201)
    running.staking.send(who.wallet.address, "setEndpoint", who.node.address, "x" * 200)
