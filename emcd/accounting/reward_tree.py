"""The tree of wallets and their cumulative wei, as OpenZeppelin's StandardMerkleTree lays it out.

A leaf is keccak(keccak(abi.encode(address, uint256))), leaves stand sorted by hash, pairs are
sorted: any tool that knows `standard-v1` verifies it. Source: github.com/OpenZeppelin/merkle-tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emcd.proto.address import address_bytes, hex_hash
from emcd.proto.hashing import keccak
from emcd.proto.merkle import build_proof, build_tree, root_from_proof
from emcd.types import ZERO_HASH, Address, Hash

LEAF_ENCODING = ("address", "uint256")


def reward_leaf(wallet: Address, cumulative_wei: int) -> Hash:
    """The leaf of a wallet. Raises: OverflowError when the amount is no uint256."""
    return keccak(keccak(bytes(12) + address_bytes(wallet) + cumulative_wei.to_bytes(32, "big")))


class RewardTree:
    """The tree of one round; wallets with 0 wei have no leaf."""

    def __init__(self, totals: Mapping[Address, int]) -> None:
        """Raises: ValueError when nobody has anything."""
        leaves = sorted(
            (reward_leaf(wallet, amount), wallet, amount)
            for wallet, amount in sorted(totals.items(), key=lambda item: address_bytes(item[0]))
            if amount
        )
        self._nodes = build_tree([leaf for leaf, _, _ in leaves])
        self._leaf_index = {wallet: index for index, (_, wallet, _) in enumerate(leaves)}
        self._totals = {wallet: amount for _, wallet, amount in leaves}

    @property
    def root(self) -> Hash:
        return self._nodes[0]

    def cumulative_wei(self, wallet: Address) -> int:
        """What the root gives a wallet over all rounds; 0 when it has no leaf."""
        return self._totals.get(wallet, 0)

    def proof(self, wallet: Address) -> tuple[Hash, ...]:
        """Raises: KeyError when the wallet has no leaf."""
        return tuple(build_proof(self._nodes, self._leaf_index[wallet]))

    def dump(self) -> dict[str, Any]:
        """What `StandardMerkleTree.load` of @openzeppelin/merkle-tree takes; values by address."""
        last = len(self._nodes) - 1
        return {
            "format": "standard-v1",
            "leafEncoding": list(LEAF_ENCODING),
            "tree": [hex_hash(node) for node in self._nodes],
            "values": [
                {"value": [wallet, str(self._totals[wallet])], "treeIndex": last - self._leaf_index[wallet]}
                for wallet in sorted(self._totals, key=address_bytes)
            ],
        }


def build_reward_tree(totals: Mapping[Address, int]) -> RewardTree:
    """The tree over the cumulative wei of every wallet. Raises: ValueError when nobody has anything."""
    return RewardTree(totals)


def compute_reward_root(totals: Mapping[Address, int]) -> Hash:
    """The root alone; zero when nobody has anything."""
    return RewardTree(totals).root if any(totals.values()) else ZERO_HASH


def verify_reward(root: bytes, wallet: Address, cumulative_wei: int, proof: Sequence[bytes]) -> bool:
    """Does the root give this wallet this much? As the contract asks it."""
    return root_from_proof(reward_leaf(wallet, cumulative_wei), proof) == root
