"""How often each node may come with other models than it had. Pure.

Invariant: what a node can make the hub remember grows with time, however often it reconnects.
"""

from __future__ import annotations

from typing import NamedTuple

from emcd.types import Address

BURST = 8
"""Changes at once: a node that starts, reconnects, or whose engine comes and goes."""


class _Left(NamedTuple):
    changes: float
    at_ms: int


class ModelPace:
    """One change every `every_ms`, and a burst of them, for every node."""

    def __init__(self, every_ms: int) -> None:
        self.every_ms = every_ms
        self._left: dict[Address, _Left] = {}

    def take(self, node: Address, now_ms: int) -> bool:
        """Whether the node may change its models now; if so, that is counted."""
        changes = self._changes(self._left.get(node), now_ms)
        if changes < 1:
            return False
        self._left[node] = _Left(changes - 1, now_ms)
        return True

    def forget(self, now_ms: int) -> None:
        """Drop the nodes that have their whole burst again."""
        for node, left in list(self._left.items()):
            if self._changes(left, now_ms) >= BURST:
                del self._left[node]

    def _changes(self, left: _Left | None, now_ms: int) -> float:
        if left is None:
            return BURST
        return min(BURST, left.changes + max(0, now_ms - left.at_ms) / max(1, self.every_ms))
