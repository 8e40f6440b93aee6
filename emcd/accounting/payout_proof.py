"""A wallet's proof from a bundle alone: the totals after its round, their tree, and its root. Pure.

Nothing of the bundle needs to be believed: when the root is the one that the contract has active,
the totals are those that the validators signed, whatever else the bytes hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emcd.accounting.reward_tree import RewardTree, build_reward_tree
from emcd.accounting.round_result import decode_totals
from emcd.proto.bundle import BundleHeader, ResultEntry, SnapshotEntry, Total
from emcd.proto.bundle_codec import Section, iter_section, read_header
from emcd.types import Address, Hash


@dataclass(frozen=True)
class WalletProof:
    """What a root gives a wallet; no proof and 0 when it gives nothing."""

    header: BundleHeader
    root: Hash
    cumulative_wei: int
    proof: tuple[Hash, ...]


def prove_wallet(data: Any, wallet: Address) -> WalletProof:
    """The wallet's leaf in the tree of a bundle's totals, the round's own rewards included.

    Args: data: the bundle's bytes, or a mapped file.

    Raises: BundleFault EMC-19xx when the parts that matter can't be read.
    """
    header = read_header(data)
    tree = _build_tree(data)
    cumulative_wei = tree.cumulative_wei(wallet) if tree is not None else 0
    if tree is None or not cumulative_wei:
        return WalletProof(header, tree.root if tree is not None else Hash(bytes(32)), 0, ())
    return WalletProof(header, tree.root, cumulative_wei, tuple(tree.proof(wallet)))


def _build_tree(data: Any) -> RewardTree | None:
    before: Iterator[Total] = iter_section(data, Section.TOTALS)
    seats: Iterator[SnapshotEntry] = iter_section(data, Section.PARTICIPANTS)
    results: Iterator[ResultEntry] = iter_section(data, Section.RESULTS)
    totals = decode_totals(before)
    wallets = {seat.node: seat.wallet for seat in seats}
    for result in results:
        reward_wei = int.from_bytes(result.reward_wei, "big")
        if reward_wei and result.node in wallets:
            wallet = wallets[result.node]
            totals[wallet] = totals.get(wallet, 0) + reward_wei
    held = {wallet: amount for wallet, amount in totals.items() if amount}
    return build_reward_tree(held) if held else None
