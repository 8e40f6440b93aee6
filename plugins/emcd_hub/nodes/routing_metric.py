"""Routing in numbers: who waits, for how long, and how many nodes are broken."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from emcd.metrics import REGISTRY, SECONDS
from emcd_hub.nodes.board import NodeBoard


class WaitMetrics(Collector):
    """The line of a hub and the breakers of its nodes."""

    def __init__(self) -> None:
        self._board: NodeBoard | None = None
        self._buckets = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0
        self._late = 0
        self.refused = 0
        """Calls that found the line full."""

    def follow(self, board: NodeBoard) -> None:
        """The board whose line and breakers are shown: the newest hub's."""
        self._board = board

    def count(self, seconds: float, *, served: bool) -> None:
        """A call has left the line."""
        self._seconds += seconds
        self._buckets[bisect_left(SECONDS, seconds)] += 1
        self._late += not served

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        board = self._board
        waiting = 0 if board is None else board.line.waiting
        yield GaugeMetricFamily("emcd_hub_calls_waiting", "Calls in line for a node.", value=waiting)
        waits = HistogramMetricFamily("emcd_hub_wait_seconds", "Time in line for a node.")
        total = 0
        buckets = []
        for bound, number in zip((*map(str, SECONDS), "+Inf"), self._buckets, strict=True):
            total += number
            buckets.append((bound, total))
        waits.add_metric((), buckets, self._seconds)
        yield waits
        busy = CounterMetricFamily(
            "emcd_hub_waits_failed",
            "Calls that got no node in time, or found the line full.",
            labels=("why",),
        )
        busy.add_metric(("deadline",), self._late)
        busy.add_metric(("full",), self.refused)
        yield busy
        breakers = GaugeMetricFamily("emcd_hub_breakers", "Nodes by their breaker.", labels=("state",))
        if board is not None:
            for state, number in board.count_breakers().items():
                breakers.add_metric((state.value,), number)
        yield breakers


WAITS = WaitMetrics()
REGISTRY.register(WAITS)
