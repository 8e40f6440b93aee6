"""What the chain asks for gas now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emcd.chain.quantity import ask_quantity
from emcd.chain.rpc import Rpc, RpcRefused
from emcd.chain.tx import FeePolicy, Fees, compute_fees
from emcd.errors import RecoverableError


@dataclass(frozen=True)
class Market:
    """What the newest block and its node ask for, per gas."""

    base_fee_wei: int
    tip_wei: int

    def fees(self, policy: FeePolicy) -> Fees:
        """Fees that would do now, under the policy's ceilings."""
        return compute_fees(self.base_fee_wei, self.tip_wei, policy)


async def fetch_market(rpc: Rpc, policy: FeePolicy) -> Market:
    """Raises: RecoverableError EMC-1507 when the answer is none."""
    head: Any = await rpc.call("eth_getBlockByNumber", "latest", False)
    try:
        base_fee = int(head.get("baseFeePerGas") or "0x0", 16)
    except (AttributeError, TypeError, ValueError) as exc:
        raise RecoverableError("EMC-1507", f"fees: {exc}") from exc
    try:
        tip = await ask_quantity(rpc, "eth_maxPriorityFeePerGas")
    except RpcRefused:
        tip = policy.tip_floor_wei
    return Market(base_fee, tip)


async def fetch_fees(rpc: Rpc, policy: FeePolicy) -> Fees:
    """Fees that would do now, under the policy's ceilings."""
    return (await fetch_market(rpc, policy)).fees(policy)
