"""What the settler reads from the hub: bundles and extraction requests. Nothing of it is believed.

A bundle counts when it is the one that the validators signed, by its hash, and passes the audit; a
request when its wallet signed it. Invariants: a deadline and a byte limit on every request; a bundle
is a file, never held in memory; audits run in a thread or a process of their own, one at a time.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import msgspec
import trio

from emcd.accounting.expectation import Expectation
from emcd.accounting.reward_tree import RewardTree
from emcd.accounting.round_result import decode_totals
from emcd.bundle_file import audit_somewhere
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.net.download import download
from emcd.net.http_client import request
from emcd.proto.address import hex_hash
from emcd.proto.bundle_codec import MAX_BUNDLE_BYTES
from emcd.proto.network import Deployment

MAX_LIST_BYTES = 4 << 20
TREES_KEPT = 6
"""Those of a publisher's step and of the active root."""


MAX_PAGES = 8


class _Extractions(msgspec.Struct, frozen=True):
    extractions: tuple[dict[str, Any], ...]
    next: str | None = None


class HubSource:
    """One hub."""

    def __init__(
        self,
        base_url: str,
        deployment: Deployment,
        *,
        timeout_s: float,
        bundle_timeout_s: float,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            folder: where a bundle stands while it is audited; default: the system's temporary folder.
        """
        self.base_url = base_url.rstrip("/")
        self._deployment = deployment
        self._timeout_s = timeout_s
        self._bundle_timeout_s = bundle_timeout_s
        self._folder = folder
        self._trees: dict[bytes, RewardTree] = {}
        self._limiter = trio.CapacityLimiter(1)

    async def fetch_requests(self) -> tuple[dict[str, Any], ...]:
        """Open extraction requests as the hub lists them, page by page. Raises: RecoverableError."""
        found: list[dict[str, Any]] = []
        cursor: str | None = ""
        for _ in range(MAX_PAGES):
            url = f"{self.base_url}/api/extractions?state=requested" + (
                f"&after={quote(cursor)}" if cursor else ""
            )
            answer = await request("GET", url, timeout_s=self._timeout_s, max_bytes=MAX_LIST_BYTES)
            if answer.status != 200:
                raise RecoverableError("EMC-1940", f"{answer.url} answers {answer.status}")
            page = answer.json(_Extractions)
            found += page.extractions
            cursor = page.next
            if not cursor:
                break
        return tuple(found)

    async def report(self, document: dict[str, Any]) -> bool:
        """Tell the hub of a claim. Returns: whether it listened: a request it knows no more needs no word.

        Raises: RecoverableError when it can't be reached.
        """
        url = f"{self.base_url}/api/extractions/reports"
        answer = await request("POST", url, json=document, timeout_s=self._timeout_s)
        return answer.status in (202, 404)

    async def fetch_tree(self, index: int, bundle_hash: bytes, root: bytes) -> RewardTree:
        """The reward tree of a round whose bundle hash and root the validators signed.

        Raises: RecoverableError EMC-1940 (no bundle), RemoteProtocolError EMC-1972 (another bundle).
        Cancellation: the audit's process is killed; in a thread it ends by itself, its result is dropped.
        """
        known = self._trees.get(bundle_hash)
        if known is None:
            async with self._limiter:
                known = self._trees.get(bundle_hash) or await self._load_tree(index, bundle_hash)
        if known.root != root:
            raise RemoteProtocolError("EMC-1972", f"round {index}: the bundle's root is not {hex_hash(root)}")
        return known

    async def _load_tree(self, index: int, bundle_hash: bytes) -> RewardTree:
        expected = Expectation(
            bundle_hash=bundle_hash,
            round=index,
            chain_id=self._deployment.chain_id,
            staking=self._deployment.staking,
            distributor=self._deployment.distributor,
        )
        with TemporaryDirectory(prefix="emcd-settler-", dir=self._folder) as folder:
            path = Path(folder) / "bundle.emcb"
            await self._fetch_bundle(index, path)
            outcome = await audit_somewhere(path, expected)
        if outcome.result is None or outcome.difference is not None:
            raise RemoteProtocolError("EMC-1972", f"round {index}: {outcome.difference}")
        tree = RewardTree(decode_totals(outcome.result.totals_after))
        while len(self._trees) >= TREES_KEPT:
            del self._trees[next(iter(self._trees))]
        self._trees[bundle_hash] = tree
        return tree

    async def _fetch_bundle(self, index: int, path: Path) -> None:
        url = f"{self.base_url}/api/rounds/{index}/bundle"
        answer = await download(url, path, max_bytes=MAX_BUNDLE_BYTES, timeout_s=self._bundle_timeout_s)
        if answer.status != 200:
            raise RecoverableError("EMC-1940", f"{answer.url} answers {answer.status}")
