"""Through whom the node reaches its hub: the nearest router that takes it, else the hub itself. Pure.

Time and draws are arguments. Near is what connects fast; of those that are about as near one is
drawn, so that a rack of nodes does not choose one router. Invariants: a router that failed is left
alone for a while that grows with its failures, and one that refused for good for longer; the direct
way, where there is one, is taken while all routers rest, and only then; without it, the router whose
rest is over first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from emcd.types import Address

NEAR_FACTOR = 1.5
NEAR_S = 0.005
FIRST_REST_S = 2.0
REFUSED_REST_S = 600.0
"""A router that does not join this hub, or is not who it should be, will hardly be so in a minute."""
LEAVING_REST_S = 30.0
MEASURE_AGAIN_S = 600.0


@dataclass(frozen=True)
class Way:
    """Where to dial, and who must answer there."""

    url: str
    address: Address
    is_router: bool = True


@dataclass
class _Record:
    connect_s: float | None = None
    measured_at: float = float("-inf")
    failures: int = 0
    rests_until: float = float("-inf")

    def is_known(self, now: float) -> bool:
        return self.connect_s is not None and self.measured_at >= now - MEASURE_AGAIN_S


class WayChoice:
    """What is known of the ways, and which is taken next."""

    def __init__(self, routers: Iterable[Way], direct: Way | None, longest_rest_s: float) -> None:
        self.direct = direct
        self._longest_rest_s = longest_rest_s
        self._records: dict[Way, _Record] = {}
        self.set_routers(routers)

    def set_routers(self, routers: Iterable[Way]) -> None:
        """The routers there are now; what was known of those that stay is kept."""
        self._records = {way: self._records.get(way) or _Record() for way in routers}

    @property
    def has_routers(self) -> bool:
        return bool(self._records)

    def list_unmeasured(self, now: float) -> list[Way]:
        """Routers that could be taken now, and of which it is not known how near they are."""
        return [
            way
            for way, record in self._records.items()
            if record.rests_until <= now and not record.is_known(now)
        ]

    def has_known(self, now: float) -> bool:
        """Whether a router could be taken now that is known to be there."""
        return any(r.rests_until <= now and r.is_known(now) for r in self._records.values())

    def note_measured(self, way: Way, connect_s: float | None, now: float) -> None:
        """What a measurement gave; None: nobody answered."""
        record = self._records.get(way)
        if record is None:
            return
        if connect_s is None:
            self.note_failed(way, now)
        else:
            record.connect_s, record.measured_at = connect_s, now

    def note_steady(self, way: Way) -> None:
        """A connection has lived for long."""
        if (record := self._records.get(way)) is not None:
            record.failures = 0

    def note_failed(self, way: Way, now: float, *, for_good: bool = False) -> None:
        """No connection, or lost, or refused."""
        record = self._records.get(way)
        if record is None:
            return
        record.failures += 1
        record.connect_s = None
        rest_s = FIRST_REST_S * 2 ** min(record.failures - 1, 16)
        record.rests_until = now + (REFUSED_REST_S if for_good else min(rest_s, self._longest_rest_s))

    def note_leaving(self, way: Way, now: float) -> None:
        """The router has said that it is leaving."""
        if (record := self._records.get(way)) is not None:
            record.rests_until = now + LEAVING_REST_S

    def choose(self, now: float, draw: Callable[[int], int]) -> Way | None:
        """The way to take; None where there is none at all.

        Args:
            draw: `draw(n)` is a number below n.
        """
        ready = {way: record for way, record in self._records.items() if record.rests_until <= now}
        if not ready:
            if self.direct is not None or not self._records:
                return self.direct
            return min(self._records, key=lambda way: self._records[way].rests_until)
        known = {way: record.connect_s for way, record in ready.items() if record.connect_s is not None}
        if not known:
            return list(ready)[draw(len(ready))]
        nearest = min(known.values())
        bound = max(nearest * NEAR_FACTOR, nearest + NEAR_S)
        near = [way for way, connect_s in known.items() if connect_s <= bound]
        return near[draw(len(near))]

    def has_other(self, way: Way, now: float) -> bool:
        """Whether there is a way beside this one that could be taken now."""
        if self.direct is not None and self.direct != way:
            return True
        return any(record.rests_until <= now for other, record in self._records.items() if other != way)
