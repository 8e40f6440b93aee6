"""The split of a round's issue. Source: DESIGN 2.5; tests/vectors/settlement.json.

Invariant: the parts sum to the whole, to the wei; when the weights sum to 0 nothing is given.
"""

from __future__ import annotations

from collections.abc import Mapping

from emcd.proto.address import address_bytes
from emcd.types import Address


def split_rewards(issue_wei: int, weights: Mapping[Address, int]) -> dict[Address, int]:
    """Floors, then one wei each to the largest remainders, ties to the lower address.

    Returns every address of `weights`, in ascending order of its bytes. Raises: ValueError on a
    negative amount.
    """
    total = sum(weights.values())
    if issue_wei < 0 or any(weight < 0 for weight in weights.values()):
        raise ValueError("neither the issue nor a weight may be negative")
    ordered = sorted(weights, key=address_bytes)
    if not total:
        return dict.fromkeys(ordered, 0)
    rewards: dict[Address, int] = {}
    remainders: dict[Address, int] = {}
    for address in ordered:
        rewards[address], remainders[address] = divmod(issue_wei * weights[address], total)
    rest = issue_wei - sum(rewards.values())
    for address in sorted(ordered, key=lambda item: -remainders[item])[:rest]:
        rewards[address] += 1
    return rewards
