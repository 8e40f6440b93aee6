"""The routers that the chain knows: bound, staked, with an endpoint that may be dialled.

Invariant: an endpoint is somebody else's choice: https (wss) to a public name, or plain http (ws) on
loopback when this node's own hub is there (a devnet); and who answers must hold the key that is bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from emcd.chain import Chain
from emcd.errors import ConfigError
from emcd.net.url_guard import is_loopback, parse_target, require_public
from emcd.types import ParticipantRole
from emcd_node.router_choice import Way

MOST_ROUTERS = 32
"""More are not measured: a sample of so many has one that is near enough."""


class RouterDirectory:
    """Reads the registry when asked."""

    def __init__(
        self,
        chain: Chain,
        *,
        minimum_wei: Callable[[], int],
        sample: Callable[[Sequence[Way], int], Sequence[Way]],
        allow_loopback: bool,
    ) -> None:
        """`sample(ways, n)` draws n of them."""
        self._chain = chain
        self._minimum_wei = minimum_wei
        self._sample = sample
        self._allow_loopback = allow_loopback

    async def fetch(self) -> list[Way]:
        """The routers now. Raises: RecoverableError EMC-15xx when the chain can't be read."""
        rows = await self._chain.staking.fetch_participants(at=await self._chain.head())
        minimum_wei = self._minimum_wei()
        ways = [
            Way(url, row.node)
            for row in rows
            if row.role == ParticipantRole.ROUTER
            and row.stake_wei >= minimum_wei
            and (url := self._find_url(row.endpoint))
        ]
        return ways if len(ways) <= MOST_ROUTERS else list(self._sample(ways, MOST_ROUTERS))

    def _find_url(self, endpoint: str) -> str:
        """Where to dial; "" for an endpoint that is not to be dialled."""
        try:
            target = parse_target(endpoint, ("http", "https"))
            if not (self._allow_loopback and is_loopback(target.host)):
                require_public(endpoint)
        except ConfigError:
            return ""
        return f"{'wss' if target.tls else 'ws'}://{target.authority}{target.path}"
