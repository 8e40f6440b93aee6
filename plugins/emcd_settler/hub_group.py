"""Several hubs as one: what any of them lists or has is good enough, since each answer is checked.

A request counts by its wallet's signature, a bundle by the hash that the validators signed; so a hub
that lies or is away costs time and nothing else. Invariant: one failing hub hides no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog

from emcd.accounting.reward_tree import RewardTree
from emcd.errors import EmcdError, FatalError
from emcd_settler.hub_source import HubSource


class HubGroup:
    """The hubs of one settler, the first asked first. `problem` names those that failed last time."""

    def __init__(self, hubs: Sequence[HubSource], log: structlog.stdlib.BoundLogger) -> None:
        self._hubs = tuple(hubs)
        self._log = log
        self._failed: dict[HubSource, str] = {}

    @property
    def problem(self) -> str:
        return "; ".join(self._failed.values()) if len(self._hubs) > 1 else ""

    async def fetch_requests(self) -> list[tuple[str, dict[str, Any]]]:
        """Open requests as the hubs list them, each with its hub. Raises: RecoverableError when none answers."""
        found: list[tuple[str, dict[str, Any]]] = []
        first: EmcdError | None = None
        answered = 0
        for hub in self._hubs:
            try:
                found += [(hub.base_url, table) for table in await hub.fetch_requests()]
                answered += 1
                self._failed.pop(hub, None)
            except FatalError:
                raise
            except EmcdError as exc:
                first = first or exc
                self._complain(hub, exc)
        if not answered and first is not None:
            raise first
        return found

    async def fetch_tree(self, index: int, bundle_hash: bytes, root: bytes) -> RewardTree:
        """The reward tree of a round, from the first hub that has the bundle that was signed.

        Raises: RecoverableError EMC-1940, RemoteProtocolError EMC-1972: the first hub's, when none has.
        """
        first: EmcdError | None = None
        for hub in self._hubs:
            try:
                return await hub.fetch_tree(index, bundle_hash, root)
            except FatalError:
                raise
            except EmcdError as exc:
                first = first or exc
                self._complain(hub, exc)
        assert first is not None
        raise first

    async def report(self, document: dict[str, Any]) -> bool:
        """Tell every hub; returns whether one of them took it. Never raises for a hub's sake."""
        taken = False
        for hub in self._hubs:
            try:
                taken = await hub.report(document) or taken
            except FatalError:
                raise
            except EmcdError as exc:
                self._log.debug("report_not_taken", hub=hub.base_url, code=exc.code, detail=exc.detail)
        return taken

    def _complain(self, hub: HubSource, exc: EmcdError) -> None:
        text = f"{hub.base_url}: {exc.code}"
        if self._failed.get(hub) != text:
            self._log.warning("hub_failed", hub=hub.base_url, code=exc.code, detail=exc.detail)
        self._failed[hub] = text
