"""Which node gets a call. Pure: a function of a snapshot of the nodes and of a draw.

The freest node wins, the longest unused one among equals. Among many nodes only a few drawn ones
are compared: the best of eight random nodes is nearly the best of all, at a cost that does not
grow with the network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Protocol, TypeVar

from emcd.types import Address

COMPARED = 8
_ALL_UP_TO = 32


class Candidate(Protocol):
    """What routing looks at."""

    @property
    def address(self) -> Address: ...
    @property
    def free(self) -> int:
        """Calls it may take now; 0 or less: full, or not to be used."""
        ...

    @property
    def last_used(self) -> int:
        """A counter that grows with every call given away."""
        ...


class NoRoute(Enum):
    """Why no node gets the call."""

    NONE = "no node"
    FULL = "all nodes are full"


C = TypeVar("C", bound=Candidate)


def choose_node(
    candidates: Sequence[C],
    *,
    only: Collection[Address] = (),
    exclude: Collection[Address] = (),
    draw: Callable[[int], int] | None = None,
) -> C | NoRoute:
    """Pick the node for a call.

    Args:
        candidates: online nodes that serve the model.
        only: the client's choice; empty: any.
        exclude: nodes that have failed this call already.
        draw: `draw(n)` is a number below n; without it all candidates are compared.

    Returns: the node, NONE (nobody fits) or FULL (somebody fits, and is busy).
    """
    if only or exclude:
        candidates = [c for c in candidates if (not only or c.address in only) and c.address not in exclude]
    if not candidates:
        return NoRoute.NONE
    if draw is not None and len(candidates) > _ALL_UP_TO:
        drawn = [candidates[draw(len(candidates))] for _ in range(COMPARED)]
        best = _freest(drawn)
        if best.free > 0:
            return best
    best = _freest(candidates)
    return best if best.free > 0 else NoRoute.FULL


def _freest(candidates: Sequence[C]) -> C:
    best = candidates[0]
    most, used = best.free, best.last_used
    for candidate in candidates[1:]:
        free = candidate.free
        if free > most or (free == most and candidate.last_used < used):
            best, most, used = candidate, free, candidate.last_used
    return best
