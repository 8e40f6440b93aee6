"""The Merkle tree over a corpus: what a plan commitment binds. Pure.

Other than the trees of batches it binds positions: a leaf's place follows from its index, and the
number of leaves stands in the root, so that one index has one leaf and a draw modulo the count
has one outcome. Leaves are padded with zero hashes to a power of two; root =
keccak(0x02 || count || top). A path longer or shorter than the count demands is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from emcd.proto.hashing import keccak
from emcd.types import ZERO_HASH, Hash

MAX_LEAVES = 1 << 20


def leaf_hash(data: bytes) -> Hash:
    """The hash of an encoded leaf."""
    return keccak(b"\0" + data)


def build_levels(hashes: Sequence[bytes]) -> list[list[Hash]]:
    """All levels, leaves first, the top alone last. Raises: ValueError without leaves or with too many."""
    if not 0 < len(hashes) <= MAX_LEAVES:
        raise ValueError(f"a corpus tree has 1 to {MAX_LEAVES} leaves, not {len(hashes)}")
    width = 1 << _depth(len(hashes))
    level = [Hash(item) for item in hashes] + [ZERO_HASH] * (width - len(hashes))
    levels = [level]
    while len(level) > 1:
        level = [_parent(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        levels.append(level)
    return levels


def compute_root(count: int, top: bytes) -> Hash:
    """The corpus root from the number of leaves and the top of the tree."""
    return keccak(b"\2" + count.to_bytes(4, "big") + top)


def build_path(levels: Sequence[Sequence[Hash]], index: int) -> tuple[Hash, ...]:
    """The siblings from the leaf to the top."""
    return tuple(level[(index >> depth) ^ 1] for depth, level in enumerate(levels[:-1]))


def is_leaf(root: bytes, count: int, index: int, hashed: bytes, path: Sequence[bytes]) -> bool:
    """Whether the leaf stands at `index` among `count` leaves below the root."""
    if not 0 < count <= MAX_LEAVES or not 0 <= index < count or len(path) != _depth(count):
        return False
    node = Hash(hashed)
    for depth, sibling in enumerate(path):
        if len(sibling) != 32:
            return False
        node = _parent(sibling, node) if index >> depth & 1 else _parent(node, sibling)
    return compute_root(count, node) == root


def _depth(count: int) -> int:
    return (count - 1).bit_length()


def _parent(left: bytes, right: bytes) -> Hash:
    return keccak(b"\1" + left + right)
