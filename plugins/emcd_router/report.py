"""The router's signed status for one hub. Pure but for the clock.

Invariant: the sequence grows for ever, also over restarts: it starts from the clock in milliseconds.
"""

from __future__ import annotations

from emcd.clock import Clock
from emcd.proto.control import RouterStatusMessage, encode
from emcd.proto.eip712 import Domain
from emcd.proto.messages import RouterStatus
from emcd.proto.signing import Signer
from emcd.types import Address


class Report:
    """Makes the status messages of one router for one hub."""

    def __init__(
        self, key: Signer, domain: Domain, hub: Address, clock: Clock, version: str, region: str
    ) -> None:
        self._key = key
        self._domain = domain
        self._hub = hub
        self._clock = clock
        self._version = version
        self._region = region
        self._sequence = 0

    def make(self, nodes: int, in_flight: int) -> bytes:
        """The next status, signed, as a control message."""
        now_ms = self._clock.now_ms()
        self._sequence = max(self._sequence + 1, now_ms)
        status = RouterStatus(
            router=self._key.address,
            hub=self._hub,
            sequence=self._sequence,
            sent_at_ms=now_ms,
            nodes=nodes,
            in_flight=in_flight,
            version=self._version,
            region=self._region,
        )
        return encode(RouterStatusMessage(status, self._key.sign(self._domain, status)))
