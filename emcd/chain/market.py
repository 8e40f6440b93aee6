"""What the chain asks for gas now."""

from __future__ import annotations

from typing import Any

from emcd.chain.quantity import ask_quantity
from emcd.chain.rpc import Rpc, RpcRefused
from emcd.chain.tx import FeePolicy, Fees, compute_fees
from emcd.errors import RecoverableError


async def fetch_fees(rpc: Rpc, policy: FeePolicy) -> Fees:
    """Fees that would do now, under the policy's ceilings."""
    head: Any = await rpc.call("eth_getBlockByNumber", "latest", False)
    try:
        base_fee = int(head.get("baseFeePerGas") or "0x0", 16)
    except (AttributeError, TypeError, ValueError) as exc:
        raise RecoverableError("EMC-1507", f"fees: {exc}") from exc
    try:
        tip = await ask_quantity(rpc, "eth_maxPriorityFeePerGas")
    except RpcRefused:
        tip = policy.tip_floor_wei
    return compute_fees(base_fee, tip, policy)
