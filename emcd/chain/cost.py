"""What a transaction would cost, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.chain.call import Call
from emcd.chain.market import fetch_market
from emcd.chain.quantity import ask_quantity
from emcd.chain.rpc import Rpc
from emcd.chain.tx import FeePolicy, gas_limit_ceil
from emcd.types import Address


@dataclass(frozen=True)
class CostEstimate:
    """Gas and its price; the value that a call carries is not in it.

    `gas` is the limit that would be sent, `max_cost_wei` what the sender must own for it. On a chain
    that charges for data apart (some second layers), that charge comes on top.
    """

    gas: int
    max_fee_per_gas_wei: int
    max_cost_wei: int
    expected_cost_wei: int


async def estimate_cost(
    rpc: Rpc, call: Call, sender: Address, policy: FeePolicy | None = None
) -> CostEstimate:
    """Estimate the gas, price it as the outbox would, under the policy's ceilings.

    Raises: CallReverted EMC-1504 when the call would not work, RecoverableError, RpcRefused.
    """
    used = await ask_quantity(rpc, "eth_estimateGas", call.params(sender))
    gas = gas_limit_ceil(used)
    policy = (policy or FeePolicy()).for_gas(gas)
    market = await fetch_market(rpc, policy)
    fees = market.fees(policy)
    price = min(market.base_fee_wei + fees.tip_wei, fees.max_fee_wei)
    return CostEstimate(gas, fees.max_fee_wei, gas * fees.max_fee_wei, used * price)
