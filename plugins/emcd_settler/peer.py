"""Collects attestations from the validators' own endpoints, which the staking contract names.

Invariants: a deadline and a byte limit on every request, all validators of a round are asked at
once; an endpoint is somebody else's choice: https to a public name, or plain http on loopback when
the settler's own hub is there (a devnet).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import structlog
import trio

from emcd.errors import ConfigError, EmcdError, RecoverableError
from emcd.net.http_client import request
from emcd.net.url_guard import is_loopback, parse_target, require_public
from emcd.proto.eip712 import Domain
from emcd.types import Address
from emcd_settler.attestation import Attestation, read_attestation

MAX_BYTES = 1 << 16
MAX_PARALLEL = 32


class PeerCollector:
    """Asks validators for what they signed."""

    def __init__(
        self, domain: Domain, log: structlog.stdlib.BoundLogger, *, allow_loopback: bool, timeout_s: float
    ) -> None:
        self._domain = domain
        self._log = log
        self._allow_loopback = allow_loopback
        self._timeout_s = timeout_s
        self._limiter = trio.CapacityLimiter(MAX_PARALLEL)

    async def collect(self, index: int, endpoints: Mapping[Address, str]) -> list[Attestation]:
        """What the validators attest of a round, each checked; who fails is logged and left out.

        Cancellation: at any point; nothing is kept here.
        """
        found: list[Attestation] = []
        async with trio.open_nursery() as nursery:
            for validator, endpoint in endpoints.items():
                nursery.start_soon(partial(self._ask, index, validator, endpoint, found))
        return found

    async def _ask(self, index: int, validator: Address, endpoint: str, found: list[Attestation]) -> None:
        try:
            async with self._limiter:
                body = await self._fetch(endpoint, index)
            if body is not None:
                found.append(read_attestation(self._domain, body, index, validator))
        except EmcdError as exc:
            self._log.info(
                "attestation_missing", round=index, validator=validator, code=exc.code, detail=exc.detail
            )

    async def _fetch(self, endpoint: str, index: int) -> bytes | None:
        self._require_askable(endpoint)
        url = f"{endpoint.rstrip('/')}/attestations/{index}"
        answer = await request("GET", url, timeout_s=self._timeout_s, max_bytes=MAX_BYTES)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise RecoverableError("EMC-1971", f"{answer.url} answers {answer.status}")
        return answer.body

    def _require_askable(self, endpoint: str) -> None:
        try:
            if self._allow_loopback and is_loopback(parse_target(endpoint).host):
                return
            require_public(endpoint)
        except ConfigError as exc:
            raise RecoverableError("EMC-1971", f"{endpoint[:200]!r}: {exc.detail}") from exc
