"""Collects what validators sign from their own endpoints, which the staking contract names.

Invariants: a deadline and a byte limit on every request, all validators of a round are asked at
once; an endpoint is somebody else's choice: https to a public name, or plain http on loopback when
the settler's own hub is there (a devnet).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import partial

import structlog
import trio

from emcd.errors import ConfigError, EmcdError, RecoverableError
from emcd.net.http_client import request
from emcd.net.url_guard import is_loopback, parse_target, require_public
from emcd.proto.eip712 import Domain
from emcd.types import Address
from emcd_settler.attestation import Attestation, read_attestation
from emcd_settler.slash_rule import SignedSlash, read_slashes

MAX_BYTES = 1 << 16
MAX_SLASHES_BYTES = 4 << 20
MAX_PARALLEL = 32


class ProofAnswer(Enum):
    """What a validator said to evidence: it has it, it refuses it for good, or nothing that counts."""

    TAKEN = "taken"
    REFUSED = "refused"
    NONE = "none"


class PeerCollector:
    """Asks validators for what they signed."""

    def __init__(
        self,
        domain: Domain,
        log: structlog.stdlib.BoundLogger,
        *,
        staking: Domain,
        allow_loopback: bool,
        timeout_s: float,
    ) -> None:
        """`domain`: the distributor's, for attestations; `staking`: for orders to slash."""
        self._domain = domain
        self._staking = staking
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
                body = await self._fetch(endpoint, f"attestations/{index}")
            if body is not None:
                found.append(read_attestation(self._domain, body, index, validator))
        except EmcdError as exc:
            self._log.info(
                "attestation_missing", round=index, validator=validator, code=exc.code, detail=exc.detail
            )

    async def collect_slashes(
        self, epoch: int, endpoints: Mapping[Address, str], known: Iterable[SignedSlash]
    ) -> list[SignedSlash]:
        """The orders to slash that validators signed in an epoch, each checked.

        Args: `known`: what an earlier call gave; who can't be asked now keeps what he signed then.
        Cancellation: at any point; nothing is kept here.
        """
        before = list(known)
        found = {who: [item for item in before if item.validator == who] for who in endpoints}
        async with trio.open_nursery() as nursery:
            for validator, endpoint in endpoints.items():
                nursery.start_soon(partial(self._ask_slashes, epoch, validator, endpoint, found))
        return [item for items in found.values() for item in items]

    async def bring_proof(self, validator: Address, endpoint: str, body: bytes) -> ProofAnswer:
        """Send evidence to a validator. Cancellation: it may have it."""
        try:
            self.require_askable(endpoint)
            url = f"{endpoint.rstrip('/')}/offences"
            headers = {"content-type": "application/json"}
            async with self._limiter:
                answer = await request(
                    "POST", url, body=body, headers=headers, timeout_s=self._timeout_s, max_bytes=MAX_BYTES
                )
        except EmcdError as exc:
            self._log.info("proof_not_brought", validator=validator, code=exc.code, detail=exc.detail)
            return ProofAnswer.NONE
        if answer.status == 202:
            return ProofAnswer.TAKEN
        self._log.warning("proof_refused", validator=validator, status=answer.status)
        is_final = 400 <= answer.status < 500 and answer.status not in (408, 429)
        return ProofAnswer.REFUSED if is_final else ProofAnswer.NONE

    async def _ask_slashes(
        self, epoch: int, validator: Address, endpoint: str, found: dict[Address, list[SignedSlash]]
    ) -> None:
        try:
            async with self._limiter:
                body = await self._fetch(endpoint, f"slashes/{epoch}", MAX_SLASHES_BYTES)
            if body is not None:
                read = partial(read_slashes, self._staking, body, epoch, validator, known=found[validator])
                found[validator] = await trio.to_thread.run_sync(read)
        except EmcdError as exc:
            self._log.info(
                "slashes_missing", epoch=epoch, validator=validator, code=exc.code, detail=exc.detail
            )

    async def _fetch(self, endpoint: str, path: str, max_bytes: int = MAX_BYTES) -> bytes | None:
        self.require_askable(endpoint)
        url = f"{endpoint.rstrip('/')}/{path}"
        answer = await request("GET", url, timeout_s=self._timeout_s, max_bytes=max_bytes)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise RecoverableError("EMC-1971", f"{answer.url} answers {answer.status}")
        return answer.body

    def require_askable(self, endpoint: str) -> None:
        """Raises: RecoverableError EMC-1971."""
        try:
            if self._allow_loopback and is_loopback(parse_target(endpoint).host):
                return
            require_public(endpoint)
        except ConfigError as exc:
            raise RecoverableError("EMC-1971", f"{endpoint[:200]!r}: {exc.detail}") from exc
