"""Blocks: the head, a block by number, a header, and the last block at or before a time.

Invariant: a `BlockRef` is always what one node said of one block; whoever relies on it across
reorganisations compares hashes. Timestamps that fall along the chain are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emcd.chain.bloom import Bloom
from emcd.chain.rpc import Rpc, accuse
from emcd.errors import RecoverableError
from emcd.types import Hash


@dataclass(frozen=True)
class BlockRef:
    """One block's identity."""

    number: int
    hash: Hash
    timestamp_s: int
    parent_hash: Hash


@dataclass(frozen=True)
class Header:
    """A block with what proves its contents: its logs' bloom filter and its transactions."""

    ref: BlockRef
    bloom: Bloom
    tx_hashes: tuple[Hash, ...]


async def fetch_head(rpc: Rpc) -> BlockRef:
    """The newest block."""
    return parse_block(await rpc.call("eth_getBlockByNumber", "latest", False))


async def find_block(rpc: Rpc, number: int) -> BlockRef | None:
    """The block of a number; None while there is none."""
    raw = await rpc.call("eth_getBlockByNumber", hex(number), False)
    if raw is None:
        return None
    block = parse_block(raw)
    if block.number != number:
        raise RecoverableError("EMC-1507", f"asked for block {number}, got {block.number}")
    return block


async def fetch_block(rpc: Rpc, number: int) -> BlockRef:
    """Raises: RecoverableError EMC-1505 when there is none."""
    block = await find_block(rpc, number)
    if block is None:
        raise RecoverableError("EMC-1505", f"block {number}")
    return block


async def fetch_header(rpc: Rpc, number: int) -> Header:
    """Raises: RecoverableError EMC-1505 when there is no such block."""
    raw = await rpc.call("eth_getBlockByNumber", hex(number), False)
    if raw is None:
        raise RecoverableError("EMC-1505", f"block {number}")
    ref = parse_block(raw)
    if ref.number != number:
        raise RecoverableError("EMC-1507", f"asked for block {number}, got {ref.number}")
    try:
        return Header(ref, Bloom.from_hex(raw["logsBloom"]), tuple(read_hash(h) for h in raw["transactions"]))
    except (TypeError, KeyError, ValueError) as exc:
        raise RecoverableError("EMC-1507", f"block {number}: {exc}") from exc


async def find_block_at(rpc: Rpc, time_s: int, head: BlockRef, first: int = 0) -> BlockRef:
    """The last block with timestamp <= time_s. Raises: as `find_boundary` does."""
    return (await find_boundary(rpc, time_s, head, first))[0]


async def find_boundary(rpc: Rpc, time_s: int, head: BlockRef, first: int = 0) -> tuple[BlockRef, BlockRef]:
    """The last block with timestamp <= time_s and the one after it, by interpolation and bisection.

    Timestamps never fall along a chain, but blocks may share one: so the head must be later than
    `time_s` before the answer is decided. About 4 requests on a chain with steady blocks, and never
    more than twice the binary logarithm of its length.

    Args:
        first: a block known to be old enough, where the search begins.

    Raises: RecoverableError EMC-1506 while a block yet to come could be it, EMC-1505 when the chain
        began later, EMC-1516 when the chain changed meanwhile, EMC-1520 when timestamps fall along it.
    """
    if head.timestamp_s <= time_s:
        raise RecoverableError("EMC-1506", f"{time_s} (the head {head.number} is of {head.timestamp_s})")
    low = await fetch_block(rpc, min(first, head.number))
    if low.timestamp_s > time_s and low.number:
        low = await fetch_block(rpc, 0)
    if low.timestamp_s > time_s:
        raise RecoverableError(
            "EMC-1505", f"none at or before {time_s}: the chain begins at {low.timestamp_s}"
        )
    high = head
    interpolate = True
    while high.number - low.number > 1:
        guess = _guess(low, high, time_s) if interpolate else (low.number + high.number) // 2
        block = await fetch_block(rpc, guess)
        if not low.timestamp_s <= block.timestamp_s <= high.timestamp_s:
            what = (
                f"block {guess} is of {block.timestamp_s}, between {low.timestamp_s} and {high.timestamp_s}"
            )
            accuse(rpc, "eth_getBlockByNumber", what)
            raise RecoverableError("EMC-1520", what)
        span = high.number - low.number
        if block.timestamp_s <= time_s:
            low = block
        else:
            high = block
        interpolate = not interpolate or (high.number - low.number) * 2 <= span
    if high.parent_hash != low.hash:
        raise RecoverableError("EMC-1516", f"block {high.number} does not follow block {low.number}")
    return low, high


def _guess(low: BlockRef, high: BlockRef, time_s: int) -> int:
    span = max(1, high.timestamp_s - low.timestamp_s)
    offset = (time_s - low.timestamp_s) * (high.number - low.number) // span
    return min(max(low.number + offset, low.number + 1), high.number - 1)


def parse_block(raw: Any) -> BlockRef:
    """Raises: RecoverableError EMC-1507 when it is no block."""
    try:
        return BlockRef(
            number=int(raw["number"], 16),
            hash=read_hash(raw["hash"]),
            timestamp_s=int(raw["timestamp"], 16),
            parent_hash=read_hash(raw["parentHash"]),
        )
    except (TypeError, KeyError, ValueError) as exc:
        raise RecoverableError("EMC-1507", f"not a block: {raw!r:.80}") from exc


def read_hash(value: Any) -> Hash:
    """A 32-byte hash of a node's answer. Raises: ValueError, TypeError."""
    raw = bytes.fromhex(value[2:])
    if len(raw) != 32 or not value.startswith("0x"):
        raise ValueError(f"{value!r:.80} is not a hash")
    return Hash(raw)
