"""Consistent hashing with bounded loads: calls that belong together go to one node.

An engine keeps what it has computed of a prompt; a call with the same beginning is cheap there and
dear elsewhere. Each node stands at a few points of a ring, a key belongs to the first node at or
after it. Invariants: the home of a key changes only when its node comes or goes, so of n nodes one
more moves one key in n + 1; a node that has more than its share passes keys on to the next, so a
hot key spreads. Looking up costs a bisection, however many nodes there are.

Source: Karger et al. 1997; Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from typing import Generic, TypeVar
from zlib import crc32

from emcd.scheduling.candidate import Candidate
from emcd.scheduling.strategy import ALL_UP_TO, COMPARED, Draw, Fits

POINTS = 16
"""Places of a node: its share is even to a quarter; the load bound evens out the rest."""
PREFIX_BYTES = 1024
"""How much of a prompt is looked at. Shorter prompts have no home: to read them anew costs little."""
_START_WITHIN = 4096
_LOOKED_AT = 64
"""Points that are tried before the key gets no home."""
_SHARE_NUM, _SHARE_DEN = 5, 4
"""A node may have a quarter more than its part of the calls in flight."""
_SPREAD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

C = TypeVar("C", bound=Candidate)


def session_key(session: str) -> int:
    """The place of a session's name."""
    return crc32(session.encode("utf-8", "surrogatepass")) * _SPREAD & _MASK


def prefix_key(body: bytes, start: bytes) -> int | None:
    """The place of a prompt's beginning; None for one that is too short to matter.

    Args:
        body: the request as JSON.
        start: where the prompt begins, as `"messages":`; a body without it counts from its first byte.
    """
    at = body.find(start, 0, _START_WITHIN)
    first = at + len(start) if at >= 0 else 0
    if len(body) - first < PREFIX_BYTES:
        return None
    return crc32(memoryview(body)[first : first + PREFIX_BYTES]) * _SPREAD & _MASK


class Ring(Generic[C]):
    """The places of nodes."""

    def __init__(self, nodes: Sequence[C] = ()) -> None:
        placed = sorted(
            ((point, node) for node in nodes for point in _places(node)), key=lambda item: item[0]
        )
        self._points = [point for point, _ in placed]
        self._nodes = [node for _, node in placed]

    def add(self, node: C) -> None:
        for point in _places(node):
            at = bisect_right(self._points, point)
            self._points.insert(at, point)
            self._nodes.insert(at, node)

    def remove(self, node: C) -> None:
        for point in _places(node):
            at = bisect_left(self._points, point)
            while self._nodes[at] is not node:
                at += 1
            del self._points[at], self._nodes[at]

    def home(self, key: int) -> C | None:
        """The node a key belongs to, whatever its load."""
        return self._nodes[bisect_left(self._points, key) % len(self._nodes)] if self._nodes else None

    def pick(
        self, key: int, candidates: Sequence[C], fits: Fits[C] | None = None, draw: Draw | None = None
    ) -> C | None:
        """The first node from the key on that fits, has room and not more than its share of the load.

        A node that is less than half full keeps what is its own: to spread would gain nothing.

        Args:
            candidates: the nodes of the ring, whose load is the measure; of many, some are drawn.

        Returns: None where no such node is near; then the load alone decides.
        """
        nodes = self._nodes
        size = len(nodes)
        at = bisect_left(self._points, key)
        passed: list[C] = []
        calls = room = 0
        for step in range(min(size, _LOOKED_AT)):
            node = nodes[(at + step) % size]
            if node.room <= 0 or node in passed:
                continue
            if fits is not None and not fits(node):
                continue
            if 2 * node.in_flight < node.capacity:
                return node
            if not room:
                calls, room = _measure(candidates, draw)
            if node.in_flight * room * _SHARE_DEN < _SHARE_NUM * (calls + 1) * node.capacity:
                return node
            passed.append(node)
        return None


def _measure(candidates: Sequence[Candidate], draw: Draw | None) -> tuple[int, int]:
    """Calls in flight and capacity of the nodes, or of some of many."""
    if draw is not None and len(candidates) > ALL_UP_TO:
        number = len(candidates)
        candidates = [candidates[draw(number)] for _ in range(COMPARED)]
    calls = sum(item.in_flight for item in candidates)
    return calls, max(1, sum(item.capacity for item in candidates))


def _places(node: Candidate) -> list[int]:
    seed = node.address.encode()
    places = []
    for block in range(POINTS // 8):
        digest = blake2b(seed, digest_size=64, salt=bytes((block,))).digest()
        places += [int.from_bytes(digest[i : i + 8], "big") for i in range(0, 64, 8)]
    return places
