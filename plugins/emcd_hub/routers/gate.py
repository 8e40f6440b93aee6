"""The hub's routers: their tunnels, who of them may stay, what the public page says of them."""

from __future__ import annotations

from collections.abc import Collection

import structlog

from emcd.clock import Clock
from emcd.errors import RemoteProtocolError
from emcd.metrics import gauge
from emcd.proto.eip712 import Domain
from emcd.types import Address
from emcd_hub.nodes.gate import NOT_ADMITTED, NodeGate
from emcd_hub.nodes.registry import NodeRegistry
from emcd_hub.routers.admission import RouterAdmission
from emcd_hub.routers.link import RouterPeer
from emcd_hub.routers.session import RouterSession

ROUTERS = gauge("emcd_hub_routers", "Routers with a tunnel.")


class RouterGate:
    """Serves every router's tunnel."""

    def __init__(
        self,
        *,
        hub: Address,
        domain: Domain,
        gate: NodeGate,
        max_nodes: int,
        clock: Clock,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._hub = hub
        self._domain = domain
        self._gate = gate
        self._max_nodes = max_nodes
        self._clock = clock
        self._log = log
        self._sessions: dict[Address, RouterSession] = {}
        self._registry: NodeRegistry
        self.admission: RouterAdmission

    def attach(
        self, registry: NodeRegistry, *, minimum_wei: int, listed: Collection[Address], only_listed: bool
    ) -> None:
        """Where routers and their nodes are looked up; before the first tunnel."""
        self._registry = registry
        self.admission = RouterAdmission(
            registry, minimum_wei=minimum_wei, listed=listed, only_listed=only_listed
        )

    async def serve(self, peer: RouterPeer) -> None:
        """Live with a router's tunnel until it ends; the listener keeps one for each router.

        Raises: RemoteProtocolError EMC-1407 when the router is not admitted any more.
        Cancellation: the router is gone, and its nodes with it.
        """
        session = self._sessions[peer.address] = RouterSession(
            peer,
            hub=self._hub,
            domain=self._domain,
            gate=self._gate,
            authorize=self._registry.may_join,
            max_nodes=self._max_nodes,
            clock=self._clock,
            log=self._log,
        )
        ROUTERS.set(len(self._sessions))
        try:
            await session.run()
        finally:
            del self._sessions[peer.address]
            ROUTERS.set(len(self._sessions))
        if session.code == NOT_ADMITTED:
            raise RemoteProtocolError(session.code, f"{peer.address}")

    def list_sessions(self) -> list[RouterSession]:
        """The routers that are connected, by address."""
        return [self._sessions[key] for key in sorted(self._sessions, key=str.lower)]

    def review(self, minimum_wei: int) -> None:
        """Dismiss the routers that the registry admits no more."""
        self.admission.minimum_wei = minimum_wei
        for session in self.list_sessions():
            if not self.admission.may_stay(session.address):
                self._log.warning("router dismissed", router=session.address)
                session.end(NOT_ADMITTED)
