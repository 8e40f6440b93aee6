"""Who waits for credit, in the order of their coming. Pure; `billing.book` says who may go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

Line: TypeAlias = "deque[Place]"


class Place:
    """A call's place in a line. `wake` is called when it is first and something came free."""

    __slots__ = ("line", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.line: Line | None = None


def join(line: Line, place: Place) -> None:
    """Stand behind whoever stands there; who stands there already, stays; who stands elsewhere, leaves."""
    if place.line is not line:
        leave(place)
        place.line = line
        line.append(place)


def leave(place: Place) -> None:
    """Leave the line; the one behind may be served now. Nothing happens to who stands in none."""
    line = place.line
    if line is None:
        return
    place.line = None
    was_first = line[0] is place
    line.remove(place)
    if was_first:
        wake_first(line)


def wake_first(line: Line) -> None:
    """Something came free."""
    if line:
        line[0].wake()
