"""One transaction at a time, without a ledger: for deployment, preparation and the command line.

What must survive a crash goes through the outbox instead.
"""

from __future__ import annotations

from typing import Any

import trio

from emcd.chain.blocks import find_block
from emcd.chain.call import Call, TxReceipt, parse_receipt
from emcd.chain.market import fetch_fees
from emcd.chain.quantity import ask_quantity
from emcd.chain.revert import CallReverted, Revert
from emcd.chain.rpc import Rpc
from emcd.chain.tx import FeePolicy, TxSigner, gas_limit_ceil, sign_transaction
from emcd.errors import RecoverableError
from emcd.types import Address, Hash


async def send_call(
    rpc: Rpc,
    chain_id: int,
    key: TxSigner,
    call: Call,
    *,
    gas_limit: int = 0,
    policy: FeePolicy | None = None,
    timeout_s: float = 120.0,
    poll_s: float = 0.5,
) -> TxReceipt:
    """Estimate, sign, send, and wait until the transaction is in a block.

    Raises: CallReverted EMC-1504 (in the estimate or on chain), RpcRefused EMC-1503, RecoverableError
        EMC-1513 when it is not mined in time.
    Cancellation: it may have been sent.
    """
    gas = gas_limit or gas_limit_ceil(await ask_quantity(rpc, "eth_estimateGas", call.params(key.address)))
    nonce = await ask_quantity(rpc, "eth_getTransactionCount", key.address, "pending")
    fees = await fetch_fees(rpc, (policy or FeePolicy()).for_gas(gas))
    tx_hash, raw = sign_transaction(key, chain_id, nonce, call, gas, fees)
    await rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
    with trio.move_on_after(timeout_s):
        while True:
            receipt = await find_receipt(rpc, tx_hash)
            if receipt is not None:
                break
            await trio.sleep(poll_s)
        if not receipt.succeeded:
            raise CallReverted(await explain_failure(rpc, call, key.address, receipt), call.label)
        return receipt
    raise RecoverableError(
        "EMC-1513", f"{call.label or 'transaction'} 0x{tx_hash.hex()} after {timeout_s:.0f} s"
    )


async def find_receipt(rpc: Rpc, tx_hash: Hash) -> TxReceipt | None:
    """The receipt of a mined transaction. Raises: RecoverableError EMC-1507 for another's."""
    raw: Any = await rpc.call("eth_getTransactionReceipt", "0x" + tx_hash.hex())
    try:
        if raw is None or raw.get("blockHash") is None:
            return None
        receipt = parse_receipt(raw)
    except (TypeError, KeyError, ValueError, AttributeError) as exc:
        raise RecoverableError("EMC-1507", f"receipt of 0x{tx_hash.hex()}: {exc}") from exc
    if receipt.tx_hash != tx_hash:
        raise RecoverableError(
            "EMC-1507", f"asked for receipt 0x{tx_hash.hex()}, got 0x{receipt.tx_hash.hex()}"
        )
    return receipt


async def explain_failure(rpc: Rpc, call: Call, sender: Address, receipt: TxReceipt) -> Revert:
    """Why a mined transaction failed: its call once more, on the state before its block.

    Best effort: transactions before it in the block are not replayed.
    """
    try:
        before = await find_block(rpc, receipt.block - 1)
        if before is not None:
            await rpc.call("eth_call", call.params(sender), hex(before.number))
    except CallReverted as exc:
        return exc.reason
    except RecoverableError:
        pass
    return Revert("", message="reverted on chain; the same call does not revert before its block")
