"""The hub's numbers for Prometheus.

What is counted on the way of a call is plain integers, turned into metrics when somebody asks: a
counter of prometheus-client takes a lock and most of a microsecond each time. Only the loop's
thread counts here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from emcd.metrics import REGISTRY, SECONDS, counter, gauge, histogram
from emcd.proto.records import CallStatus

_REFUSED = counter("emcd_hub_requests_refused_total", "Requests answered with an error, by code.", ("code",))
_FAULTS = counter("emcd_hub_node_faults_total", "Attempts that failed at a node, by kind.", ("kind",))
IN_FLIGHT = gauge("emcd_hub_calls_in_flight", "Calls between their arrival and their end.")
NODES_ONLINE = gauge("emcd_hub_nodes_online", "Nodes with a live tunnel and a fresh status.")
ROUND = gauge("emcd_hub_round", "The open round.")
ROUND_CLOSED = gauge("emcd_hub_round_closed", "The newest round that this hub sealed.")
ARCHIVED_ROUND = gauge("emcd_hub_round_archived", "The newest round whose calls have left the ledger.")
CLOSE_PROGRESS = gauge(
    "emcd_hub_round_close_progress", "How much of the round being closed is done; 0: none is."
)
CLOSE_SECONDS = histogram("emcd_hub_round_close_seconds", "Building and storing a round's bundle.")


class CallMetrics(Collector):
    """Calls by endpoint and end, what they took, and how long they were."""

    def __init__(self) -> None:
        self._calls: defaultdict[tuple[str, CallStatus], int] = defaultdict(int)
        self._buckets = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0
        self._granted = 0
        self._vault = 0

    def count(self, path: str, status: CallStatus, charge: tuple[int, int], seconds: float) -> None:
        """A call was recorded. `charge`: granted and vault, in micro-credits."""
        self._calls[path, status] += 1
        self._granted += charge[0]
        self._vault += charge[1]
        self._seconds += seconds
        self._buckets[bisect_left(SECONDS, seconds)] += 1

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        calls = CounterMetricFamily(
            "emcd_hub_calls", "Calls recorded, by how they ended.", labels=("endpoint", "status")
        )
        for (endpoint, status), number in list(self._calls.items()):
            calls.add_metric((endpoint, status.name.lower()), number)
        charged = CounterMetricFamily("emcd_hub_credits_micro", "Micro-credits charged.", labels=("source",))
        charged.add_metric(("granted",), self._granted)
        charged.add_metric(("vault",), self._vault)
        seconds = HistogramMetricFamily(
            "emcd_hub_call_seconds", "From a call's arrival to its record on disk."
        )
        total = 0
        buckets = []
        for bound, number in zip((*map(str, SECONDS), "+Inf"), self._buckets, strict=True):
            total += number
            buckets.append((bound, total))
        seconds.add_metric((), buckets, self._seconds)
        yield from (calls, charged, seconds)


CALLS = CallMetrics()
REGISTRY.register(CALLS)


def count_refused(code: str) -> None:
    _REFUSED.labels(code).inc()


def count_node_fault(kind: str) -> None:
    _FAULTS.labels(kind).inc()
