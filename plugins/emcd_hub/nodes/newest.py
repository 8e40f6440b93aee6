"""The newest status of each node that was believed, whichever way it came. Pure.

A tunnel of its own proves that a node is there; through a router only its signed status does. So
one that is older than the newest, or the newest again, proves nothing: a router that kept it back
could bring a node that has gone elsewhere. Invariant: what is forgotten is too old to be believed.
"""

from __future__ import annotations

from typing import NamedTuple

from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.types import Address

KEEP_MS = 2 * MAX_CLOCK_SKEW_MS + 1
"""A status is believed while its time is within the skew of the hub's, before it and after it."""


class _Seen(NamedTuple):
    sequence: int
    at_ms: int


class NewestStatus:
    """Sequences by node."""

    def __init__(self) -> None:
        self._seen: dict[Address, _Seen] = {}

    def is_newer(self, node: Address, sequence: int) -> bool:
        """Whether a status with this sequence comes after all that were noted."""
        seen = self._seen.get(node)
        return seen is None or sequence > seen.sequence

    def note(self, node: Address, sequence: int, now_ms: int) -> None:
        """A status was believed."""
        if self.is_newer(node, sequence):
            self._seen[node] = _Seen(sequence, now_ms)

    def forget(self, now_ms: int) -> None:
        """Drop what no old status could be held against any more."""
        for node in [node for node, seen in self._seen.items() if seen.at_ms < now_ms - KEEP_MS]:
            del self._seen[node]
