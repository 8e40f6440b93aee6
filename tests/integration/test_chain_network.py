"""Deployment and proxies: the same suite on the embedded chain and on anvil."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from emcd.accounting.reward_tree import RewardTree
from emcd.chain import Call, CallReverted, Chain, ChainConfig, JsonRpc, PublicationState
from emcd.chain.abi import load_contract
from emcd.chain.deploy import DeploymentPlan, deploy_network, encode_constructor
from emcd.errors import ConfigError, FatalError, RecoverableError
from emcd.keys import SigningKey
from emcd.proto.messages import Binding, RoundRoot
from emcd.proto.parameters import document_hash, encode_document, make_change, rules_hash, rules_of
from emcd.proto.params import devnet_params
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS, ParticipantRole
from emcd_devchain.genesis import OfflineRpc, prepare_chain
from tests.support.anvil import Anvil, running_anvil
from tests.support.devchain import ETHER
from tests.support.network import GENESIS_S, HOLDER, LiveNetwork, deploy, empty_chain, make_plan

VALIDATORS = ("v1", "v2", "v3", "v4")


@pytest.fixture(params=["devchain", pytest.param("anvil", marks=pytest.mark.anvil)])
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LiveNetwork]:
    """Deployed, with the clock before genesis; blocks are mined at once."""
    if request.param == "devchain":
        with empty_chain(tmp_path / "chain.sqlite") as rpc:
            yield await deploy(rpc)
    else:
        async with running_anvil(timestamp_s=GENESIS_S - 200) as anvil:
            await anvil.fund(HOLDER.address)
            yield await deploy(JsonRpc([anvil.url], anvil.chain_id), chain_id=anvil.chain_id)


async def move_to(network: LiveNetwork, timestamp_s: int) -> None:
    if isinstance(network.rpc, OfflineRpc):
        await network.rpc.mine(timestamp_s)
    else:
        await Anvil.move_to(network.rpc, timestamp_s)


async def test_deploy_contracts_find_each_other(network: LiveNetwork) -> None:
    chain = network.chain
    await chain.require_chain()
    assert await chain.token.fetch_total_supply() == 900_000_000 * ETHER
    assert await chain.token.fetch_minted() == 0
    assert await chain.vault.fetch_micro_per_token() == 1_000_000_000
    assert await chain.distributor.find_active_root() is None
    assert await chain.distributor.find_last_round() is None
    assert network.deployment.deployed_block <= (await chain.head()).number


async def test_network_first_rounds_from_binding_to_claim(network: LiveNetwork) -> None:
    chain = network.chain
    nodes = {name: await network.join(name, ParticipantRole.VALIDATOR) for name in VALIDATORS}
    compute = await network.join("compute", ParticipantRole.COMPUTE)
    await network.send(HOLDER, chain.staking.submit_set_endpoint(compute.address, "http://127.0.0.1:9"))
    head = await chain.head()
    snapshot = await chain.staking.fetch_snapshot(head)
    assert [e.node for e in snapshot] == sorted((e.node for e in snapshot), key=lambda a: int(a, 16))
    entry = next(e for e in snapshot if e.node == compute.address)
    assert (entry.role, entry.lock_days, int.from_bytes(entry.stake_wei, "big")) == (1, 7, 3_000 * ETHER)
    found = await chain.staking.find_participant(compute.address, at=head)
    assert found is not None
    assert (found.endpoint, found.multiplier_bps) == ("http://127.0.0.1:9", 14_000)
    assert await chain.staking.find_participant(HOLDER.address) is None
    powers = await chain.staking.fetch_validator_set(0)
    assert powers.total_wei == 4_000_000 * ETHER
    assert powers.power_of(nodes["v1"].address) == 1_000_000 * ETHER
    await claim_first_round(network, nodes)


async def claim_first_round(network: LiveNetwork, nodes: dict[str, SigningKey]) -> None:
    chain, deployment = network.chain, network.deployment
    await move_to(network, GENESIS_S + deployment.params.round_s)
    amount = await chain.distributor.fetch_scheduled(0) // 2
    tree = RewardTree({HOLDER.address: amount})
    outcome = RoundRoot(0, b"\x07" * 32, tree.root, amount)
    domain = deployment.distributor_domain
    signatures = {key.address: key.sign(domain, outcome) for key in list(nodes.values())[:3]}
    too_few = dict(list(signatures.items())[:2])
    with pytest.raises(CallReverted) as caught:
        await chain.require_can(chain.distributor.submit_publish(outcome, too_few), HOLDER.address)
    assert caught.value.reason.name == "NoQuorum"
    await network.send(HOLDER, chain.distributor.submit_publish(outcome, signatures))
    publication = await chain.distributor.fetch_publication(0)
    assert (publication.state, publication.root) == (PublicationState.PENDING, tree.root)
    assert await chain.distributor.find_last_round() == await chain.distributor.find_tip_round() == 0
    await move_to(network, publication.active_at_s)
    active = await chain.distributor.find_active_root()
    assert active is not None
    assert (active.round, active.root, active.cumulative_wei) == (0, tree.root, amount)
    claim = chain.distributor.submit_claim(HOLDER.address, amount, tree.proof(HOLDER.address), HOLDER.address)
    before = await chain.token.fetch_balance(HOLDER.address)
    receipt = await network.send(HOLDER, claim)
    assert any(log.topics[0] == load_contract("Distributor").event("Claimed").topic for log in receipt.logs)
    assert await chain.token.fetch_balance(HOLDER.address) - before == amount
    assert await chain.distributor.fetch_claimed(HOLDER.address) == amount == await chain.token.fetch_minted()
    with pytest.raises(CallReverted) as caught:
        await network.send(HOLDER, claim)
    assert caught.value.reason.name == "NothingToClaim"


async def test_network_credits_bought_in_the_vault_are_listed(network: LiveNetwork) -> None:
    chain = network.chain
    account = b"\x05" * 32
    await network.send(HOLDER, chain.token.submit_approve(chain.vault.address, 10 * ETHER))
    for amount in (ETHER, 2 * ETHER):
        await network.send(HOLDER, chain.vault.submit_buy(account, amount))
    deposits = await chain.vault.fetch_deposits(at=await chain.head())
    assert [(d.index, d.account, d.payer, d.amount_wei) for d in deposits] == [
        (0, account, HOLDER.address, ETHER),
        (1, account, HOLDER.address, 2 * ETHER),
    ]
    assert deposits[1].credits_micro == 2 * 1_000_000_000 == await chain.vault.fetch_credits_for(2 * ETHER)
    assert [d.index for d in await chain.vault.fetch_deposits(1, at=await chain.head())] == [1]


async def test_network_parameters_are_the_deployments_and_change_by_quorum(network: LiveNetwork) -> None:
    chain, deployment = network.chain, network.deployment
    nodes = [await network.join(name, ParticipantRole.VALIDATOR) for name in VALIDATORS]
    text = encode_document(deployment.params, deployment.prices)
    first = await chain.parameters.fetch_version(1)
    assert (first.document_hash, first.from_epoch) == (document_hash(text), 0)
    assert first.rules_hash == rules_hash(rules_of(deployment.params))
    assert await chain.parameters.fetch_rules_at(0) == rules_of(deployment.params)
    await move_to(network, GENESIS_S + 5)

    changed = msgspec.structs.replace(deployment.params, version=2, validator_set_size=4)
    text = encode_document(changed, deployment.prices)
    change = make_change(2, 2, text)
    signatures = {node.address: node.sign(deployment.parameters_domain, change) for node in nodes[:3]}
    few = {node.address: signatures[node.address] for node in nodes[:2]}
    with pytest.raises(CallReverted, match="NoQuorum"):
        await network.send(HOLDER, chain.parameters.submit_change(change, rules_of(changed), text, few))
    receipt = await network.send(
        HOLDER, chain.parameters.submit_change(change, rules_of(changed), text, signatures)
    )
    second = await chain.parameters.fetch_version_at(2)
    assert (second.number, second.block) == (2, receipt.block)
    assert (await chain.parameters.fetch_version_at(1)).number == 1
    assert await chain.parameters.fetch_rules_at(2) == rules_of(changed)
    assert await chain.parameters.fetch_version_count() == 2


async def test_network_key_is_rotated_by_its_wallet(network: LiveNetwork) -> None:
    chain = network.chain
    node, following = await network.join("v1", ParticipantRole.VALIDATOR), make_key("next key")
    await move_to(network, GENESIS_S + 5)
    nonce = await chain.staking.fetch_nonce(node.address) + 1
    binding = Binding(following.address, HOLDER.address, int(ParticipantRole.VALIDATOR), nonce, 2**40)
    signature = following.sign(network.deployment.staking_domain, binding)
    await network.send(HOLDER, chain.staking.submit_rotate_key(node.address, binding, signature))
    found = await chain.staking.find_participant(following.address)
    assert found is not None
    assert (found.node, found.account, found.nonce) == (node.address, node.address, nonce)
    assert (found.next_node, found.next_from_epoch) == (following.address, 2)
    power = [(await chain.staking.fetch_validator_set(epoch)).power_of(following.address) for epoch in (1, 2)]
    assert power == [0, 1_000_000 * ETHER]
    await network.send(HOLDER, chain.staking.submit_cancel_rotation(node.address))
    kept = await chain.staking.find_participant(node.address)
    assert kept is not None
    assert (kept.next_node, kept.next_from_epoch) == (ZERO_ADDRESS, 0)


async def test_views_are_pinned_to_their_block(network: LiveNetwork) -> None:
    chain = network.chain
    before = await chain.head()
    to = make_key("someone").address
    await network.send(HOLDER, chain.token.submit_transfer(to, 5))
    after = await chain.head()
    assert await chain.token.fetch_balance(to, at=before) == 0
    assert await chain.token.fetch_balance(to, at=after) == 5
    stranger = dataclasses.replace(after, hash=b"\x01" * 32)
    with pytest.raises(RecoverableError) as caught:
        await chain.token.fetch_balance(to, at=stranger)
    assert caught.value.code in ("EMC-1505", "EMC-1502")


async def test_block_at_waits_until_a_later_block_is_there(network: LiveNetwork) -> None:
    chain = network.chain
    before = await chain.head()
    await move_to(network, before.timestamp_s + 5)
    head = await chain.head()
    with pytest.raises(RecoverableError) as caught:
        await chain.block_at(head.timestamp_s)
    assert caught.value.code == "EMC-1506"
    await move_to(network, head.timestamp_s + 10)
    assert await chain.block_at(head.timestamp_s) == head
    assert await chain.block_at(head.timestamp_s + 9) == head
    assert await chain.wait_block_at(head.timestamp_s - 1) == before
    with pytest.raises(RecoverableError) as caught:
        await chain.wait_block_at(5)
    assert caught.value.code == "EMC-1505"


async def test_send_call_creates_and_reports_reverts(network: LiveNetwork) -> None:
    with pytest.raises(CallReverted) as caught:
        await network.send(HOLDER, network.chain.staking.submit_withdraw(make_key("nobody").address))
    assert caught.value.reason.name in ("NotBound", "NotWallet", "NotStaked")


async def test_require_chain_without_contracts_is_fatal(tmp_path: Path) -> None:
    with empty_chain(tmp_path / "a.sqlite") as first:
        deployment = (await deploy(first)).deployment
    with empty_chain(tmp_path / "b.sqlite") as rpc:
        chain = Chain(ChainConfig(("http://127.0.0.1:1",), confirmations=1), deployment, rpc)
        with pytest.raises(FatalError) as caught:
            await chain.require_chain()
        assert caught.value.code == "EMC-1515"
        with pytest.raises(RecoverableError) as away:
            await chain.token.fetch_total_supply()
        assert away.value.code == "EMC-1514"


async def test_deploy_on_another_chain_is_fatal(tmp_path: Path) -> None:
    with empty_chain(tmp_path / "a.sqlite") as rpc:
        with pytest.raises(FatalError) as caught:
            await deploy_network(rpc, HOLDER, make_plan(chain_id=1))
        assert caught.value.code == "EMC-1501"


async def test_deploy_by_an_account_that_sends_meanwhile_is_found_out(tmp_path: Path) -> None:
    """Between prediction and creation somebody uses the deployer's nonce."""
    with empty_chain(tmp_path / "a.sqlite") as rpc:
        seen = 0

        class Meddling:
            async def call(self, method: str, *params: object) -> object:
                nonlocal seen
                answer = await rpc.call(method, *params)
                if method == "eth_getTransactionCount":
                    seen += 1
                    return hex(int(answer, 16) + (1 if seen == 1 else 0))
                return answer

        with pytest.raises(FatalError) as caught:
            await deploy_network(Meddling(), HOLDER, make_plan(), poll_s=0.01)
        assert caught.value.code == "EMC-1518"


@pytest.mark.parametrize(
    "change",
    [
        {"holders": {HOLDER.address: 1}},
        {"treasury_bps": 5},
        {"treasury": HOLDER.address},
        {"params": msgspec.structs.replace(devnet_params(GENESIS_S), validator_set_size=12)},
    ],
)
def test_plan_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    plan: DeploymentPlan = dataclasses.replace(make_plan(), **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        plan.require_sound()
    assert caught.value.code == "EMC-1517"


def test_encode_constructor_is_what_our_own_encoder_gives() -> None:
    from emcd.chain.abi import encode_params

    contract = load_contract("EMCToken")
    args = (HOLDER.address, [HOLDER.address], [900_000_000 * ETHER])
    assert encode_constructor("EMCToken", args) == contract.bytecode + encode_params(
        contract.constructor, args, ""
    )


def test_prepare_chain_never_overwrites(tmp_path: Path) -> None:
    file = tmp_path / "chain.sqlite"
    file.write_bytes(b"")
    with (
        pytest.raises(ConfigError) as caught,
        prepare_chain(file, chain_id=1, timestamp_s=1, balances_wei={}),
    ):
        pass
    assert caught.value.code == "EMC-2205"


def test_devnet_params_make_a_plan_the_contracts_accept() -> None:
    make_plan(devnet_params(GENESIS_S)).require_sound()
    assert Call(None, b"").params() == {"input": "0x", "value": "0x0"}
