"""Deployment of a network's five contracts, on any chain: over an RPC URL, or in process.

The contracts know each other's addresses before they exist: they follow from the deployer's nonces,
so that account must send nothing else meanwhile. web3 is imported when a deployment runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from emcd.accounting.emission import period_table
from emcd.chain.call import Call, TxReceipt
from emcd.chain.contracts import CONTRACT_NAMES, load_artifact
from emcd.chain.proxies.contract import Contract
from emcd.chain.proxies.parameters import encode_rules
from emcd.chain.quantity import ask_quantity
from emcd.chain.rpc import Rpc
from emcd.chain.sender import send_call
from emcd.chain.tx import TxSigner
from emcd.errors import ConfigError, FatalError
from emcd.money import MICRO_PER_CREDIT, WEI_PER_TOKEN
from emcd.proto.address import address_bytes, address_from_bytes
from emcd.proto.hashing import keccak
from emcd.proto.network import Deployment
from emcd.proto.parameter_rule import list_faults
from emcd.proto.parameters import encode_document, rules_of
from emcd.proto.params import NetworkParams, PriceTable
from emcd.types import ZERO_ADDRESS, Address

GENESIS_WEI = 900_000_000 * WEI_PER_TOKEN


@dataclass(frozen=True, kw_only=True)
class DeploymentPlan:
    """What a network begins with. `holders` own exactly 900,000,000 token together."""

    chain_id: int
    holders: Mapping[Address, int]
    guardian: Address
    params: NetworkParams
    prices: PriceTable = field(default_factory=PriceTable)
    treasury: Address | None = None
    treasury_bps: int = 0
    micro_per_token: int = 1_000 * MICRO_PER_CREDIT

    def require_sound(self) -> None:
        """Raises: ConfigError EMC-1517."""
        total = sum(self.holders.values())
        if total != GENESIS_WEI:
            raise ConfigError("EMC-1517", f"the holders own {total} wei together, not {GENESIS_WEI}")
        if (self.treasury is None) != (self.treasury_bps == 0):
            raise ConfigError("EMC-1517", "treasury and treasury_bps belong together")
        if self.params.unbonding_rounds < self.params.challenge_delay_rounds + self.params.void_after_rounds:
            raise ConfigError("EMC-1517", "unbonding must outlast the challenge delay and the void window")
        if faults := list_faults(self.params, self.prices):
            raise ConfigError("EMC-1517", "; ".join(faults))


async def deploy_network(
    rpc: Rpc, deployer: TxSigner, plan: DeploymentPlan, *, poll_s: float = 0.5
) -> Deployment:
    """Deploy token, parameters, staking, distributor and vault, and check that they found each other.

    Raises: ConfigError EMC-1517, FatalError EMC-1501 (another chain), EMC-1518, CallReverted EMC-1504.
    Cancellation: what was sent stays on chain; deploy again from the start.
    """
    plan.require_sound()
    found = await ask_quantity(rpc, "eth_chainId")
    if found != plan.chain_id:
        raise FatalError("EMC-1501", f"the RPC is chain {found}, the plan is for {plan.chain_id}")
    nonce = await ask_quantity(rpc, "eth_getTransactionCount", deployer.address, "pending")
    predicted = [predict_address(deployer.address, nonce + i) for i in range(len(CONTRACT_NAMES))]
    first_block = 0
    for index, (name, args) in enumerate(list_constructors(plan, predicted).items()):
        code = await trio.to_thread.run_sync(encode_constructor, name, args)
        receipt = await send_call(
            rpc,
            plan.chain_id,
            deployer,
            Call(None, code, label=f"deploy {name}"),
            poll_s=poll_s,
            timeout_s=300,
        )
        _require_address(name, receipt, predicted[index])
        first_block = first_block or receipt.block
    deployment = build_deployment(plan, predicted, first_block)
    minter = await Contract(rpc, "EMCToken", deployment.token).view_one("minter")
    if minter != deployment.distributor:
        raise FatalError("EMC-1518", f"the token's minter is {minter}")
    return deployment


def encode_constructor(name: str, args: Sequence[Any]) -> bytes:
    """Creation code with its arguments, by web3. Blocking: the first call imports web3 (1 to 2.6 s)."""
    from web3 import Web3

    artifact = load_artifact(name)
    factory = Web3().eth.contract(abi=artifact.abi, bytecode=artifact.creation_code)
    return bytes.fromhex(factory.constructor(*args).data_in_transaction.removeprefix("0x"))


def predict_address(deployer: Address, nonce: int) -> Address:
    """The address of the contract that an account creates with a nonce. Source: Yellow Paper, 7."""
    scalar = b"" if nonce == 0 else nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    number = scalar if len(scalar) == 1 and scalar[0] < 0x80 else bytes([0x80 + len(scalar)]) + scalar
    body = b"\x94" + address_bytes(deployer) + number
    return address_from_bytes(keccak(bytes([0xC0 + len(body)]) + body)[12:])


def build_deployment(plan: DeploymentPlan, addresses: Sequence[Address], deployed_block: int) -> Deployment:
    """The network that a plan makes at these addresses, which are in the order of deployment."""
    token, parameters, staking, distributor, vault = addresses
    return Deployment(
        chain_id=plan.chain_id,
        token=token,
        staking=staking,
        distributor=distributor,
        vault=vault,
        parameters=parameters,
        deployed_block=deployed_block,
        params=plan.params,
        prices=plan.prices,
    )


def contract_addresses(deployment: Deployment) -> dict[str, Address]:
    """Each contract's address by its name, in the order of deployment."""
    return {
        "EMCToken": deployment.token,
        "Parameters": deployment.parameters,
        "Staking": deployment.staking,
        "Distributor": deployment.distributor,
        "CreditVault": deployment.vault,
    }


def list_constructors(plan: DeploymentPlan, addresses: Sequence[Address]) -> dict[str, tuple[Any, ...]]:
    """The arguments of each contract, in the order of deployment; `addresses` likewise."""
    token, parameters, staking, distributor, _ = addresses
    params = plan.params
    periods = period_table(params.epoch_rounds)
    return {
        "EMCToken": (distributor, list(plan.holders), list(plan.holders.values())),
        "Parameters": (staking, encode_rules(rules_of(params)), encode_document(params, plan.prices)),
        "Staking": (_staking_config(params, token, parameters),),
        "Distributor": (
            token,
            staking,
            [period.start_round for period in periods],
            [period.wei_per_round_ceil for period in periods],
            int.from_bytes(params.publish_fee_wei, "big"),
            params.void_after_rounds,
            plan.guardian,
        ),
        "CreditVault": (token, plan.micro_per_token, plan.treasury or ZERO_ADDRESS, plan.treasury_bps),
    }


def _staking_config(params: NetworkParams, token: Address, parameters: Address) -> tuple[Any, ...]:
    return (
        token,
        parameters,
        params.genesis_time_s,
        params.round_s,
        params.epoch_rounds,
        params.unbonding_rounds,
        params.challenge_delay_rounds,
        params.day_s,
    )


def _require_address(name: str, receipt: TxReceipt, expected: Address) -> None:
    if receipt.contract != expected:
        raise FatalError("EMC-1518", f"{name} is at {receipt.contract}, not at {expected}")
