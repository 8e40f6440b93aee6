"""The outbox: transactions that reach the chain exactly once, through crashes and reorganisations.

A row goes intent -> nonce -> signed -> sent -> mined -> confirmed, and each arrow is in the store
before the next step begins. Invariants: one key, one nonce, for ever; bytes are stored before
they are sent, so after a crash the same bytes go out again; a replacement differs in its fees,
and in a gas limit that nodes refused; a transaction that a reorganisation threw out is sent again, even one that was settled: it
is looked after for `REORG_BLOCKS` more. One outbox per sending key: two would give the same nonce twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import trio

from emcd.chain.blocks import BlockRef, fetch_block, fetch_head, find_block
from emcd.chain.call import Call
from emcd.chain.carrier import Carrier, OutboxPolicy, View
from emcd.chain.outbox_store import OutboxRow, OutboxStore
from emcd.chain.outcome import TxOutcome, read_outcome
from emcd.chain.quantity import ask_quantity
from emcd.chain.rpc import Rpc, RpcRefused
from emcd.chain.tx import TxSigner
from emcd.errors import LocalProtocolError, RecoverableError
from emcd.types import Address

__all__ = ["REORG_BLOCKS", "Outbox", "OutboxPolicy", "TxIntent"]

REORG_BLOCKS = 256
"""How long after its block a settled transaction is still looked after."""
IDLE_POLLS = 5
"""How much less often that is done while nothing else is open."""
_MAX_FAILURES = 3
"""Each may have cost a whole deadline."""


@dataclass(frozen=True)
class TxIntent:
    """What to send, under a key that names the fact ("publish:12"), never the try."""

    key: str
    call: Call
    gas_limit: int = 0
    """0: estimated."""


class Outbox:
    """The transactions of one key. `problem` is what keeps it from going on, for health and people."""

    def __init__(
        self, rpc: Rpc, chain_id: int, store: OutboxStore, key: TxSigner, policy: OutboxPolicy | None = None
    ) -> None:
        self.address: Address = key.address
        self.problem = ""
        self._rpc = rpc
        self._store = store
        self._policy = policy or OutboxPolicy()
        self._carrier = Carrier(rpc, chain_id, store, key, self._policy)
        self._is_watching = False
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
                patience = self._policy.poll_s * IDLE_POLLS if self._is_watching else inf
                with trio.move_on_after(patience):
                    await self._work.wait()

    async def step(self) -> int:
        """Look at every open transaction once, and whether the settled ones still stand.

        Returns: how many are open still.
        """
        rows = await self._store.list_open(self.address)
        settled = await self._store.list_settled(self.address, REORG_BLOCKS)
        if not rows and not settled:
            self.problem = ""
            return 0
        self.problem = await self._advance_all(rows, settled)
        self._steps += 1
        self._changed.unpark_all()
        return len(await self._store.list_open(self.address))

    async def _advance_all(self, rows: Sequence[OutboxRow], settled: Sequence[OutboxRow]) -> str:
        """One step of each. Returns: the last problem. A node that fails often ends the round early."""
        problem, failures = "", 0
        try:
            head = await fetch_head(self._rpc)
            await self._reopen_lost(settled, head)
            view = await self._look(rows, head) if rows else None
        except RecoverableError as exc:
            self._is_watching = True
            return str(exc)
        except RpcRefused as exc:
            return exc.message
        for row in rows if view is not None else ():
            assert view is not None
            try:
                problem = await self._carrier.advance(row, view) or problem
            except RecoverableError as exc:
                problem, failures = str(exc), failures + 1
                if failures == _MAX_FAILURES:
                    break
        return problem

    async def _look(self, rows: Sequence[OutboxRow], head: BlockRef) -> View:
        settled = await fetch_block(self._rpc, max(0, head.number - self._policy.confirmations + 1))
        nonce = await ask_quantity(self._rpc, "eth_getTransactionCount", self.address, hex(settled.number))
        lowest = min((row.nonce for row in rows if row.nonce is not None), default=0)
        return View(head, settled, nonce, has_gap=lowest > nonce)

    async def _reopen_lost(self, settled: Sequence[OutboxRow], head: BlockRef) -> None:
        """Take back what was settled in blocks that a deep reorganisation replaced, the newest first.

        Where a block stands, all before it do.
        """
        recent = [row for row in settled if head.number - (row.block or 0) < REORG_BLOCKS]
        self._is_watching = bool(recent)
        lost: set[int | None] = set()
        for row in recent:
            if row.block is not None and row.block not in lost:
                block = await find_block(self._rpc, row.block)
                if block is None or block.hash == row.block_hash:
                    return
                lost.add(row.block)
            await self._store.reopen(self.address, row.key, detail=f"block {row.block} was reorganised out")
