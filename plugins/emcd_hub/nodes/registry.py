"""Who may join: the chain's bound and staked compute nodes, or a list in the config.

Owns a copy of the registry that is at most seconds old. Invariants: without a copy nobody is
admitted who is not on the operator's own list; strangers, however many, cost one read a second.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from emcd.errors import EmcdError
from emcd.types import Address, ParticipantRole

STALE_AFTER_S = 1.0


@dataclass(frozen=True)
class Registered:
    """A bound participant as far as the hub cares."""

    node: Address
    wallet: Address
    role: ParticipantRole
    stake_wei: int
    pending_wei: int
    endpoint: str


Fetch = Callable[[], Awaitable[Sequence[Registered]]]


class NodeRegistry:
    """The participants of the network."""

    def __init__(
        self, fetch: Fetch, *, minimum_wei: int, listed: Collection[Address], only_listed: bool
    ) -> None:
        self._fetch = fetch
        self.minimum_wei = minimum_wei
        """The least stake of a compute node; it changes with the network's parameters."""
        self._listed = frozenset(listed)
        self._only_listed = only_listed
        self._known: dict[Address, Registered] = {}
        self._asked_at = -math.inf
        self._reading = trio.Lock()

    async def refresh(self) -> None:
        """Read the registry. Raises: RecoverableError when the chain can't be read."""
        async with self._reading:
            await self._read()

    def find(self, node: Address) -> Registered | None:
        return self._known.get(node)

    def has_wallet(self, wallet: Address) -> bool:
        """Whether a participant is bound to the wallet."""
        return any(row.wallet == wallet for row in self._known.values())

    async def may_join(self, node: Address, role: ParticipantRole) -> bool:
        """Whether a node that has proven its key is admitted; asks the chain when the copy says no."""
        if role is not ParticipantRole.COMPUTE:
            return False
        if node in self._listed:
            return True
        if self._only_listed:
            return False
        if self._is_staked(node):
            return True
        await self._read_if_stale()
        return self._is_staked(node)

    def may_stay(self, node: Address) -> bool:
        """The same for a node that is here, by the copy."""
        return node in self._listed or (not self._only_listed and self._is_staked(node))

    async def _read_if_stale(self) -> None:
        """Read the registry where nobody has tried to of late, whoever waits at the same time included."""
        async with self._reading:
            if trio.current_time() - self._asked_at >= STALE_AFTER_S:
                with suppress(EmcdError):
                    await self._read()

    async def _read(self) -> None:
        try:
            rows = await self._fetch()
        except EmcdError:
            self._asked_at = trio.current_time()
            raise
        self._known = {row.node: row for row in rows}
        self._asked_at = trio.current_time()

    def _is_staked(self, node: Address) -> bool:
        row = self._known.get(node)
        return row is not None and row.role is ParticipantRole.COMPUTE and row.stake_wei >= self.minimum_wei
