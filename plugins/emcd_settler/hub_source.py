"""What the settler reads from the hub: bundles and extraction requests. Nothing of it is believed.

A bundle counts when it is the one that the validators signed, by its hash, and passes the audit; a
request when its wallet signed it. Invariants: a deadline and a byte limit on every request; audits
run in a thread, one at a time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import trio

from emcd.accounting.audit import AuditOutcome, audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.accounting.reward_tree import RewardTree
from emcd.accounting.round_result import decode_totals
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.net.http_client import request
from emcd.proto.address import hex_hash
from emcd.proto.bundle_codec import MAX_BUNDLE_BYTES
from emcd.proto.network import Deployment

MAX_LIST_BYTES = 4 << 20
TREES_KEPT = 4


class _Extractions(msgspec.Struct, frozen=True):
    extractions: tuple[dict[str, Any], ...]


class HubSource:
    """One hub."""

    def __init__(
        self, base_url: str, deployment: Deployment, *, timeout_s: float, bundle_timeout_s: float
    ) -> None:
        self._base = base_url.rstrip("/")
        self._deployment = deployment
        self._timeout_s = timeout_s
        self._bundle_timeout_s = bundle_timeout_s
        self._trees: dict[bytes, RewardTree] = {}
        self._limiter = trio.CapacityLimiter(1)

    async def fetch_requests(self) -> tuple[dict[str, Any], ...]:
        """Open extraction requests as the hub lists them. Raises: RecoverableError."""
        url = f"{self._base}/api/extractions?state=requested"
        answer = await request("GET", url, timeout_s=self._timeout_s, max_bytes=MAX_LIST_BYTES)
        if answer.status != 200:
            raise RecoverableError("EMC-1940", f"{answer.url} answers {answer.status}")
        return answer.json(_Extractions).extractions

    async def fetch_tree(self, index: int, bundle_hash: bytes, root: bytes) -> RewardTree:
        """The reward tree of a round whose bundle hash and root the validators signed.

        Raises: RecoverableError EMC-1940 (no bundle), RemoteProtocolError EMC-1972 (another bundle).
        Cancellation: a running audit ends in its thread, its result is dropped.
        """
        known = self._trees.get(bundle_hash)
        if known is None:
            async with self._limiter:
                known = self._trees.get(bundle_hash) or await self._load_tree(index, bundle_hash)
        if known.root != root:
            raise RemoteProtocolError("EMC-1972", f"round {index}: the bundle's root is not {hex_hash(root)}")
        return known

    async def _load_tree(self, index: int, bundle_hash: bytes) -> RewardTree:
        data = await self._fetch_bundle(index)
        expected = Expectation(
            bundle_hash=bundle_hash,
            round=index,
            chain_id=self._deployment.chain_id,
            staking=self._deployment.staking,
            distributor=self._deployment.distributor,
        )
        outcome: AuditOutcome = await trio.to_thread.run_sync(
            partial(audit_bundle, data, expected), abandon_on_cancel=True
        )
        if outcome.result is None or outcome.difference is not None:
            raise RemoteProtocolError("EMC-1972", f"round {index}: {outcome.difference}")
        tree = RewardTree(decode_totals(outcome.result.totals_after))
        while len(self._trees) >= TREES_KEPT:
            del self._trees[next(iter(self._trees))]
        self._trees[bundle_hash] = tree
        return tree

    async def _fetch_bundle(self, index: int) -> bytes:
        url = f"{self._base}/api/rounds/{index}/bundle"
        answer = await request("GET", url, timeout_s=self._bundle_timeout_s, max_bytes=MAX_BUNDLE_BYTES)
        if answer.status != 200:
            raise RecoverableError("EMC-1940", f"{answer.url} answers {answer.status}")
        return answer.body
