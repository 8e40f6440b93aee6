"""The daemon's numbers, in Prometheus' text format.

Owns one registry per process; a metric is made at import of the module that counts, named
`emcd_<area>_<what>_<unit>`. It must not serve HTTP: the hub's /metrics and the status socket do.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

REGISTRY = CollectorRegistry(auto_describe=True)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Half a millisecond (a commit) to two minutes (a long answer)."""


def counter(name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
    """A number that only grows; the name ends in `_total`."""
    return Counter(name, doc, labels, registry=REGISTRY)


def gauge(name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
    """A number that goes up and down."""
    return Gauge(name, doc, labels, registry=REGISTRY)


def histogram(
    name: str, doc: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = SECONDS
) -> Histogram:
    """A distribution; the default buckets are seconds."""
    return Histogram(name, doc, labels, buckets=tuple(buckets), registry=REGISTRY)


def render_metrics() -> bytes:
    """Everything counted so far, as Prometheus scrapes it."""
    return generate_latest(REGISTRY)
