"""Carries one transaction a step further: nonce, signature, sending, paying more, block, end.

The outbox decides when; this decides what, and writes it down before it does it. Invariants: bytes are
stored before they are sent; a replacement differs in its fees, and in a gas limit that nodes refused;
nothing is signed above the fee
ceilings; final is what lies deep enough in a block that lists it, at a height where the account's nonce
has passed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import trio

from emcd.chain.blocks import BlockRef, fetch_header
from emcd.chain.call import Call, TxReceipt
from emcd.chain.gas import fetch_gas_limit
from emcd.chain.market import Market, fetch_market
from emcd.chain.outbox_store import AttemptRow, OutboxRow, OutboxStore
from emcd.chain.quantity import ask_quantity
from emcd.chain.revert import CallReverted, Revert
from emcd.chain.rpc import Rpc, RpcRefused, accuse, call_elsewhere, doubt
from emcd.chain.sender import explain_failure, find_receipt
from emcd.chain.tx import (
    FeePolicy,
    Fees,
    TxSigner,
    TxState,
    Waiting,
    Watch,
    compute_bump,
    decide_watch,
    sign_transaction,
)
from emcd.errors import RecoverableError
from emcd.types import Address, Hash

DAY_MS = 86_400_000
_LOST_AFTER = 3
"""Times in a row that a nonce must look used by others: an endpoint that lags shows no receipt."""
_BLOCKS_TO_WAIT = 2
"""Blocks that must have passed a transaction over before it pays more."""
_KNOWN = ("already known", "known transaction", "already imported", "alreadyknown")
_TOO_LOW = ("underpriced", "less than block base fee", "fee too low", "fee cap less")
_GAS_WRONG = ("intrinsic gas", "intrinsicgas", "gas limit", "gaslimit", "floor data gas")
_NONCE_BITS = 63


@dataclass(frozen=True)
class OutboxPolicy:
    """How deep is final, how often to look, what to pay."""

    confirmations: int = 1
    poll_s: float = 1.0
    fees: FeePolicy = field(default_factory=FeePolicy)


@dataclass(frozen=True)
class View:
    """The chain as one step sees it."""

    head: BlockRef
    settled: BlockRef
    """The newest block that is deep enough."""
    nonce: int
    """The sender's next nonce at that block."""
    has_gap: bool = False
    """Whether all open transactions have nonces above that: something else must be mined before them."""


@dataclass
class _Memory:
    """What this process remembers of a transaction; lost in a crash without harm."""

    attempt_at: float
    attempt_block: int
    sent_at: float = -1e9
    lost_seen: int = 0
    is_too_low: bool = False
    is_gas_wrong: bool = False
    problem: str = ""


class Carrier:
    """The steps of one key's transactions."""

    def __init__(
        self, rpc: Rpc, chain_id: int, store: OutboxStore, key: TxSigner, policy: OutboxPolicy
    ) -> None:
        self._rpc = rpc
        self._chain_id = chain_id
        self._store = store
        self._key = key
        self._address: Address = key.address
        self._policy = policy
        self._memory: dict[str, _Memory] = {}

    async def advance(self, row: OutboxRow, view: View) -> str:
        """One step of one transaction. Returns: what keeps it back, or "".

        Raises: RecoverableError: the node must be asked again.
        """
        try:
            if row.nonce is None:
                return await self._begin(row, view)
            attempts = await self._store.list_attempts(self._address, row.key)
            if not attempts:
                fees = await self._price(row.gas)
                return await self._find_overspending(row.key, row.gas, fees) or await self._attempt(
                    row, fees, view
                )
            receipt = await self._find_receipt(attempts)
            if receipt is not None:
                most = min(receipt.gas_used, row.gas) * _find_max_fee(attempts, receipt.tx_hash)
                await self._settle(row, receipt, view, most)
                return ""
            return await self._watch(row, attempts, view)
        except RpcRefused as exc:
            return f"{row.key}: {exc.message}"

    async def _begin(self, row: OutboxRow, view: View) -> str:
        """Estimate, price, then give the nonce; a call that reverts already now never gets one."""
        gas = row.gas
        if not gas:
            try:
                gas = await fetch_gas_limit(self._rpc, _call_of(row), self._address)
            except CallReverted as exc:
                return await self._fail_early(row, exc.reason, view)
        fees = await self._price(gas)
        over = await self._find_overspending(row.key, gas, fees)
        if over:
            return over
        nonce = await ask_quantity(
            self._rpc, "eth_getTransactionCount", self._address, "pending", bits=_NONCE_BITS
        )
        row = await self._store.assign(self._address, row.key, least_nonce=nonce, gas=gas)
        return await self._attempt(row, fees, view)

    async def _fail_early(self, row: OutboxRow, reason: Revert, view: View) -> str:
        """Give up what reverts in its estimate, if it does so too at the confirmed block, asked elsewhere."""
        params = _call_of(row).params(self._address)
        try:
            await call_elsewhere(
                self._rpc, "eth_call", params, hex(view.settled.number), than="eth_estimateGas"
            )
        except CallReverted:
            await self._fail(row, reason, None)
            return ""
        what = f"eth_estimateGas says {reason.text}, the call works at block {view.settled.number}"
        doubt(self._rpc, "eth_estimateGas", what)
        return f"{row.key}: {what}"

    async def _price(self, gas: int) -> Fees:
        """Fees that would do now, under the ceilings for this gas limit."""
        policy = self._policy.fees
        return (await fetch_market(self._rpc, policy)).fees(policy.for_gas(gas))

    async def _find_overspending(self, key: str, gas: int, fees: Fees) -> str:
        """Why a transaction must wait: it could cost more than a day may."""
        ceiling = self._policy.fees.max_day_cost_wei
        if not ceiling:
            return ""
        cost = gas * fees.max_fee_wei
        promised = await self._store.fetch_promised_wei(self._address, within_ms=DAY_MS, besides=key)
        if promised + cost <= ceiling:
            return ""
        return (
            f"{key}: up to {cost} wei for gas beside {promised} of the last 24 hours; "
            f"the config allows {ceiling} (EMC-1521)"
        )

    # ------------------------------------------------------------------ sending

    async def _attempt(self, row: OutboxRow, fees: Fees, view: View, gas: int = 0) -> str:
        """Sign, store, send: in this order. `gas`, if given, is the new gas limit."""
        assert row.nonce is not None
        tx_hash, raw = sign_transaction(
            self._key, self._chain_id, row.nonce, _call_of(row), gas or row.gas, fees
        )
        await self._store.add_attempt(
            self._address,
            row.key,
            tx_hash=tx_hash,
            raw=raw,
            max_fee_wei=fees.max_fee_wei,
            tip_wei=fees.tip_wei,
            gas=gas,
        )
        memory = self._remember(row.key, view)
        memory.attempt_at, memory.attempt_block = trio.current_time(), view.head.number
        return await self._send(row, raw, memory)

    async def _send(self, row: OutboxRow, raw: bytes, memory: _Memory) -> str:
        memory.sent_at = trio.current_time()
        memory.is_too_low, memory.is_gas_wrong, memory.problem = False, False, ""
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
        except RpcRefused as exc:
            text = exc.message.lower()
            if not any(known in text for known in _KNOWN) and "nonce too low" not in text:
                memory.is_too_low = any(words in text for words in _TOO_LOW)
                memory.is_gas_wrong = any(words in text for words in _GAS_WRONG)
                memory.problem = f"{row.key}: {exc.message}"
        return memory.problem

    async def _watch(self, row: OutboxRow, attempts: Sequence[AttemptRow], view: View) -> str:
        """Nothing mined, or mined no more: wait, resend, pay more, or see the nonce lost."""
        assert row.nonce is not None
        memory = self._remember(row.key, view)
        if row.state != TxState.READY:
            await self._store.set_state(self._address, row.key, TxState.READY, detail="reorganised out")
            return await self._send(row, attempts[-1].raw, memory)
        now = trio.current_time()
        fees = self._policy.fees
        waiting = Waiting(
            nonce=row.nonce,
            chain_nonce=view.nonce,
            since_sent_s=now - memory.sent_at,
            since_attempt_s=fees.bump_after_s if memory.is_too_low else now - memory.attempt_at,
            has_had_blocks=view.head.number >= memory.attempt_block + _BLOCKS_TO_WAIT and not view.has_gap,
            is_too_low=memory.is_too_low,
        )
        watch = decide_watch(waiting, fees)
        if memory.is_gas_wrong and watch is not Watch.LOST:
            if waiting.since_sent_s < fees.resend_after_s:
                return memory.problem
            return await self._change_gas(row, attempts[-1], view, memory)
        memory.lost_seen = memory.lost_seen + 1 if watch is Watch.LOST else 0
        match watch:
            case Watch.LOST if memory.lost_seen >= _LOST_AFTER:
                await self._give_up(row, view)
                return ""
            case Watch.BUMP:
                return await self._bump(row, attempts[-1], view, memory)
            case Watch.RESEND:
                problem = memory.problem
                if view.has_gap and now - memory.attempt_at >= fees.bump_after_s:
                    problem = f"{row.key}: has nonce {row.nonce}, the chain is at {view.nonce} (EMC-1522)"
                return await self._send(row, attempts[-1].raw, memory) or _keep(memory, problem)
            case _:
                return memory.problem

    async def _bump(self, row: OutboxRow, last: AttemptRow, view: View, memory: _Memory) -> str:
        policy = self._policy.fees.for_gas(row.gas)
        market = await fetch_market(self._rpc, policy)
        fees = compute_bump(Fees(last.max_fee_wei, last.tip_wei), market.fees(policy), policy)
        if fees is None:
            problem = _describe_ceiling(row.key, last, market)
        else:
            problem = await self._find_overspending(row.key, row.gas, fees)
            if not problem:
                return await self._attempt(row, fees, view)
        memory.attempt_at, memory.attempt_block = trio.current_time(), view.head.number
        await self._send(row, last.raw, memory)
        memory.is_too_low = False  # known, and nothing can be done about it before the next try
        return _keep(memory, problem)

    async def _change_gas(self, row: OutboxRow, last: AttemptRow, view: View, memory: _Memory) -> str:
        """Sign with another gas limit under the same nonce, where a new estimate gives one."""
        try:
            gas = await fetch_gas_limit(self._rpc, _call_of(row), self._address)
        except CallReverted as exc:
            gas, memory.problem = row.gas, f"{row.key}: {exc.reason.text}"
        problem = memory.problem
        if gas != row.gas:
            policy = self._policy.fees.for_gas(gas)
            market = (await fetch_market(self._rpc, policy)).fees(policy)
            fees = compute_bump(Fees(last.max_fee_wei, last.tip_wei), market, policy) or market
            problem = await self._find_overspending(row.key, gas, fees)
            if not problem:
                return await self._attempt(row, fees, view, gas)
        return await self._send(row, last.raw, memory) or _keep(memory, problem)

    async def _give_up(self, row: OutboxRow, view: View) -> None:
        await self._store.set_state(
            self._address,
            row.key,
            TxState.REPLACED,
            block=view.settled.number,
            block_hash=view.settled.hash,
            detail=f"nonce {row.nonce} was used by another transaction",
        )
        self._memory.pop(row.key, None)

    # ------------------------------------------------------------------ mined

    async def _find_receipt(self, attempts: Sequence[AttemptRow]) -> TxReceipt | None:
        for attempt in reversed(attempts):
            receipt = await find_receipt(self._rpc, Hash(attempt.tx_hash))
            if receipt is not None:
                return receipt
        return None

    async def _settle(self, row: OutboxRow, receipt: TxReceipt, view: View, most_fee_wei: int) -> None:
        """Note the block; final when deep enough and the block at that height lists it."""
        receipt = replace(receipt, fee_wei=min(receipt.fee_wei, most_fee_wei))
        if (row.tx_hash, row.block_hash) != (receipt.tx_hash, receipt.block_hash):
            await self._write_mined(row, TxState.MINED, receipt)
        assert row.nonce is not None
        if receipt.block > view.settled.number or view.nonce <= row.nonce:
            return
        header = await fetch_header(self._rpc, receipt.block)
        if header.ref.hash != receipt.block_hash:
            return
        if receipt.tx_hash not in header.tx_hashes:
            what = f"block {receipt.block} does not list 0x{receipt.tx_hash.hex()}, whose receipt names it"
            accuse(self._rpc, "eth_getTransactionReceipt", what)
            raise RecoverableError("EMC-1520", what)
        if receipt.succeeded:
            await self._write_mined(row, TxState.CONFIRMED, receipt)
            self._memory.pop(row.key, None)
        else:
            reason = await explain_failure(self._rpc, _call_of(row), self._address, receipt)
            await self._fail(row, reason, receipt)

    async def _write_mined(self, row: OutboxRow, state: TxState, receipt: TxReceipt) -> None:
        await self._store.set_state(
            self._address,
            row.key,
            state,
            tx_hash=receipt.tx_hash,
            block=receipt.block,
            block_hash=receipt.block_hash,
            gas_used=receipt.gas_used,
            fee_wei=receipt.fee_wei,
        )

    async def _fail(self, row: OutboxRow, reason: Revert, receipt: TxReceipt | None) -> None:
        await self._store.set_state(
            self._address,
            row.key,
            TxState.FAILED,
            tx_hash=None if receipt is None else receipt.tx_hash,
            block=None if receipt is None else receipt.block,
            block_hash=None if receipt is None else receipt.block_hash,
            gas_used=0 if receipt is None else receipt.gas_used,
            fee_wei=0 if receipt is None else receipt.fee_wei,
            error_name=reason.name,
            detail=reason.text,
        )
        self._memory.pop(row.key, None)

    def _remember(self, key: str, view: View) -> _Memory:
        return self._memory.setdefault(key, _Memory(trio.current_time(), view.head.number))


def _keep(memory: _Memory, problem: str) -> str:
    """A problem stands until something is sent without one."""
    memory.problem = problem
    return problem


def _find_max_fee(attempts: Sequence[AttemptRow], tx_hash: bytes) -> int:
    """What a gas unit of a signed version can cost at most."""
    return next(attempt.max_fee_wei for attempt in attempts if attempt.tx_hash == tx_hash)


def _describe_ceiling(key: str, last: AttemptRow, market: Market) -> str:
    return (
        f"{key}: offers {last.max_fee_wei} wei per gas, the fee ceilings allow no more; "
        f"the chain asks {market.base_fee_wei} and a tip (EMC-1512)"
    )


def _call_of(row: OutboxRow) -> Call:
    return Call(Address(row.to_address), row.data, row.value_wei, row.label)
