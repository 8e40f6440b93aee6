"""Strategies: each picks one of several nodes with room. Pure functions of what is passed.

Among many nodes only a few drawn ones are compared: the best of eight random nodes is nearly the
best of all, at a cost that does not grow with the network. Where none of those fits, all are
looked at, so a node that fits is always found. Invariant: what is picked has room and fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from emcd.scheduling.candidate import Candidate

COMPARED = 8
ALL_UP_TO = 32
"""So many nodes are compared one by one: it takes no longer than drawing."""

C = TypeVar("C", bound=Candidate)
Fits = Callable[[C], bool]
Draw = Callable[[int], int]
"""`draw(n)` is a number below n."""


def least_loaded(candidates: Sequence[C], fits: Fits[C] | None = None, draw: Draw | None = None) -> C | None:
    """The node with the most room, the longest unused one among equals."""
    if draw is not None and len(candidates) > ALL_UP_TO:
        best = _freest(_some(candidates, draw), fits)
        if best is not None:
            return best
    return _freest(candidates, fits)


def fastest(
    candidates: Sequence[C],
    slowness: Callable[[C], float],
    fits: Fits[C] | None = None,
    draw: Draw | None = None,
) -> C | None:
    """The node that is expected to answer first: its measured slowness by its share of load.

    Args:
        slowness: seconds a usual call takes there; 0: not measured yet, taken as the best compared.
    """
    if draw is not None and len(candidates) > ALL_UP_TO:
        best = _fastest(_some(candidates, draw), slowness, fits)
        if best is not None:
            return best
    return _fastest(candidates, slowness, fits)


def _some(candidates: Sequence[C], draw: Draw) -> list[C]:
    number = len(candidates)
    return [candidates[draw(number)] for _ in range(COMPARED)]


def _freest(candidates: Sequence[C], fits: Fits[C] | None) -> C | None:
    best: C | None = None
    most = used = 0
    for candidate in candidates:
        room = candidate.room
        if room < most or room <= 0:
            continue
        last = candidate.last_used
        if room == most and last >= used:
            continue
        if fits is None or fits(candidate):
            best, most, used = candidate, room, last
    return best


def _fastest(candidates: Sequence[C], slowness: Callable[[C], float], fits: Fits[C] | None) -> C | None:
    able = [item for item in candidates if item.room > 0 and (fits is None or fits(item))]
    if len(able) <= 1:
        return able[0] if able else None
    paces = [slowness(item) for item in able]
    usual = min((pace for pace in paces if pace > 0), default=1.0)
    best, least = able[0], float("inf")
    for candidate, pace in zip(able, paces, strict=True):
        cost = (pace or usual) * (candidate.in_flight + 1) / candidate.capacity
        if cost < least or (cost == least and candidate.last_used < best.last_used):
            best, least = candidate, cost
    return best
