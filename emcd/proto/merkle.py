"""Merkle trees of 32-byte leaves with sorted pairs, laid out as OpenZeppelin's library does.

The tree of n leaves is a heap of 2n-1 hashes: leaf i stands at 2n-2-i, the root at 0, a parent is
keccak(min(a, b) || max(a, b)). Leaves must be hashes of something that is not 64 bytes long.
Source: github.com/OpenZeppelin/merkle-tree (`SimpleMerkleTree`, leaves unsorted).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emcd.proto.hashing import keccak, keccak_each
from emcd.types import Hash


def hash_pair(a: bytes, b: bytes) -> Hash:
    """The parent of two nodes, whichever stands left."""
    return keccak(a + b if a < b else b + a)


def build_tree(leaves: Sequence[bytes]) -> list[Hash]:
    """All nodes, root first. Raises: ValueError without leaves."""
    count = len(leaves)
    if not count:
        raise ValueError("a tree needs a leaf")
    tree: list[Any] = [b""] * (count - 1)
    tree += reversed(leaves)
    for index in range(count - 2, -1, -1):
        a, b = tree[2 * index + 1], tree[2 * index + 2]
        tree[index] = keccak(a + b if a < b else b + a)
    return tree


def build_root(leaves: Sequence[bytes]) -> Hash:
    """The root alone."""
    return build_tree(leaves)[0]


def build_proof(tree: Sequence[Hash], leaf_index: int) -> list[Hash]:
    """The siblings from leaf to root of the leaf given as the leaf_index-th to `build_tree`."""
    node = len(tree) - 1 - leaf_index
    if not 0 <= leaf_index <= len(tree) // 2:
        raise IndexError(f"the tree has no leaf {leaf_index}")
    proof = []
    while node:
        proof.append(tree[node + 1 if node % 2 else node - 1])
        node = (node - 1) // 2
    return proof


def root_from_proof(leaf: bytes, proof: Sequence[bytes]) -> Hash:
    """The root that a leaf and its proof lead to."""
    node = Hash(leaf)
    for sibling in proof:
        node = hash_pair(node, sibling)
    return node


def record_leaf(record_hash: bytes) -> Hash:
    """The leaf of a record in its batch: keccak of its struct hash."""
    return keccak(record_hash)


def record_leaves(record_hashes: Sequence[bytes]) -> list[Hash]:
    """`record_leaf` of each."""
    return keccak_each(record_hashes)
