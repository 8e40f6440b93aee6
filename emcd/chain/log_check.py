"""Holds the logs that a node gave against what else it says: headers, bloom filters, receipts, counts.

This finds logs that were left out or made up by a node that is broken, behind with its index, or careless
with its lies; against one that makes a whole chain up, only a second endpoint helps (`[chain] agree`).
Invariant: what is found is a RecoverableError, and the endpoint that gave the logs is avoided.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from emcd.chain.blocks import BlockRef, Header, fetch_header
from emcd.chain.bloom import Bloom
from emcd.chain.call import Log, parse_log
from emcd.chain.parallel import ask_each
from emcd.chain.proxies.contract import Contract
from emcd.chain.rpc import Rpc, RpcRefused, accuse
from emcd.errors import RecoverableError
from emcd.types import Address, Hash

CHECKED_BLOCKS = 1_000
"""How far below the head every block's header is read (2 ms of CPU each): further back it would take too
long, and is left to `agree` and to the numbers of events."""
CHECKED_CHUNK = 250
MAX_BLOCK_TXS = 2_000
"""Receipts of one block that are asked for one by one, where a node can't give them together."""

_ABSENT_STATE = frozenset(("EMC-1505", "EMC-1514"))


class LogCheck:
    """Checks ranges of blocks for the logs of some contracts."""

    def __init__(self, rpc: Rpc, contracts: Collection[Contract]) -> None:
        self._rpc = rpc
        self._topics: Mapping[Address, Collection[bytes]] = {c.address: c.abi.events for c in contracts}
        self._can_give_receipts = True

    async def require_whole(
        self, before: tuple[int, bytes], last: BlockRef, logs: Sequence[Log]
    ) -> dict[int, BlockRef]:
        """Check that these are the logs of all blocks after `before` up to `last`.

        Returns: the blocks by number.
        Raises: RecoverableError EMC-1516 (the chain changed meanwhile), EMC-1520 (the node's answers
            contradict one another); RpcRefused when it gives neither logs nor receipts of a block.
        """
        headers = await ask_each(
            range(before[0] + 1, last.number + 1), lambda number: fetch_header(self._rpc, number)
        )
        self._require_chain(before, headers, last)
        by_block: dict[int, list[Log]] = {}
        for log in logs:
            by_block.setdefault(log.block, []).append(log)
        for header in headers:
            await self._require_logs(header, by_block.get(header.ref.number, []))
        return {header.ref.number: header.ref for header in headers}

    def _require_chain(self, before: tuple[int, bytes], headers: Sequence[Header], last: BlockRef) -> None:
        if before[1] and headers[0].ref.parent_hash != before[1]:
            raise RecoverableError("EMC-1516", f"block {before[0]}")
        if headers[-1].ref.hash != last.hash:
            raise RecoverableError("EMC-1516", f"block {last.number}")
        for one, next_one in pairwise(header.ref for header in headers):
            if next_one.parent_hash != one.hash:
                raise RecoverableError("EMC-1516", f"block {next_one.number} does not follow {one.number}")
            if next_one.timestamp_s < one.timestamp_s:
                self._contradict("eth_getBlockByNumber", f"block {next_one.number} is older than its parent")

    async def _require_logs(self, header: Header, given: list[Log]) -> None:
        number = header.ref.number
        if any(log.block_hash != header.ref.hash for log in given):
            raise RecoverableError("EMC-1516", f"block {number}")
        if not header.bloom.covers(Bloom.of(given)):
            self._contradict("eth_getLogs", f"block {number} has no room for the logs that were given for it")
        if not any(header.bloom.may_hold(address, topics) for address, topics in self._topics.items()):
            return
        known = await self._fetch_logs(header)
        if {_identity(log) for log in given} != {_identity(log) for log in known}:
            self._contradict(
                "eth_getLogs", f"{len(given)} logs were given for block {number}, it has {len(known)}"
            )

    async def _fetch_logs(self, header: Header) -> list[Log]:
        """Our logs in a block by another way than a range: its receipts, or its hash where these tell little."""
        if not header.bloom.is_telling:
            block_hash = "0x" + header.ref.hash.hex()
            wanted = {"blockHash": block_hash, "address": list(self._topics)}
            raw = await self._rpc.call("eth_getLogs", wanted)
            return [log for log in _read_logs(raw, header) if log.address in self._topics]
        receipts = await self._fetch_receipts(header)
        try:
            logs = [log for receipt in receipts for log in _read_logs(receipt["logs"], header)]
        except (TypeError, KeyError) as exc:
            raise RecoverableError("EMC-1507", f"receipts of block {header.ref.number}: {exc}") from exc
        if len(receipts) != len(header.tx_hashes) or Bloom.of(logs) != header.bloom:
            self._contradict(
                "eth_getBlockReceipts",
                f"the receipts of block {header.ref.number} are not those of its header",
            )
        return [log for log in logs if log.address in self._topics]

    async def _fetch_receipts(self, header: Header) -> Sequence[Any]:
        if self._can_give_receipts:
            try:
                found = await self._rpc.call("eth_getBlockReceipts", hex(header.ref.number))
            except RpcRefused:
                self._can_give_receipts = False
            else:
                return found if isinstance(found, list) else []
        if len(header.tx_hashes) > MAX_BLOCK_TXS:
            raise RecoverableError("EMC-1507", f"block {header.ref.number} has too many transactions")
        return await ask_each(
            header.tx_hashes,
            lambda tx_hash: self._rpc.call("eth_getTransactionReceipt", "0x" + tx_hash.hex()),
        )

    def _contradict(self, method: str, what: str) -> NoReturn:
        accuse(self._rpc, method, what)
        raise RecoverableError("EMC-1520", what)


class NumberCheck:
    """Holds a contract's numbered events against its own count of them: none is left out, none made up.

    The count is read where the node still has the state: an archive node has it always, others for the
    last hundred blocks or so.
    """

    def __init__(self, rpc: Rpc, contract: Contract, event: str, arg: str, count: str) -> None:
        """
        Args:
            arg: the event's argument that counts from 0 on, `count` the view that says how many there are.
        """
        self._rpc = rpc
        self._contract = contract
        self._event = event
        self._arg = arg
        self._count = count
        self._known: tuple[tuple[int, bytes], int] | None = None

    async def require_whole(
        self,
        before: tuple[int, bytes],
        last: BlockRef,
        found: Sequence[tuple[str, Mapping[str, Any]]],
    ) -> None:
        """Check the events (name and arguments) of the blocks after `before` up to `last`.

        Raises: RecoverableError EMC-1520 when a number is missing, or comes twice.
        """
        if self._known is not None and self._known[0] == before:
            expected: int | None = self._known[1]
        else:
            expected = await self._fetch_count(before) if before[1] else 0
        for name, args in found:
            if name == self._event:
                if expected is not None and args[self._arg] != expected:
                    self._contradict(f"{name} {args[self._arg]} came where {expected} must")
                expected = args[self._arg] + 1
        position = (last.number, bytes(last.hash))
        count = await self._fetch_count(position)
        if None not in (count, expected) and count != expected:
            self._contradict(f"{expected} {self._event} were given, the contract counts {count}")
        expected = count if expected is None else expected
        self._known = None if expected is None else (position, expected)

    async def _fetch_count(self, block: tuple[int, bytes]) -> int | None:
        """None where the node has not the state of that block any more, or nothing was there yet."""
        at = BlockRef(block[0], Hash(block[1]), 0, Hash(bytes(32)))
        try:
            return int(await self._contract.view_one(self._count, at=at))
        except RecoverableError as exc:
            if exc.code in _ABSENT_STATE:
                return None
            raise

    def _contradict(self, what: str) -> NoReturn:
        accuse(self._rpc, "eth_getLogs", what)
        raise RecoverableError("EMC-1520", what)


def _read_logs(raw: Any, header: Header) -> list[Log]:
    try:
        logs = [parse_log(entry) for entry in raw]
    except (TypeError, KeyError, ValueError) as exc:
        raise RecoverableError("EMC-1507", f"logs of block {header.ref.number}: {exc}") from exc
    if any(log.block_hash != header.ref.hash for log in logs):
        raise RecoverableError("EMC-1516", f"block {header.ref.number}")
    return logs


def _identity(log: Log) -> tuple[Any, ...]:
    return log.position, log.address, log.topics, log.data, log.tx_hash
