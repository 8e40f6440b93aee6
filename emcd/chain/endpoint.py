"""Which RPC endpoint to ask next. Pure: the time is an argument.

Invariants: endpoints are tried in the order of the config, those that failed lately last; one that
fails is left alone for a time that doubles up to `MAX_PAUSE_S`.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_PAUSE_S = 30.0


@dataclass
class Endpoint:
    """One RPC URL and what we know of it."""

    url: str
    verified: bool = False
    """Whether its chain id was checked since it last failed."""
    failures: int = 0
    retry_at: float = 0.0
    last_error: str = ""


class EndpointPool:
    """The endpoints of one chain."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        if not urls:
            raise ValueError("a chain needs at least one RPC URL")
        self.endpoints = [Endpoint(url) for url in urls]

    def order(self, now: float) -> list[Endpoint]:
        """All endpoints, the best first; even a paused one is asked when nothing else is left."""
        return sorted(
            self.endpoints, key=lambda e: (e.retry_at > now, e.retry_at if e.retry_at > now else 0.0)
        )

    def succeeded(self, endpoint: Endpoint) -> None:
        endpoint.failures = 0
        endpoint.retry_at = 0.0
        endpoint.last_error = ""

    def failed(self, endpoint: Endpoint, now: float, error: str) -> None:
        endpoint.failures += 1
        endpoint.retry_at = now + min(MAX_PAUSE_S, 0.5 * 2.0 ** min(endpoint.failures, 8))
        endpoint.verified = False
        endpoint.last_error = error
