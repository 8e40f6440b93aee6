"""Where the hub and the validators of an epoch are reached: from the chain, and asked with care.

Invariant: an endpoint is somebody else's choice: https to a public name, or plain http on loopback
when this node's own hub is there (a devnet).
"""

from __future__ import annotations

from emcd.chain import Chain
from emcd.errors import ConfigError, RecoverableError
from emcd.net.url_guard import is_loopback, parse_target, require_public
from emcd.types import Address


class Directory:
    """The chain's endpoints, read anew in every round."""

    def __init__(self, chain: Chain, hub: Address, hub_api_url: str, *, allow_loopback: bool) -> None:
        """`hub_api_url`: the operator's word for it; "": the endpoint that the hub published."""
        self._chain = chain
        self._hub = hub
        self._hub_api_url = hub_api_url
        self._allow_loopback = allow_loopback
        self._of_round = -1
        self._validators: dict[Address, str] = {}
        self._hub_url = ""

    async def fetch_hub(self, round_index: int) -> str:
        """The base URL of the hub's public API.

        Raises: RecoverableError EMC-2032 (it published none that can be asked), EMC-15xx (the chain).
        """
        if self._hub_api_url:
            return self._hub_api_url
        await self._refresh(round_index)
        if not self._hub_url:
            raise RecoverableError("EMC-2032", f"hub {self._hub} has no endpoint that can be asked")
        return self._hub_url

    async def fetch_validators(self, round_index: int) -> dict[Address, str]:
        """The validators of the round's epoch that can be asked. Raises: RecoverableError EMC-15xx."""
        await self._refresh(round_index)
        return self._validators

    async def _refresh(self, round_index: int) -> None:
        if round_index == self._of_round:
            return
        staking, params = self._chain.staking, self._chain.deployment.params
        members = await staking.fetch_validator_set(params.epoch_of(max(0, round_index)))
        found = {node: await staking.find_participant(node) for node, _ in members.members}
        hub = await staking.find_participant(self._hub)
        self._validators = {
            node: item.endpoint
            for node, item in found.items()
            if item is not None and self._is_askable(item.endpoint)
        }
        self._hub_url = hub.endpoint if hub is not None and self._is_askable(hub.endpoint) else ""
        self._of_round = round_index

    def _is_askable(self, endpoint: str) -> bool:
        try:
            if not (self._allow_loopback and is_loopback(parse_target(endpoint).host)):
                require_public(endpoint)
        except ConfigError:
            return False
        return True
