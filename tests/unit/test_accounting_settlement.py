from __future__ import annotations

import msgspec
import pytest

from emcd.accounting.reward_tree import build_reward_tree, compute_reward_root, reward_leaf, verify_reward
from emcd.accounting.settlement import split_rewards
from emcd.accounting.weights import (
    effective_stake_floor,
    encode_weight,
    is_lock_known,
    multiplier_bps,
    reward_weight,
    settle_locks,
)
from emcd.proto.address import address_bytes
from emcd.proto.bundle import SnapshotEntry
from emcd.proto.params import NetworkParams
from emcd.types import ZERO_HASH, Address, ParticipantRole
from tests.support import second_implementation as second
from tests.support.round_world import address_of

PARAMS = NetworkParams(0)
A, B, C = sorted((address_of(name) for name in "abc"), key=address_bytes)


@pytest.mark.parametrize(
    ("issue", "weights", "rewards"),
    [
        (10, {A: 1, B: 1, C: 1}, [4, 3, 3]),
        (11, {A: 1, B: 1, C: 1}, [4, 4, 3]),
        (10, {A: 0, B: 1, C: 1}, [0, 5, 5]),
        (1, {A: 1, B: 2, C: 2}, [0, 1, 0]),
        (100, {A: 1, B: 1, C: 998}, [0, 0, 100]),
        (0, {A: 1, B: 1, C: 1}, [0, 0, 0]),
        (10, {A: 0, B: 0, C: 0}, [0, 0, 0]),
    ],
)
def test_split_is_by_largest_remainder_ties_to_the_lower_address(
    issue: int, weights: dict[Address, int], rewards: list[int]
) -> None:
    assert list(split_rewards(issue, weights).values()) == rewards
    assert split_rewards(issue, weights) == second.rewards(issue, weights)


def test_split_among_nobody_gives_nothing() -> None:
    assert split_rewards(10, {}) == {}


@pytest.mark.parametrize(("issue", "weights"), [(-1, {A: 1}), (1, {A: -1, B: 5})])
def test_split_negative_amount_is_refused(issue: int, weights: dict[Address, int]) -> None:
    with pytest.raises(ValueError):
        split_rewards(issue, weights)


@pytest.mark.parametrize(
    ("role", "days", "bps"),
    [
        (1, 0, 10_000),
        (1, 7, 14_000),
        (1, 30, 27_000),
        (1, 90, 62_000),
        (1, 180, 100_000),
        (1, 6, 10_000),
        (1, 400, 100_000),
        (2, 180, 10_000),
        (3, 360, 10_000),
    ],
)
def test_multiplier_by_role_and_lock(role: int, days: int, bps: int) -> None:
    assert multiplier_bps(PARAMS, role, days) == bps


def test_weight_is_the_exact_product() -> None:
    assert reward_weight(PARAMS, 3, 5, ParticipantRole.COMPUTE, 7) == 3 * 5 * 14_000
    assert effective_stake_floor(PARAMS, 5, ParticipantRole.COMPUTE, 7) == 7
    assert encode_weight(1) == bytes(63) + b"\1"


def test_snapshot_names_locks_that_the_table_lost_by_the_next_shorter_row() -> None:
    fewer = msgspec.structs.replace(PARAMS, compute_locks=((0, 10_000), (30, 20_000)))
    rows = [
        SnapshotEntry(A, B, int(ParticipantRole.COMPUTE), bytes(32), days, 0) for days in (0, 7, 30, 90, 180)
    ] + [SnapshotEntry(A, B, int(ParticipantRole.VALIDATOR), bytes(32), 360, 0)]

    assert [entry.lock_days for entry in settle_locks(fewer, rows)] == [0, 0, 30, 30, 30, 360]
    assert settle_locks(PARAMS, rows) == tuple(rows)
    assert all(is_lock_known(fewer, entry.role, entry.lock_days) for entry in settle_locks(fewer, rows))
    assert not is_lock_known(fewer, ParticipantRole.COMPUTE, 90)


def test_tree_one_wallet_has_an_empty_proof() -> None:
    tree = build_reward_tree({A: 5})

    assert tree.root == reward_leaf(A, 5) == second.standard_root({A: 5})
    assert tree.proof(A) == ()
    assert verify_reward(tree.root, A, 5, ())


def test_tree_known_root_of_openzeppelins_documentation() -> None:
    """The example of the README of @openzeppelin/merkle-tree."""
    tree = build_reward_tree(
        {
            Address("0x" + "11" * 20): 5000000000000000000,
            Address("0x" + "22" * 20): 2500000000000000000,
        }
    )

    assert tree.root.hex() == "d4dee0beab2d53f2cc83e567171bd2820e49898130a22622b10ead383e90bd77"


def test_tree_wallets_without_anything_have_no_leaf() -> None:
    tree = build_reward_tree({A: 5, B: 0})

    assert tree.root == build_reward_tree({A: 5}).root
    assert tree.cumulative_wei(B) == 0
    with pytest.raises(KeyError):
        tree.proof(B)


def test_tree_root_of_nobody_is_zero() -> None:
    assert compute_reward_root({}) == compute_reward_root({A: 0}) == ZERO_HASH
    with pytest.raises(ValueError):
        build_reward_tree({A: 0})


@pytest.mark.parametrize("lie", ["amount", "wallet", "proof", "root"])
def test_tree_wrong_claim_is_refused(lie: str) -> None:
    tree = build_reward_tree({A: 5, B: 6, C: 7})
    root = bytes(32) if lie == "root" else tree.root
    proof = tree.proof(B) if lie == "proof" else tree.proof(A)

    assert not verify_reward(root, B if lie == "wallet" else A, 6 if lie == "amount" else 5, proof)
    assert verify_reward(tree.root, A, 5, tree.proof(A))


def test_tree_dump_is_standard_v1() -> None:
    tree = build_reward_tree({A: 5, B: 6, C: 7})
    dump = tree.dump()

    assert dump["format"] == "standard-v1"
    assert dump["leafEncoding"] == ["address", "uint256"]
    assert dump["tree"][0] == "0x" + tree.root.hex()
    for row in dump["values"]:
        wallet, amount = row["value"]
        assert dump["tree"][row["treeIndex"]] == "0x" + second.standard_leaf(wallet, int(amount)).hex()


def test_tree_amount_over_256_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        build_reward_tree({A: 2**256})
