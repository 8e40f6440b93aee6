"""The choice of a node: the strategies in their order.

1. A request that names nodes gets one of those, the freest one that is well; where none is well,
   also one that is suspended: who names a node means it, and probes must reach it. One that is
   broken is as if it were full, for them as for all: else calls that name it while nobody else
   comes would be known for probes.
2. What does not fit (price, quantization, nodes that have failed this call) is out in every step.
3. A request with a key (session or prompt) goes to the key's home, within the load bound.
4. Else the strategy decides: the least loaded node, or the one that is expected to answer first.

Invariant: a full or a broken node is never chosen, nor a suspended one by who does not name it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from emcd.scheduling.candidate import Candidate
from emcd.scheduling.ring import Ring
from emcd.scheduling.strategy import Draw, Fits, fastest, least_loaded
from emcd.types import Address

C = TypeVar("C", bound=Candidate)


class Pool(Generic[C]):
    """The nodes among which a call can choose. Its ring is made when a first key asks for it."""

    __slots__ = ("_by_address", "_ring", "nodes")

    def __init__(self, nodes: Sequence[C] = ()) -> None:
        self.nodes: list[C] = list(nodes)
        self._by_address = {node.address: node for node in nodes}
        self._ring: Ring[C] | None = None

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[C]:
        return iter(self.nodes)

    def add(self, node: C) -> None:
        """Take a node that is not in the pool."""
        self.nodes.append(node)
        self._by_address[node.address] = node
        if self._ring is not None:
            self._ring.add(node)

    def remove(self, node: C) -> None:
        """Forget a node of the pool."""
        self.nodes.remove(node)
        del self._by_address[node.address]
        if self._ring is not None:
            self._ring.remove(node)

    def find(self, address: Address) -> C | None:
        return self._by_address.get(address)

    @property
    def ring(self) -> Ring[C]:
        if self._ring is None:
            self._ring = Ring(self.nodes)
        return self._ring


def choose(
    pool: Pool[C],
    *,
    only: Sequence[Address] = (),
    fits: Fits[C] | None = None,
    key: int | None = None,
    slowness: Callable[[C], float] | None = None,
    draw: Draw | None = None,
) -> C | None:
    """Pick the node for a call.

    Args:
        only: the client's choice; empty: any.
        fits: whether a node may do this call at all.
        key: of a session or a prompt; calls of one key go together.
        slowness: given, the fastest node is picked and not the least loaded.

    Returns: the node; None where nobody who fits has room.
    """
    if only:
        return choose_pinned(pool, only, fits)
    if key is not None and len(pool.nodes) > 1:
        found = pool.ring.pick(key, pool.nodes, fits, draw)
        if found is not None:
            return found
    if slowness is not None:
        return fastest(pool.nodes, slowness, fits, draw)
    return least_loaded(pool.nodes, fits, draw)


def choose_pinned(pool: Pool[C], only: Sequence[Address], fits: Fits[C] | None = None) -> C | None:
    """The best of the named nodes: who is well before who is not."""
    named = [node for node in map(pool.find, only) if node is not None]
    best = least_loaded(named, fits)
    if best is not None:
        return best
    able = [node for node in named if node.spare > 0 and (fits is None or fits(node))]
    return max(able, key=lambda node: (node.spare, -node.last_used), default=None)
