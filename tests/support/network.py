"""The five contracts on an embedded chain in this process, through our own proxies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from emcd.chain import Call, Chain, ChainConfig, Rpc, TxReceipt
from emcd.chain.deploy import GENESIS_WEI, DeploymentPlan, deploy_network
from emcd.chain.sender import send_call
from emcd.keys import SigningKey
from emcd.proto.messages import Binding
from emcd.proto.network import Deployment
from emcd.proto.params import NetworkParams, devnet_params
from emcd.testing import make_key
from emcd.types import ParticipantRole
from emcd_devchain.genesis import OfflineRpc, prepare_chain
from tests.support.devchain import CHAIN_ID, ETHER

GENESIS_S = 1_800_000_000
HOLDER = make_key("holder")
STAKES = {
    ParticipantRole.COMPUTE: (3_000 * ETHER, 7),
    ParticipantRole.ROUTER: (100_000 * ETHER, 180),
    ParticipantRole.VALIDATOR: (1_000_000 * ETHER, 360),
}


def make_plan(params: NetworkParams | None = None, chain_id: int = CHAIN_ID) -> DeploymentPlan:
    return DeploymentPlan(
        chain_id=chain_id,
        holders={HOLDER.address: GENESIS_WEI},
        guardian=make_key("guardian").address,
        params=params or devnet_params(GENESIS_S),
    )


@contextmanager
def empty_chain(file: Path, *funded: SigningKey, timestamp_s: int = GENESIS_S - 200) -> Iterator[OfflineRpc]:
    """A chain in process where HOLDER and others own ether; every transaction is a block."""
    balances = {key.address: 1_000 * ETHER for key in (HOLDER, *funded)}
    with prepare_chain(file, chain_id=CHAIN_ID, timestamp_s=timestamp_s, balances_wei=balances) as rpc:
        yield rpc


@dataclass
class LiveNetwork:
    """A deployed network that tests act in."""

    chain: Chain
    deployment: Deployment
    rpc: Rpc

    async def send(self, key: SigningKey, call: Call) -> TxReceipt:
        return await send_call(self.rpc, self.deployment.chain_id, key, call, poll_s=0.01)

    async def join(self, name: str, role: ParticipantRole) -> SigningKey:
        """Bind and stake node `name` for HOLDER; returns the node's key."""
        node = make_key(name)
        staking = self.chain.staking
        nonce = await staking.fetch_nonce(node.address) + 1
        binding = Binding(node.address, HOLDER.address, int(role), nonce, 2**40)
        await self.send(
            HOLDER, staking.submit_bind(binding, node.sign(self.deployment.staking_domain, binding))
        )
        amount, days = STAKES[role]
        await self.send(HOLDER, self.chain.token.submit_approve(staking.address, amount))
        await self.send(HOLDER, staking.submit_stake(node.address, amount, days))
        return node


async def deploy(rpc: Rpc, *, chain_id: int = CHAIN_ID, params: NetworkParams | None = None) -> LiveNetwork:
    deployment = await deploy_network(rpc, HOLDER, make_plan(params, chain_id), poll_s=0.01)
    config = ChainConfig(("http://127.0.0.1:1",), confirmations=1, poll_s=0.05)
    return LiveNetwork(Chain(config, deployment, rpc), deployment, rpc)
