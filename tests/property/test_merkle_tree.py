"""Trees of batches and rewards: every leaf proves itself and nothing else does."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from emcd.accounting.reward_tree import build_reward_tree, verify_reward
from emcd.proto.address import address_from_bytes
from emcd.proto.merkle import build_proof, build_root, build_tree, root_from_proof
from emcd.types import Address
from tests.support import second_implementation as second

HASHES = st.binary(min_size=32, max_size=32)
ADDRESSES = st.binary(min_size=20, max_size=20).map(address_from_bytes)
TOTALS = st.dictionaries(ADDRESSES, st.integers(1, 2**256 - 1), min_size=1, max_size=40)


@given(st.lists(HASHES, min_size=1, max_size=70))
def test_tree_every_leaf_proves_itself(leaves: list[bytes]) -> None:
    tree = build_tree(leaves)
    assert tree[0] == build_root(leaves) == second.tree_root(leaves)
    for index, leaf in enumerate(leaves):
        proof = build_proof(tree, index)
        assert root_from_proof(leaf, proof) == second.climb(leaf, list(proof)) == tree[0]


@given(st.lists(HASHES, min_size=1, max_size=20, unique=True), HASHES, st.integers(0, 19))
def test_tree_another_leaf_does_not_prove_itself(leaves: list[bytes], stranger: bytes, index: int) -> None:
    tree = build_tree(leaves)
    if stranger not in leaves:
        assert root_from_proof(stranger, build_proof(tree, index % len(leaves))) != tree[0]


@given(TOTALS)
def test_reward_tree_equals_the_second_implementation(totals: dict[Address, int]) -> None:
    tree = build_reward_tree(totals)

    assert tree.root == second.standard_root(totals)
    for wallet, amount in totals.items():
        assert verify_reward(tree.root, wallet, amount, tree.proof(wallet))
        assert not verify_reward(tree.root, wallet, amount - 1, tree.proof(wallet))
        assert second.climb(second.standard_leaf(wallet, amount), list(tree.proof(wallet))) == tree.root


@given(TOTALS, st.randoms(use_true_random=False))
def test_reward_tree_does_not_depend_on_the_order(totals: dict[Address, int], random: Any) -> None:
    items = list(totals.items())
    random.shuffle(items)
    assert build_reward_tree(dict(items)).root == build_reward_tree(totals).root
