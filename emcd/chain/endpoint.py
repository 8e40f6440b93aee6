"""The RPC endpoints of one chain: which to ask next, and what is held against each. Pure: time is an argument.

Invariants: endpoints are tried in the order of the config, those that failed lately last; one that
fails is left alone for a time that doubles up to `MAX_PAUSE_S`, one that was caught in an untrue
answer up to `MAX_LIE_PAUSE_S`; an endpoint's chain id is never older than `VERIFY_EVERY_S`. What is
shown of a URL has neither its path nor its credentials: providers put the customer's key there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from urllib.parse import urlsplit

MAX_PAUSE_S = 30.0
LIE_PAUSE_S = 60.0
MAX_LIE_PAUSE_S = 3600.0
VERIFY_EVERY_S = 60.0


@dataclass
class Endpoint:
    """One RPC URL and what we know of it."""

    url: str
    shown: str = field(init=False)
    """The URL as messages have it."""
    checked_at: float = -inf
    """When its chain id was right; minus infinity after a failure."""
    was_right: bool = False
    """Whether its chain id was ever right: a wrong one is then its fault, not the config's."""
    failures: int = 0
    retry_at: float = 0.0
    last_error: str = ""
    lies: int = 0
    lie: str = ""
    """What it said that others, or it itself, contradicted; "" when it is believed."""

    def __post_init__(self) -> None:
        self.shown = show_url(self.url)

    def needs_check(self, now: float) -> bool:
        """Whether its chain id must be asked before its answers count."""
        return now - self.checked_at > VERIFY_EVERY_S

    def is_resting(self, now: float) -> bool:
        return self.retry_at > now


class EndpointPool:
    """The endpoints of one chain."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        if not urls:
            raise ValueError("a chain needs at least one RPC URL")
        self.endpoints = [Endpoint(url) for url in urls]
        for number, endpoint in enumerate(self.endpoints, 1):
            if sum(other.shown == endpoint.shown for other in self.endpoints) > 1:
                endpoint.shown = f"{endpoint.shown} (#{number})"

    def order(self, now: float) -> list[Endpoint]:
        """All endpoints, the best first; even a resting one is asked when nothing else is left."""
        return sorted(
            self.endpoints, key=lambda e: (e.is_resting(now), e.retry_at if e.is_resting(now) else 0.0)
        )

    def list_suspects(self, now: float) -> list[Endpoint]:
        """Those once caught whose rest is over: they are to be heard again beside others."""
        return [e for e in self.endpoints if e.lie and not e.is_resting(now)]

    def answered(self, endpoint: Endpoint) -> None:
        """It answered; whether truly is another question."""
        endpoint.failures = 0
        if not endpoint.lie:
            endpoint.retry_at = 0.0
            endpoint.last_error = ""

    def agreed(self, endpoint: Endpoint, now: float) -> None:
        """It said what others say. One that was caught is believed again after its rest only."""
        if endpoint.lie and not endpoint.is_resting(now):
            endpoint.lie = endpoint.last_error = ""

    def failed(self, endpoint: Endpoint, now: float, error: str, *, rest_s: float = 0.0) -> None:
        """It gave no answer, or none of use; it rests for `rest_s` at least."""
        endpoint.failures += 1
        pause_s = max(rest_s, min(MAX_PAUSE_S, 0.5 * 2.0 ** min(endpoint.failures, 8)))
        endpoint.retry_at = max(endpoint.retry_at, now + pause_s)
        endpoint.checked_at = -inf
        endpoint.last_error = error

    def caught(self, endpoint: Endpoint, now: float, what: str) -> None:
        """Its answer was untrue: others contradict it, or it contradicts itself."""
        if not (endpoint.lie and endpoint.is_resting(now)):
            endpoint.lies += 1
        pause_s = min(MAX_LIE_PAUSE_S, LIE_PAUSE_S * 2.0 ** min(endpoint.lies - 1, 8))
        endpoint.retry_at = now + pause_s
        endpoint.checked_at = -inf
        endpoint.lie = endpoint.last_error = what

    @property
    def problem(self) -> str:
        """The endpoints that were caught and not heard truly since; "" when there are none."""
        return "; ".join(f"{e.shown}: {e.lie}" for e in self.endpoints if e.lie)


def show_url(url: str) -> str:
    """Scheme, host and port of a URL; the whole text when it has no host."""
    parts = urlsplit(url)
    if not parts.hostname:
        return url
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
