"""The role `router`: nodes on one side, hubs on the other, put together.

Owns the order of start and of the farewell. Invariants: it keeps nothing that must survive, so
starting is also recovering; on drain hubs and nodes are told first, calls in flight finish, and the
hubs are left last.
"""

from __future__ import annotations

import ssl

import trio

from emcd.config import Listen
from emcd.errors import ConfigError
from emcd.net.tls import client_context, server_context
from emcd.net.tunnel import TunnelLimits, serve_tunnels
from emcd.role import Health, HealthState, Role, RoleContext, RoleSpec
from emcd.types import Address, ParticipantRole
from emcd_router.config import HubRef, RouterConfig
from emcd_router.metrics import HUBS, IN_FLIGHT, NODES
from emcd_router.nodes import MAX_WAITING, NodeDesk, NodeLimits
from emcd_router.relay import CallRelay
from emcd_router.upstream import Upstream, UpstreamSettings

GRACE_S = 0.25
"""Between telling the hubs and telling the nodes, so that no call is on its way to a node that goes."""
COUNT_S = 1.0
NODE_SHARE = 4
"""One node holds a quarter of a hub's connection at most."""


class RouterRole(Role):
    """One running router."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._state = HealthState.STARTING
        self._upstreams: dict[Address, Upstream] = {}
        self._nodes_drain = trio.Event()
        self._nodes_gone = trio.Event()
        self._hubs_gone = trio.Event()
        self.port = 0
        """Where nodes connect, once it runs."""

    async def setup(self, ctx: RoleContext) -> None:
        """Put the parts together.

        Raises: ConfigError EMC-1006 (no network), 1107 (key), 1323 (TLS files), 2309 (a hub's key is the
        router's).
        """
        config = self._config
        self._ctx = ctx
        self._key = ctx.load_key(config.key)
        self._domain = ctx.deployment.staking_domain
        self._tls = _find_tls(config.listen)
        if any(hub.address == self._key.address for hub in config.hubs):
            raise ConfigError("EMC-2309", str(self._key.address))
        upstream_limits = TunnelLimits(open_calls=config.max_calls, drain_s=config.drain_s)
        limits = NodeLimits(
            config.max_nodes,
            config.line_length,
            config.line_timeout_s,
            config.drain_s,
            most_calls=max(1, config.max_calls // NODE_SHARE),
            most_bytes=upstream_limits.bodies_bytes // NODE_SHARE,
        )
        self._desk = NodeDesk(limits, ctx.log)
        relay = CallRelay(self._desk)
        settings = UpstreamSettings(
            region=config.region,
            limits=upstream_limits,
            hub_lost_s=config.hub_lost_s,
            reconnect_max_s=config.reconnect_max_s,
        )
        self._upstreams = {hub.address: self._make_upstream(hub, settings, relay) for hub in config.hubs}
        self._desk.attach(self._upstreams)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, and stay connected to the hubs; a hub may come later, and go: that is the health's business.

        Raises: ConfigError EMC-1780 when it can't listen.
        """
        async with trio.open_nursery() as nursery:
            self.port = await self._listen(nursery)
            nursery.start_soon(self._run_upstreams)
            nursery.start_soon(self._count)
            self._state = HealthState.READY
            self._ctx.log.info("router is ready", address=self._key.address, port=self.port)
            task_status.started()

    async def drain(self) -> None:
        """Tell hubs and nodes, let calls in flight finish, leave."""
        if self._state is not HealthState.READY:
            return
        self._state = HealthState.DRAINING
        await self._desk.leave(GRACE_S)
        self._nodes_drain.set()
        await self._nodes_gone.wait()
        for upstream in self._upstreams.values():
            upstream.leave()
        await self._hubs_gone.wait()

    def health(self) -> Health:
        """Degraded with the reason while a hub is not connected."""
        if self._state is not HealthState.READY:
            return Health(self._state)
        away = [f"hub {u.hub}: {u.complaint}" for u in self._upstreams.values() if u.complaint]
        if away:
            return Health(HealthState.DEGRADED, "; ".join(away))
        return Health(HealthState.READY, f"{len(self._desk)} nodes")

    async def _listen(self, nursery: trio.Nursery) -> int:
        config = self._config

        async def serve(task_status: trio.TaskStatus[int]) -> None:
            await serve_tunnels(
                host=config.listen.host,
                port=config.listen.port,
                key=self._key,
                domain=self._domain,
                on_peer=self._desk.serve,
                authorize=_is_compute,
                ssl_context=self._tls,
                limits=TunnelLimits(
                    ping_interval_s=config.ping_interval_s,
                    ping_timeout_s=config.ping_timeout_s,
                    resume_s=config.resume_s,
                    drain_s=config.drain_s,
                    connections=2 * config.max_nodes + MAX_WAITING + 64,
                ),
                drain=self._nodes_drain,
                clock=self._ctx.clock,
                task_status=task_status,
            )
            self._nodes_gone.set()

        try:
            port: int = await nursery.start(serve)
        except OSError as exc:
            raise ConfigError("EMC-1780", f"{config.listen}: {exc.strerror or exc}") from exc
        return port

    async def _run_upstreams(self) -> None:
        async with trio.open_nursery() as nursery:
            for upstream in self._upstreams.values():
                nursery.start_soon(upstream.run)
        self._hubs_gone.set()

    async def _count(self) -> None:
        """What is shown to Prometheus, once a second."""
        while True:
            for hub in self._upstreams:
                nodes = self._desk.list_of(hub)
                NODES.labels(hub).set(len(nodes))
                IN_FLIGHT.labels(hub).set(sum(node.room.in_flight for node in nodes))
            HUBS.set(sum(upstream.is_up for upstream in self._upstreams.values()))
            await trio.sleep(COUNT_S)

    def _make_upstream(self, hub: HubRef, settings: UpstreamSettings, relay: CallRelay) -> Upstream:
        return Upstream(
            hub,
            settings,
            key=self._key,
            domain=self._domain,
            clock=self._ctx.clock,
            ssl_context=None if hub.ca_file is None else client_context(hub.ca_file),
            nodes=self._desk,
            on_call=relay.serve,
            log=self._ctx.log,
        )


async def _is_compute(_: Address, role: ParticipantRole) -> bool:
    """Any node may knock; whether it stays is its hub's to say."""
    return role is ParticipantRole.COMPUTE


def _find_tls(listen: Listen) -> ssl.SSLContext | None:
    if listen.tls_cert is None or listen.tls_key is None:
        return None
    return server_context(listen.tls_cert, listen.tls_key)


SPEC = RoleSpec(
    kind="router",
    config=RouterConfig,
    build=RouterRole,
    summary="a smart router: holds nodes' tunnels near them, and relays the calls of one or more hubs",
)
