"""Which routers may join: bound as router and staked over the router's minimum, or on a list."""

from __future__ import annotations

from collections.abc import Collection

import trio

from emcd.errors import EmcdError
from emcd.types import Address, ParticipantRole
from emcd_hub.nodes.registry import NodeRegistry

ASK_AGAIN_S = 1.0


class RouterAdmission:
    """Asks the registry that nodes are asked of, too."""

    def __init__(
        self, registry: NodeRegistry, *, minimum_wei: int, listed: Collection[Address], only_listed: bool
    ) -> None:
        self.minimum_wei = minimum_wei
        """The least stake of a router; it changes with the network's parameters."""
        self._registry = registry
        self._listed = frozenset(listed)
        self._only_listed = only_listed
        self._asked_at = -ASK_AGAIN_S

    async def may_join(self, router: Address) -> bool:
        """Whether a router that has proven its key is admitted; asks the chain when the copy says no."""
        if self.may_stay(router):
            return True
        now = trio.current_time()
        if self._only_listed or now - self._asked_at < ASK_AGAIN_S:
            return False
        self._asked_at = now
        try:
            await self._registry.refresh()
        except EmcdError:
            return False
        return self.may_stay(router)

    def may_stay(self, router: Address) -> bool:
        """The same for a router that is here, by the copy."""
        if router in self._listed:
            return True
        row = self._registry.find(router)
        return (
            not self._only_listed
            and row is not None
            and row.role is ParticipantRole.ROUTER
            and row.stake_wei >= self.minimum_wei
        )
