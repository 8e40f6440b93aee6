"""The outbox: transactions that reach the chain exactly once, through crashes and reorganisations.

A row goes intent -> nonce -> signed -> sent -> mined -> confirmed, and each arrow is in the store
before the next step begins. Invariants: one key, one nonce, for ever; bytes are stored before
they are sent, so after a crash the same bytes go out again; a replacement differs in its fees
alone; a transaction that a reorganisation threw out is sent again; what is final stays final.
One outbox per sending key: two would give the same nonce twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from emcd.chain.blocks import BlockRef, fetch_head, find_block
from emcd.chain.call import Call, TxReceipt
from emcd.chain.market import fetch_fees
from emcd.chain.outbox_store import AttemptRow, OutboxRow, OutboxStore
from emcd.chain.outcome import TxOutcome, read_outcome
from emcd.chain.quantity import ask_quantity
from emcd.chain.revert import CallReverted, Revert
from emcd.chain.rpc import Rpc, RpcRefused
from emcd.chain.sender import explain_failure, find_receipt
from emcd.chain.tx import (
    FeePolicy,
    Fees,
    TxSigner,
    TxState,
    Watch,
    compute_bump,
    decide_watch,
    gas_limit_ceil,
    sign_transaction,
)
from emcd.errors import LocalProtocolError, RecoverableError
from emcd.types import Address, Hash

_LOST_AFTER = 3
"""Times in a row that a nonce must look used by others: an endpoint that lags shows no receipt."""
_MAX_FAILURES = 3
"""Each may have cost a whole deadline."""
_KNOWN = ("already known", "known transaction", "already imported", "alreadyknown")


@dataclass(frozen=True)
class OutboxPolicy:
    """How deep is final, how often to look, what to pay."""

    confirmations: int = 1
    poll_s: float = 1.0
    fees: FeePolicy = field(default_factory=FeePolicy)


@dataclass(frozen=True)
class TxIntent:
    """What to send, under a key that names the fact ("publish:12"), never the try."""

    key: str
    call: Call
    gas_limit: int = 0
    """0: estimated."""


@dataclass
class _Sent:
    """What this process remembers of a transaction; lost in a crash without harm."""

    sent_at: float = -1e9
    attempt_at: float = 0.0
    lost_seen: int = 0
    underpriced: bool = False


class Outbox:
    """The transactions of one key. `problem` is what keeps it from going on, for health and people."""

    def __init__(
        self, rpc: Rpc, chain_id: int, store: OutboxStore, key: TxSigner, policy: OutboxPolicy | None = None
    ) -> None:
        self.address: Address = key.address
        self.problem = ""
        self._rpc = rpc
        self._chain_id = chain_id
        self._store = store
        self._key = key
        self._policy = policy or OutboxPolicy()
        self._memory: dict[str, _Sent] = {}
        self._work = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()
        self._steps = 0

    async def submit(self, intent: TxIntent) -> None:
        """Take a transaction on; it is durable when this returns. The same again does nothing.

        What must happen before it (an approval, say) must be confirmed first: the estimate would
        refuse it otherwise, which is final.

        Raises: LocalProtocolError EMC-1510 when the key stands for another transaction.
        Cancellation: it may have been taken.
        """
        call = intent.call
        if call.to is None:
            raise LocalProtocolError("EMC-1510", f"{intent.key}: the outbox creates no contracts")
        row = await self._store.add(
            self.address,
            intent.key,
            to_address=call.to,
            data=call.data,
            value_wei=call.value_wei,
            gas=intent.gas_limit,
            label=call.label,
        )
        if (row.to_address, row.data, row.value_wei) != (call.to, call.data, call.value_wei):
            raise LocalProtocolError("EMC-1510", f"{intent.key} stands for another transaction")
        self._work.set()

    async def wait(self, key: str) -> TxOutcome:
        """What became of a transaction, when it is final; `run` must be running.

        Raises: LocalProtocolError EMC-1511 when nothing was submitted under the key.
        Cancellation: at once; the transaction goes on.
        """
        while True:
            seen = self._steps
            outcome = await self.find(key)
            if outcome is not None:
                return outcome
            while self._steps == seen:  # a step may have ended while the row was read
                await self._changed.park()

    async def execute(self, intent: TxIntent) -> TxOutcome:
        """`submit`, then `wait`."""
        await self.submit(intent)
        return await self.wait(intent.key)

    async def find(self, key: str) -> TxOutcome | None:
        """The outcome, or None while it is open. Raises: LocalProtocolError EMC-1511."""
        row = await self._store.find(self.address, key)
        if row is None:
            raise LocalProtocolError("EMC-1511", f"no transaction {key}")
        return read_outcome(row)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive every open transaction. Returns only by cancellation.

        Raises: FatalError EMC-1501 (the endpoint is another chain), or what the store raises.
        Cancellation: at any step; the next start goes on from the store.
        """
        task_status.started()
        while True:
            self._work = trio.Event()
            if await self.step():
                await trio.sleep(self._policy.poll_s)
            else:
                await self._work.wait()

    async def step(self) -> int:
        """Look at every open transaction once. Returns: how many are open still."""
        rows = await self._store.list_open(self.address)
        if not rows:
            self.problem = ""
            return 0
        self.problem = await self._advance_all(rows)
        self._steps += 1
        self._changed.unpark_all()
        return len(await self._store.list_open(self.address))

    async def _advance_all(self, rows: Sequence[OutboxRow]) -> str:
        """One step of each. Returns: the last problem. A node that fails often ends the round early."""
        problem, failures = "", 0
        try:
            head = await fetch_head(self._rpc)
            nonce = await self._confirmed_nonce(head)
        except RecoverableError as exc:
            return str(exc)
        for row in rows:
            try:
                problem = await self._advance(row, head, nonce) or problem
            except RecoverableError as exc:
                problem, failures = str(exc), failures + 1
                if failures == _MAX_FAILURES:
                    break
        return problem

    async def _confirmed_nonce(self, head: BlockRef) -> int:
        number = max(0, head.number - self._policy.confirmations + 1)
        return await ask_quantity(self._rpc, "eth_getTransactionCount", self.address, hex(number))

    async def _advance(self, row: OutboxRow, head: BlockRef, chain_nonce: int) -> str:
        """One step of one transaction. Returns: what keeps it back, or ""."""
        try:
            if row.nonce is None:
                row = await self._assign(row)
                if TxState(row.state).is_final:
                    return ""
            attempts = await self._store.list_attempts(self.address, row.key)
            if not attempts:
                return await self._attempt(row, await fetch_fees(self._rpc, self._policy.fees))
            receipt = await self._find_receipt(row, attempts)
            if receipt is not None:
                await self._settle(row, receipt, head)
                return ""
            return await self._watch(row, attempts, chain_nonce)
        except RpcRefused as exc:
            return f"{row.key}: {exc.message}"

    async def _assign(self, row: OutboxRow) -> OutboxRow:
        """Estimate, then give the nonce; a call that reverts already now never gets one."""
        gas = row.gas
        if not gas:
            try:
                estimate = await ask_quantity(
                    self._rpc, "eth_estimateGas", _call_of(row).params(self.address)
                )
            except CallReverted as exc:
                await self._fail(row, exc.reason, None)
                failed = await self._store.find(self.address, row.key)
                assert failed is not None
                return failed
            gas = gas_limit_ceil(estimate)
        nonce = await ask_quantity(self._rpc, "eth_getTransactionCount", self.address, "pending")
        return await self._store.assign(self.address, row.key, least_nonce=nonce, gas=gas)

    async def _attempt(self, row: OutboxRow, fees: Fees) -> str:
        """Sign, store, send: in this order."""
        assert row.nonce is not None
        tx_hash, raw = sign_transaction(self._key, self._chain_id, row.nonce, _call_of(row), row.gas, fees)
        await self._store.add_attempt(
            self.address,
            row.key,
            tx_hash=tx_hash,
            raw=raw,
            max_fee_wei=fees.max_fee_wei,
            tip_wei=fees.tip_wei,
        )
        memory = self._remember(row.key)
        memory.attempt_at = trio.current_time()
        memory.underpriced = False
        return await self._send(row, raw)

    async def _send(self, row: OutboxRow, raw: bytes) -> str:
        memory = self._remember(row.key)
        memory.sent_at = trio.current_time()
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
        except RpcRefused as exc:
            text = exc.message.lower()
            if any(known in text for known in _KNOWN) or "nonce too low" in text:
                return ""
            memory.underpriced = "underpriced" in text or "less than block base fee" in text
            return f"{row.key}: {exc.message}"
        return ""

    async def _watch(self, row: OutboxRow, attempts: Sequence[AttemptRow], chain_nonce: int) -> str:
        """Nothing mined, or mined no more: wait, resend, pay more, or see the nonce lost."""
        assert row.nonce is not None
        if row.state != TxState.READY:
            await self._store.set_state(self.address, row.key, TxState.READY, detail="reorganised out")
            return await self._send(row, attempts[-1].raw)
        memory = self._remember(row.key)
        now = trio.current_time()
        watch = decide_watch(
            nonce=row.nonce,
            chain_nonce=chain_nonce,
            since_sent_s=now - memory.sent_at,
            since_attempt_s=self._policy.fees.bump_after_s if memory.underpriced else now - memory.attempt_at,
            policy=self._policy.fees,
        )
        memory.lost_seen = memory.lost_seen + 1 if watch is Watch.LOST else 0
        if watch is Watch.LOST and memory.lost_seen >= _LOST_AFTER:
            await self._store.set_state(
                self.address,
                row.key,
                TxState.REPLACED,
                detail=f"nonce {row.nonce} was used by another transaction",
            )
            self._memory.pop(row.key, None)
        elif watch is Watch.BUMP:
            return await self._bump(row, attempts[-1])
        elif watch is Watch.RESEND:
            return await self._send(row, attempts[-1].raw)
        return ""

    async def _bump(self, row: OutboxRow, last: AttemptRow) -> str:
        policy = self._policy.fees
        fees = compute_bump(Fees(last.max_fee_wei, last.tip_wei), await fetch_fees(self._rpc, policy), policy)
        if fees is None:
            self._remember(row.key).attempt_at = trio.current_time()
            return await self._send(row, last.raw) or f"{row.key}: the fee ceiling is reached (EMC-1512)"
        return await self._attempt(row, fees)

    async def _find_receipt(self, row: OutboxRow, attempts: Sequence[AttemptRow]) -> TxReceipt | None:
        for attempt in reversed(attempts):
            receipt = await find_receipt(self._rpc, Hash(attempt.tx_hash))
            if receipt is not None:
                return receipt
        return None

    async def _settle(self, row: OutboxRow, receipt: TxReceipt, head: BlockRef) -> None:
        """Note the block; final when deep enough and its block is the one at that height."""
        if (row.tx_hash, row.block_hash) != (receipt.tx_hash, receipt.block_hash):
            await self._store.set_state(
                self.address,
                row.key,
                TxState.MINED,
                tx_hash=receipt.tx_hash,
                block=receipt.block,
                block_hash=receipt.block_hash,
                gas_used=receipt.gas_used,
            )
        if head.number - receipt.block + 1 < self._policy.confirmations:
            return
        block = await find_block(self._rpc, receipt.block)
        if block is None or block.hash != receipt.block_hash:
            return
        if not receipt.succeeded:
            await self._fail(
                row, await explain_failure(self._rpc, _call_of(row), self.address, receipt), receipt
            )
            return
        await self._store.set_state(
            self.address,
            row.key,
            TxState.CONFIRMED,
            tx_hash=receipt.tx_hash,
            block=receipt.block,
            block_hash=receipt.block_hash,
            gas_used=receipt.gas_used,
        )
        self._memory.pop(row.key, None)

    async def _fail(self, row: OutboxRow, reason: Revert, receipt: TxReceipt | None) -> None:
        await self._store.set_state(
            self.address,
            row.key,
            TxState.FAILED,
            tx_hash=None if receipt is None else receipt.tx_hash,
            block=None if receipt is None else receipt.block,
            block_hash=None if receipt is None else receipt.block_hash,
            gas_used=0 if receipt is None else receipt.gas_used,
            error_name=reason.name,
            detail=reason.text,
        )
        self._memory.pop(row.key, None)

    def _remember(self, key: str) -> _Sent:
        return self._memory.setdefault(key, _Sent(attempt_at=trio.current_time()))


def _call_of(row: OutboxRow) -> Call:
    return Call(Address(row.to_address), row.data, row.value_wei, row.label)
