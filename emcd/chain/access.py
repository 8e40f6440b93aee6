"""The chain as roles have it: one object with the RPC, the contracts and the clock of blocks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import trio

from emcd.chain.blocks import BlockRef, fetch_block, fetch_head, find_block, find_boundary
from emcd.chain.call import Call, TxReceipt
from emcd.chain.cost import CostEstimate, estimate_cost
from emcd.chain.log_check import NumberCheck
from emcd.chain.outbox import Outbox, OutboxPolicy
from emcd.chain.outbox_store import OutboxStore
from emcd.chain.proxies import DistributorProxy, ParametersProxy, StakingProxy, TokenProxy, VaultProxy
from emcd.chain.proxies.contract import Contract
from emcd.chain.rpc import JsonRpc, Rpc
from emcd.chain.sender import send_call
from emcd.chain.tx import FeePolicy, TxSigner
from emcd.chain.watcher import EventSink, Watcher
from emcd.config import ChainConfig as Settings
from emcd.errors import FatalError, RecoverableError
from emcd.proto.network import Deployment
from emcd.types import Address

_BLOCK_AT_CACHE = 64
"""A few rounds' boundaries, asked for by several tasks."""


@dataclass(frozen=True)
class ChainConfig:
    """`confirmations` counts the block itself: 1 takes the head's word. `agree`: see `JsonRpc`."""

    rpc_urls: tuple[str, ...]
    confirmations: int = 2
    timeout_s: float = 10.0
    poll_s: float = 1.0
    fees: FeePolicy = field(default_factory=FeePolicy)
    agree: int = 1

    @classmethod
    def from_settings(cls, settings: Settings) -> ChainConfig:
        """What an operator wrote into [chain]."""
        fees = FeePolicy(
            ceiling_wei=settings.max_fee_per_gas_wei,
            tip_ceiling_wei=settings.max_tip_per_gas_wei,
            tip_floor_wei=settings.least_tip_per_gas_wei,
            bump_bps=settings.bump_bps,
            bump_after_s=settings.bump_after_s,
            resend_after_s=settings.resend_after_s,
            max_transaction_cost_wei=settings.max_transaction_cost_wei,
            max_day_cost_wei=settings.max_day_cost_wei,
        )
        return cls(
            settings.rpc_urls,
            confirmations=settings.confirmations,
            timeout_s=settings.timeout_s,
            poll_s=settings.poll_s,
            fees=fees,
            agree=settings.agree,
        )


class Chain:
    """One network's chain. Nothing is asked before the first call."""

    def __init__(self, config: ChainConfig, deployment: Deployment, rpc: Rpc | None = None) -> None:
        self.config = config
        self.deployment = deployment
        self.rpc: Rpc = rpc or JsonRpc(
            config.rpc_urls, deployment.chain_id, timeout_s=config.timeout_s, agree=config.agree
        )
        self.token = TokenProxy(self.rpc, deployment.token)
        self.staking = StakingProxy(self.rpc, deployment.staking)
        self.distributor = DistributorProxy(self.rpc, deployment.distributor)
        self.vault = VaultProxy(self.rpc, deployment.vault)
        self.parameters = ParametersProxy(self.rpc, deployment.parameters)
        self._block_at: dict[int, tuple[BlockRef, BlockRef]] = {}

    @property
    def problem(self) -> str:
        """Endpoints that disagree, or were caught in an untrue answer, for health(); "" when all is well."""
        return self.rpc.problem if isinstance(self.rpc, JsonRpc) else ""

    async def require_chain(self) -> None:
        """Check chain id and contracts.

        Raises: FatalError EMC-1501 (another chain), EMC-1515 (no contracts there), RecoverableError
            EMC-1502 (no endpoint answers).
        """
        if isinstance(self.rpc, JsonRpc):
            await self.rpc.require_chain_id()
        for contract in self._contracts().values():
            code = await self.rpc.call("eth_getCode", contract.address, "latest")
            if not isinstance(code, str) or len(code) <= 2:
                raise FatalError("EMC-1515", f"no {contract.abi.name} at {contract.address}")

    async def head(self) -> BlockRef:
        """The newest block."""
        return await fetch_head(self.rpc)

    async def confirmed_head(self) -> BlockRef:
        """The newest block that is `confirmations` deep."""
        head = await self.head()
        if self.config.confirmations <= 1:
            return head
        return await fetch_block(self.rpc, max(0, head.number - self.config.confirmations + 1))

    async def fetch_block(self, number: int) -> BlockRef:
        """Raises: RecoverableError EMC-1505 when there is none (yet)."""
        return await fetch_block(self.rpc, number)

    async def block_at(self, time_s: int) -> BlockRef:
        """The last block with timestamp <= time_s, decided by a confirmed later block.

        What was found once is given again while the block after it, which decided it, still stands.

        Raises: RecoverableError EMC-1506 while that is not decided.
        """
        known = self._block_at.get(time_s)
        if known is not None:
            block, after = known
            now = await find_block(self.rpc, after.number)
            if now is not None and now.hash == after.hash:
                return block
            self._block_at.clear()
        head = await self.confirmed_head()
        found = await find_boundary(self.rpc, time_s, head, self.deployment.deployed_block)
        if len(self._block_at) >= _BLOCK_AT_CACHE:
            del self._block_at[min(self._block_at)]
        self._block_at[time_s] = found
        return found[0]

    async def wait_block_at(self, time_s: int) -> BlockRef:
        """`block_at`, as soon as it is decided, through outages of the node. Cancellation: at once.

        Raises: RecoverableError EMC-1505 when the chain began later.
        """
        while True:
            try:
                return await self.block_at(time_s)
            except RecoverableError as exc:
                if exc.code == "EMC-1505":
                    raise
                await trio.sleep(self.config.poll_s)

    async def require_can(self, call: Call, sender: Address, at: BlockRef | None = None) -> None:
        """Run a transaction's call at a block without sending it. Raises: CallReverted EMC-1504."""
        block = "latest" if at is None else {"blockHash": "0x" + at.hash.hex(), "requireCanonical": True}
        await self.rpc.call("eth_call", call.params(sender), block)

    async def estimate_cost(self, call: Call, sender: Address) -> CostEstimate:
        """What a transaction would cost now under the config's ceilings; nothing is sent.

        Raises: CallReverted EMC-1504 when it would not work, RecoverableError, RpcRefused.
        """
        return await estimate_cost(self.rpc, call, sender, self.config.fees)

    async def send(self, key: TxSigner, call: Call, *, timeout_s: float = 120.0) -> TxReceipt:
        """Send one transaction under the config's ceilings and wait for its block; for command lines.

        Raises and Cancellation: as `emcd.chain.sender.send_call`.
        """
        return await send_call(
            self.rpc,
            self.deployment.chain_id,
            key,
            call,
            policy=self.config.fees,
            timeout_s=timeout_s,
            poll_s=min(0.5, self.config.poll_s),
        )

    def outbox(self, store: OutboxStore, key: TxSigner, policy: OutboxPolicy | None = None) -> Outbox:
        """The outbox of a key: one per key and daemon."""
        default = OutboxPolicy(self.config.confirmations, self.config.poll_s, self.config.fees)
        return Outbox(self.rpc, self.deployment.chain_id, store, key, policy or default)

    def watcher(
        self, sink: EventSink, contracts: Collection[str] = ("staking", "distributor", "vault")
    ) -> Watcher:
        """A watcher of some of the contracts "token", "staking", "distributor", "vault"."""
        known = self._contracts()
        return Watcher(
            self.rpc,
            {name: known[name] for name in contracts},
            sink,
            first_block=self.deployment.deployed_block,
            confirmations=self.config.confirmations,
            poll_s=self.config.poll_s,
            numbered={"vault": NumberCheck(self.rpc, self.vault, "CreditsBought", "index", "depositCount")},
        )

    def _contracts(self) -> dict[str, Contract]:
        return {
            "token": self.token,
            "staking": self.staking,
            "distributor": self.distributor,
            "vault": self.vault,
        }
