"""The hub as the daemon sees it: what is started in which order, and how it ends.

Owns the order of things and nothing else: calls are in `calls/`, nodes in `nodes/`, records in
`records/`, rounds in `rounds/`. Invariants: no listener is open before the ledger is read and the
registry was asked for once; a drain answers what was promised before anything is closed.
"""

from __future__ import annotations

from functools import partial

import trio
from starlette.routing import Route

from emcd.errors import EmcdError, FatalError, RemoteProtocolError
from emcd.keys import SigningKey
from emcd.net.http_limit import Limits
from emcd.net.open_file import ensure_open_files
from emcd.net.ratelimit import FailureLimiter
from emcd.net.tunnel import TunnelLimits, TunnelPeer, serve_tunnels
from emcd.role import Health, HealthBoard, HealthState, RoleContext, RoleSpec
from emcd.types import Address, ParticipantRole
from emcd_hub.api.account import AccountPages, StatementDesk
from emcd_hub.api.admin import AdminPages
from emcd_hub.api.auth import FailureGuard, KeyGate
from emcd_hub.api.bundle import BundlePages
from emcd_hub.api.network import NetworkPages
from emcd_hub.api.page import build_app
from emcd_hub.api.public import BodyLimits, PublicApp
from emcd_hub.api.rounds import RoundPages
from emcd_hub.api.service import ServicePages
from emcd_hub.api.wallets import WalletPages
from emcd_hub.calls.once import OnceDesk
from emcd_hub.config import HubConfig
from emcd_hub.listener import find_tls, start_http
from emcd_hub.nodes.gate import NOT_ADMITTED, REPLACED
from emcd_hub.nodes.registry import NodeRegistry, Registered
from emcd_hub.plane import CallPlane, load_plane
from emcd_hub.rounds.archive_reader import ArchiveReader
from emcd_hub.rounds.bundle_folder import BundleFolder
from emcd_hub.rounds.plane import RoundPlane, build_rounds
from emcd_hub.routers.page import RouterPages
from emcd_hub.schema import MIGRATIONS

TICK_S = 1.0
ADMIN_LIMITS = Limits(body_bytes=64 * 1024, connections=64)
BAD_AFTER_FAILURES = 5
REGISTRY_MAX_S = 60.0
PARAMETERS_TIMEOUT_S = 10.0
MOVED_S = 30.0
OTHER_FILES = 512
"""Open files beside connections: the ledger, listeners, what is asked of others."""


class OneHub:
    """Offered as a service, so that a second hub in one daemon is a fault at start."""


class HubRole:
    """One running hub."""

    def __init__(self, config: HubConfig) -> None:
        self._config = config
        self._state = HealthState.STARTING
        self._closed = "the hub is starting"
        self._chain_failures = 0
        self._http_drain = trio.Event()
        self._tunnel_drain = trio.Event()
        self._plane: CallPlane | None = None
        self._rounds: RoundPlane | None = None
        self._wallets: WalletPages | None = None
        self._once: OnceDesk | None = None
        self.ports: dict[str, int] = {}
        """The ports that are listened on: public, tunnel, admin."""
        self.public_routes: list[Route] = []
        """What the public listener serves beside calls; the API's description is compared with it."""

    async def setup(self, ctx: RoleContext) -> None:
        """Check what can be checked without asking anybody."""
        self._ctx = ctx
        self._key: SigningKey = ctx.load_key(self._config.key)
        ctx.services.offer(OneHub, OneHub())
        for listen in (self._config.listen, self._config.tunnel_listen, self._config.admin_listen):
            find_tls(listen)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        ctx = self._ctx
        self._ensure_files()
        await self._read_parameters()
        self._plane = plane = await load_plane(self._config, ctx, self._key, self._why_closed)
        self._registry = NodeRegistry(
            self._fetch_registry,
            minimum_wei=self._read_minimum(plane),
            listed=self._config.allowed_nodes,
            only_listed=self._config.admit == "listed",
        )
        plane.routers.attach(
            self._registry,
            minimum_wei=self._read_router_minimum(plane),
            listed=self._config.allowed_routers,
            only_listed=self._config.admit == "listed",
        )
        await self._read_registry()
        await plane.suspension.refresh()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.batcher.run)
            await nursery.start(plane.gateway.sweep.run)
            nursery.start_soon(self._tick)
            nursery.start_soon(plane.model_keeper.run)
            nursery.start_soon(plane.counts.run)
            nursery.start_soon(self._follow_registry)
            if ctx.rpc is not None:
                self._rounds = build_rounds(self._config, ctx, self._key, plane.book)
                nursery.start_soon(self._rounds.keeper.run)
                nursery.start_soon(self._rounds.archivist.run)
                nursery.start_soon(self._rounds.watcher.run)
            await self._listen(nursery, plane)
            self._state, self._closed = HealthState.READY, ""
            ctx.log.info("hub is ready", address=self._key.address, **self.ports)
            task_status.started()

    async def drain(self) -> None:
        """Refuse new calls, finish those in flight, sign what is signed by nobody yet."""
        self._state, self._closed = HealthState.DRAINING, "the hub is stopping"
        if self._wallets is not None:
            self._wallets.events.close()
        if self._plane is not None:
            await self._plane.gateway.wait_idle()
            await self._plane.batcher.flush()
            await self._plane.model_keeper.flush()
        self._http_drain.set()
        self._tunnel_drain.set()

    def health(self) -> Health:
        """Degraded while the chain can't be read or rounds are late: calls go on all the same."""
        if self._state is not HealthState.READY:
            return Health(self._state, self._closed)
        problem = ""
        if self._rounds is None:
            problem = "no chain is configured: calls are recorded, rounds are not settled"
        elif self._chain_failures >= BAD_AFTER_FAILURES:
            problem = "the chain can't be read; check [chain] rpc_urls"
        else:
            problem = self._rounds.keeper.problem or self._rounds.watcher.problem or self._ctx.chain.problem
        return Health(HealthState.DEGRADED, problem) if problem else Health(HealthState.READY)

    def _why_closed(self) -> str:
        """Why no call is taken, or "": before genesis there is no round that it could belong to."""
        if not self._closed and self._plane is not None:
            return self._plane.in_force.why_closed(self._ctx.clock.now_ms())
        return self._closed

    def _ensure_files(self) -> None:
        """Room for every connection that the config allows; said aloud where the system has less."""
        needed = self._config.max_tunnels + self._config.max_connections + OTHER_FILES
        allowed = ensure_open_files(needed)
        if allowed < needed:
            self._ctx.log.warning(
                "too few open files are allowed (ulimit -n)", needed=needed, allowed=allowed
            )

    async def _listen(self, nursery: trio.Nursery, plane: CallPlane) -> None:
        config, ctx = self._config, self._ctx
        limiter = FailureLimiter(failures=config.wrong_keys_per_minute)
        guard = FailureGuard(limiter)
        gate = KeyGate(plane.keys, guard, ctx.clock)
        pages = ServicePages(
            self._key.address,
            gate,
            plane.board,
            ctx.ledger,
            ctx.clock,
            plane.in_force,
            ctx.services.find(HealthBoard),
            ArchiveReader(ctx.ledger, BundleFolder(ctx.ledger.path.parent)),
        )
        network = NetworkPages(
            plane.board, plane.models, plane.in_force, ctx.clock, plane.suspension, plane.counts, ctx.ledger
        )
        routes = pages.routes() + network.routes() + RouterPages(plane.routers, ctx.clock).routes()
        desk = StatementDesk(
            ledger=ctx.ledger, clock=ctx.clock, params=ctx.deployment.params, book=plane.book
        )
        routes += AccountPages(gate, desk, ctx.clock).routes()
        if self._rounds is not None:
            self._wallets = self._wallet_pages(self._rounds, guard)
            routes += self._round_pages(self._rounds).routes() + self._wallets.routes()
        self.public_routes = routes
        self._once = OnceDesk(
            ctx.ledger,
            ctx.clock,
            plane.gateway.once_writes,
            max_bytes=config.idempotency_bytes,
            wait_s=config.idempotency_wait_s,
        )
        public = PublicApp(
            gate=gate,
            gateway=plane.gateway,
            once=self._once,
            cold=build_app(routes, ctx.log),
            limits=BodyLimits(config.body_bytes, config.form_bytes, config.bodies_bytes),
            log=ctx.log,
        )
        admin = AdminPages(
            office=plane.office,
            ledger=ctx.ledger,
            tokens=config.admin_tokens,
            guard=FailureGuard(FailureLimiter()),
            desk=desk,
            clock=ctx.clock,
        )
        largest = max(config.body_bytes, config.form_bytes)
        limits = Limits(body_bytes=largest, connections=config.max_connections)
        start = partial(start_http, nursery, drain=self._http_drain, log=ctx.log)
        self.ports["admin"] = await start(
            build_app(admin.routes(), ctx.log), config.admin_listen, ADMIN_LIMITS
        )
        tunnel = partial(
            serve_tunnels,
            host=config.tunnel_listen.host,
            port=config.tunnel_listen.port,
            key=self._key,
            domain=ctx.deployment.staking_domain,
            on_peer=self._serve_peer,
            authorize=self._may_join,
            roles=frozenset((ParticipantRole.COMPUTE, ParticipantRole.ROUTER)),
            limits=TunnelLimits(
                open_calls=max(TunnelLimits().open_calls, 2 * config.max_calls),
                connections=config.max_tunnels,
            ),
            ssl_context=find_tls(config.tunnel_listen),
            drain=self._tunnel_drain,
            clock=ctx.clock,
        )
        self.ports["tunnel"] = await nursery.start(tunnel)
        self.ports["public"] = await start(public, config.listen, limits)

    async def _may_join(self, address: Address, role: ParticipantRole) -> bool:
        """Whether who has proven its key may hold a tunnel of this role."""
        assert self._plane is not None
        if role is ParticipantRole.ROUTER:
            return await self._plane.routers.admission.may_join(address)
        return await self._registry.may_join(address, role)

    async def _serve_peer(self, peer: TunnelPeer) -> None:
        """Raises: RemoteProtocolError EMC-14xx that tells the peer why the hub ends its tunnel."""
        assert self._plane is not None
        if peer.role is ParticipantRole.ROUTER:
            await self._plane.routers.serve(peer)
            return
        code = await self._plane.gate.serve(peer)
        if code == REPLACED:  # it has moved behind a router: what it does here goes on
            await peer.leave(MOVED_S)
        if code in (NOT_ADMITTED, REPLACED):
            raise RemoteProtocolError(code, f"{peer.address}")

    def _round_pages(self, rounds: RoundPlane) -> RoundPages:
        ctx = self._ctx
        bundles = BundlePages(ctx.ledger, rounds.folder)
        return RoundPages(deployment=ctx.deployment, bundles=bundles, reader=rounds.reader)

    def _wallet_pages(self, rounds: RoundPlane, guard: FailureGuard) -> WalletPages:
        ctx = self._ctx
        return WalletPages(
            deployment=ctx.deployment,
            ledger=ctx.ledger,
            clock=ctx.clock,
            bus=ctx.bus,
            reader=rounds.reader,
            guard=guard,
            has_wallet=self._registry.has_wallet,
            fetch_nonce=ctx.chain.distributor.fetch_extraction_nonce,
        )

    async def _tick(self) -> None:
        """Once a second: statuses that are too old, receipts that wait."""
        assert self._plane is not None
        while True:
            await trio.sleep(TICK_S)
            self._plane.gate.expire()
            self._plane.scheduler.tick(self._ctx.clock.now_ms())
            self._registry.minimum_wei = self._read_minimum(self._plane)
            await self._plane.desk.sweep()
            if self._once is not None:
                await self._once.sweep()

    async def _follow_registry(self) -> None:
        """Read the registry a few dozen times a round; whoever knocks meanwhile makes us look too."""
        assert self._plane is not None
        every_s = min(REGISTRY_MAX_S, self._ctx.deployment.params.round_s / 60)
        while True:
            await trio.sleep(max(self._config.registry_poll_s, every_s))
            await self._read_registry()
            await self._plane.suspension.refresh()
            if not self._chain_failures:
                for entry in self._plane.board.list_entries():
                    if not self._registry.may_stay(entry.address):
                        self._plane.gate.dismiss(entry.address)
                self._plane.routers.review(self._read_router_minimum(self._plane))

    async def _read_parameters(self) -> None:
        """Know today's prices before the first call; without the chain those last read count."""
        try:
            with trio.move_on_after(PARAMETERS_TIMEOUT_S):
                await self._ctx.parameters.refresh()
        except FatalError:
            raise
        except EmcdError as exc:
            self._ctx.log.warning("parameters not read", code=exc.code, detail=exc.detail)

    def _read_minimum(self, plane: CallPlane) -> int:
        """The least stake of a compute node now, in wei."""
        params = plane.in_force.params(self._ctx.clock.now_ms())
        return int.from_bytes(params.compute_minimum_wei, "big")

    def _read_router_minimum(self, plane: CallPlane) -> int:
        """The least stake of a router now, in wei."""
        params = plane.in_force.params(self._ctx.clock.now_ms())
        return int.from_bytes(params.router_minimum_wei, "big")

    async def _read_registry(self) -> None:
        if self._ctx.rpc is None:
            return
        try:
            await self._registry.refresh()
            self._chain_failures = 0
        except EmcdError as exc:
            self._chain_failures += 1
            self._ctx.log.warning("registry not read", code=exc.code, detail=exc.detail)

    async def _fetch_registry(self) -> list[Registered]:
        chain = self._ctx.chain
        rows = await chain.staking.fetch_participants(at=await chain.head())
        return [
            Registered(r.node, r.wallet, ParticipantRole(r.role), r.stake_wei, r.pending_wei, r.endpoint)
            for r in rows
        ]


SPEC = RoleSpec(
    kind="hub",
    config=HubConfig,
    build=HubRole,
    summary="the API that users call, the records of every call, the rounds settled from them",
    migrations=MIGRATIONS,
)
