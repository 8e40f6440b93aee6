"""Events of our contracts into the ledger, each exactly once, through crashes and reorganisations.

Owns the walk over the blocks. The cursor is saved in the same ledger transaction as the effects of
the events up to it. Invariants: events come in chain order; nothing from a block that is not
`confirmations` deep; near the head, nothing from a range whose headers, filters and receipts do not
bear its logs out (`log_check`); when the block under a saved cursor has changed, the effects above the last
block that stands are undone before anything else is applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from emcd.chain.abi import DecodeError
from emcd.chain.blocks import BlockRef, fetch_block, fetch_head, find_block
from emcd.chain.call import Log, parse_log
from emcd.chain.log_check import CHECKED_BLOCKS, CHECKED_CHUNK, LogCheck, NumberCheck
from emcd.chain.proxies.contract import Contract
from emcd.chain.rpc import Rpc, RpcRefused
from emcd.errors import RecoverableError
from emcd.types import Address, Hash

CHUNK_BLOCKS = 2000
"""Blocks a request: public endpoints refuse more; halved when one refuses this too."""
SAVE_EVERY_BLOCKS = 50
"""An empty stretch is saved this often, so that a restart re-reads little."""
MAX_PAUSE_S = 30.0


@dataclass(frozen=True)
class ChainEvent:
    """One event; `contract` is the name given to the watcher ("staking")."""

    contract: str
    name: str
    args: dict[str, Any]
    block: int
    block_hash: Hash
    timestamp_s: int
    tx_hash: Hash
    log_index: int


class EventSink(Protocol):
    """Where events go. Each method is one ledger transaction."""

    async def load_cursors(self) -> Sequence[tuple[int, bytes]]:
        """Saved (block number, block hash), ascending; the newest ones are enough."""
        ...

    async def apply(self, events: Sequence[ChainEvent], number: int, block_hash: bytes) -> None:
        """Write the events' effects and the cursor. The events' blocks are not above `number`."""
        ...

    async def rollback(self, number: int) -> None:
        """Undo every effect from blocks above `number` and drop their cursors; -1 undoes all."""
        ...


class Watcher:
    """Follows some contracts for one sink. `problem` is what keeps it from going on."""

    def __init__(
        self,
        rpc: Rpc,
        contracts: dict[str, Contract],
        sink: EventSink,
        *,
        first_block: int,
        confirmations: int,
        poll_s: float,
        numbered: Mapping[str, NumberCheck] | None = None,
    ) -> None:
        """
        Args:
            numbered: checks of contracts whose events carry a number, by the contract's name here.
        """
        self.problem = ""
        self._rpc = rpc
        self._sink = sink
        self._by_address: dict[Address, tuple[str, Contract]] = {
            c.address: (n, c) for n, c in contracts.items()
        }
        self._first_block = first_block
        self._confirmations = confirmations
        self._poll_s = poll_s
        self._check = LogCheck(rpc, contracts.values())
        self._numbered = {name: check for name, check in (numbered or {}).items() if name in contracts}
        self._chunk = CHUNK_BLOCKS
        self._position: tuple[int, bytes] | None = None
        self._saved_number = -1

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the chain; `started()` when the head of the start is reached. Never returns.

        Raises: FatalError EMC-1501, or what the sink raises.
        Cancellation: between ledger transactions; the next start goes on from the cursor.
        """
        failures = 0
        started = False
        while True:
            try:
                await self.poll()
                self.problem, failures = "", 0
                if not started:
                    started = True
                    task_status.started()
            except (RecoverableError, RpcRefused) as exc:
                self.problem, failures = str(exc), failures + 1
            await trio.sleep(min(MAX_PAUSE_S, self._poll_s * 2.0 ** min(failures, 6)))

    async def poll(self) -> int:
        """Apply what is new up to the confirmed head. Returns: how many events.

        Raises: RecoverableError: try again later; what was applied stays.
        """
        head = await fetch_head(self._rpc)
        target = head.number - self._confirmations + 1
        position = await self._require_position()
        applied = 0
        while position[0] < target:
            is_checked = position[0] >= head.number - CHECKED_BLOCKS
            size = min(self._chunk, CHECKED_CHUNK) if is_checked else self._chunk
            last = await fetch_block(self._rpc, min(position[0] + size, target))
            try:
                logs = await self._fetch_logs(position[0] + 1, last)
            except RpcRefused:
                if size == 1:
                    raise
                self._chunk = size // 2
                continue
            self._chunk = min(CHUNK_BLOCKS, self._chunk + max(1, self._chunk // 8))
            blocks = await self._check_logs(position, last, logs, is_checked=is_checked)
            events = [e for e in (self._decode(log, blocks[log.block]) for log in logs) if e is not None]
            for name, check in self._numbered.items():
                ours = [(event.name, event.args) for event in events if event.contract == name]
                await check.require_whole(position, last, ours)
            position = (last.number, last.hash)
            if events or last.number - self._saved_number >= SAVE_EVERY_BLOCKS:
                await self._sink.apply(events, *position)
                self._saved_number = last.number
            self._position = position
            applied += len(events)
        return applied

    async def _require_position(self) -> tuple[int, bytes]:
        """The last block read that still stands; undoes what came from blocks that do not."""
        cursors = list(await self._sink.load_cursors())
        if cursors:
            self._saved_number = cursors[-1][0]
        ahead = self._position if not cursors or (self._position or (-1,))[0] > cursors[-1][0] else None
        if ahead is not None and await self._stands(ahead):
            return ahead
        for number, block_hash in reversed(cursors):
            if await self._stands((number, block_hash)):
                if (number, block_hash) != cursors[-1]:
                    await self._rollback(number)
                self._position = None
                return number, block_hash
        if cursors:
            await self._rollback(-1)
        self._position = None
        return self._first_block - 1, b""

    async def _rollback(self, number: int) -> None:
        await self._sink.rollback(number)
        self._saved_number = number

    async def _stands(self, cursor: tuple[int, bytes]) -> bool:
        """Raises: RecoverableError EMC-1505 when the node has not that many blocks: it lags."""
        block = await fetch_block(self._rpc, cursor[0])
        return block.hash == cursor[1]

    async def _fetch_logs(self, first: int, last: BlockRef) -> list[Log]:
        wanted = {
            "fromBlock": hex(first),
            "toBlock": hex(last.number),
            "address": list(self._by_address),
        }
        raw = await self._rpc.call("eth_getLogs", wanted)
        try:
            logs = sorted((parse_log(entry) for entry in raw), key=lambda log: (log.block, log.position))
        except (TypeError, KeyError, ValueError) as exc:
            raise RecoverableError("EMC-1507", f"eth_getLogs: {exc}") from exc
        self._require_honest(logs, first, last)
        return logs

    async def _check_logs(
        self, position: tuple[int, bytes], last: BlockRef, logs: Sequence[Log], *, is_checked: bool
    ) -> dict[int, BlockRef]:
        """The blocks of the logs, which stand, and of which these are the logs, as far as can be told."""
        if is_checked:
            return await self._check.require_whole(position, last, logs)
        await self._require_unchanged(position, last)
        blocks = {number: await fetch_block(self._rpc, number) for number in {log.block for log in logs}}
        for log in logs:
            if blocks[log.block].hash != log.block_hash:
                raise RecoverableError("EMC-1516", f"block {log.block}")
        return blocks

    async def _require_unchanged(self, position: tuple[int, bytes], last: BlockRef) -> None:
        """Both ends must stand after the logs were read, or the logs are of several chains."""
        for number, block_hash in (position, (last.number, last.hash)):
            if block_hash:
                block = await find_block(self._rpc, number)
                if block is None or block.hash != block_hash:
                    raise RecoverableError("EMC-1516", f"block {number}")

    def _require_honest(self, logs: Sequence[Log], first: int, last: BlockRef) -> None:
        seen = set()
        for log in logs:
            place = (log.block, log.position)
            if log.address not in self._by_address or not first <= log.block <= last.number or place in seen:
                raise RecoverableError("EMC-1507", f"eth_getLogs gave a log that was not asked for: {place}")
            seen.add(place)

    def _decode(self, log: Log, block: BlockRef) -> ChainEvent | None:
        name, contract = self._by_address[log.address]
        event = contract.find_event(log.topics[0]) if log.topics else None
        if event is None:
            return None
        try:
            args = event.decode(log.topics, log.data)
        except DecodeError as exc:
            raise RecoverableError("EMC-1507", f"event {event.name} in block {log.block}: {exc}") from exc
        return ChainEvent(
            name, event.name, args, log.block, log.block_hash, block.timestamp_s, log.tx_hash, log.position
        )
