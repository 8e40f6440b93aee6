"""The gas limit of a transaction: a node's estimate, held between what the chain takes at least and at most."""

from __future__ import annotations

from typing import Any

from emcd.chain.call import Call
from emcd.chain.quantity import ask_quantity
from emcd.chain.rpc import Rpc, accuse
from emcd.chain.tx import gas_limit_ceil
from emcd.errors import RecoverableError
from emcd.types import Address

MOST_GAS = 1 << 24
"""What one transaction may have at most on Ethereum (EIP-7825); none of ours needs as much."""
_BASE_GAS, _ZERO_GAS, _BYTE_GAS = 21_000, 4, 16


def intrinsic_gas(data: bytes) -> int:
    """What a call costs before its first instruction."""
    zeros = data.count(0)
    return _BASE_GAS + _ZERO_GAS * zeros + _BYTE_GAS * (len(data) - zeros)


def bound_gas(estimate: int, data: bytes, block_gas: int) -> int:
    """The gas limit to sign for an estimate: with its margin, never one that nodes refuse unseen."""
    most = min(block_gas, MOST_GAS)
    return max(min(gas_limit_ceil(estimate), most), gas_limit_ceil(intrinsic_gas(data)))


async def fetch_gas_limit(rpc: Rpc, call: Call, sender: Address) -> int:
    """Raises: CallReverted EMC-1504 when the call would not work, RpcRefused, RecoverableError EMC-1507
    also for an estimate that can't be true: it would be mined, run out of gas, and be lost.
    """
    estimate = await ask_quantity(rpc, "eth_estimateGas", call.params(sender))
    least = intrinsic_gas(call.data)
    if estimate < least:
        what = f"eth_estimateGas gave {estimate}, the call's data alone take {least}"
        accuse(rpc, "eth_estimateGas", what)
        raise RecoverableError("EMC-1507", what)
    head: Any = await rpc.call("eth_getBlockByNumber", "latest", False)
    try:
        block_gas = int(head["gasLimit"], 16)
    except (KeyError, TypeError, ValueError) as exc:
        raise RecoverableError("EMC-1507", f"gas limit of the newest block: {exc!r}") from exc
    return bound_gas(estimate, call.data, block_gas)
