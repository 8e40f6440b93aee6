"""The role `node`: its models, its hub, its receipts, put together.

Owns the order of start and of the farewell. Invariants: nothing is served before every embedded
model is open; on drain the hub is told first, then the calls in flight are finished, their
receipts signed and sent, and only then is the tunnel closed.
"""

from __future__ import annotations

import random

import trio

from emcd import __version__
from emcd.errors import ConfigError
from emcd.net.tls import client_context
from emcd.net.url_guard import is_loopback, parse_target
from emcd.proto.parameter_rule import MAX_CARRY_ROUNDS
from emcd.proto.params import NetworkParams
from emcd.role import Health, HealthState, RoleContext, RoleSpec
from emcd_node.call_server import CallServer
from emcd_node.challenge_watch import ChallengeWatch
from emcd_node.config import NodeConfig
from emcd_node.directory import Directory
from emcd_node.engine_model import EngineModel
from emcd_node.filing import Filer
from emcd_node.gpu import describe_gpus
from emcd_node.heartbeat import Heartbeat, Load
from emcd_node.hub_link import HubLink, LinkSettings
from emcd_node.hub_pages import HubPages
from emcd_node.hub_proofs import HubProofs
from emcd_node.model_choice import make_model
from emcd_node.node_tunnel import Desk
from emcd_node.omission_watch import OmissionWatch
from emcd_node.receipt_book import ReceiptBook
from emcd_node.router_choice import Way
from emcd_node.router_directory import RouterDirectory
from emcd_node.schema import MIGRATIONS
from emcd_node.served_model import ServedModel
from emcd_node.transcript_folder import TranscriptFolder
from emcd_node.transcript_keeper import TranscriptKeeper

_LOOK_S = 1.0
"""How often it is looked whether a model came or went."""
_LOOK_MAX_S = 60.0
_CONSOLIDATE_AFTER_MS = 10_000
"""After a round's end: the last receipts have their batches, and the hub's deliveries have come."""
_GRACE_ROUNDS = 2
_FETCH_SHARE = 0.1
"""How much of a round one request may take."""
_FETCH_MAX_S = 10.0


class NodeRole:
    """One compute node."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._state = HealthState.STARTING
        self._models: dict[str, ServedModel] = {}

    async def setup(self, ctx: RoleContext) -> None:
        """Put the parts together.

        Raises: ConfigError EMC-1006 (no network), 1107 (key), 1323 (CA file), 1621 (engine's key),
        1631 and 1632 (a model that is not here), 2012 (its manifest has another name), 2014 (the hub's
        key is the node's), 2016 (routers from a chain that is not configured).
        """
        config, deployment = self._config, ctx.deployment
        self._ctx = ctx
        self._params = deployment.params
        self._key = ctx.load_key(config.key)
        if self._key.address == config.hub_address:
            raise ConfigError("EMC-2014", str(config.hub_address))
        self._domain = deployment.staking_domain
        self._models = {model.name: make_model(model, config.models_dir) for model in config.model}
        if config.routers_from_chain and ctx.rpc is None:
            raise ConfigError("EMC-2016", "routers_from_chain needs [chain] rpc_urls")
        self._tls = {
            ref.url: client_context(ref.ca_file) for ref in config.routers if ref.ca_file is not None
        }
        if config.hub_url and config.hub_ca_file is not None:
            self._tls[config.hub_url] = client_context(config.hub_ca_file)
        self._receipts = ReceiptBook(ctx.ledger, self._key, self._domain, self._params, ctx.clock)
        self._keeper = self._make_keeper()
        self._calls = CallServer(
            node=self._key.address,
            hub=config.hub_address,
            models=self._models,
            receipts=self._receipts,
            clock=ctx.clock,
            max_parallel_calls=config.max_parallel_calls,
            call_timeout_s=config.call_timeout_s,
            round_at=self._params.round_at,
            transcripts=self._keeper,
        )
        self._link: HubLink | None = None
        self._watch = self._make_watch()
        self._challenges = self._make_challenge_watch()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the models, then stay connected; started when the models are open.

        The hub may come later, and go: that is the health's business.
        """
        gpu = await trio.to_thread.run_sync(describe_gpus)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as opening:
                for model in self._models.values():
                    opening.start_soon(nursery.start, model.run)
            await nursery.start(self._receipts.run)
            await nursery.start(self._keeper.run)
            self._link = self._make_link(gpu)
            self._state = HealthState.READY
            nursery.start_soon(self._watch_models, self._link)
            nursery.start_soon(self._prune)
            nursery.start_soon(self._consolidate)
            if self._watch is not None:
                nursery.start_soon(self._watch.run)
            if self._challenges is not None:
                nursery.start_soon(self._challenges.run)
            task_status.started()
            await self._link.run()
            await trio.sleep_forever()

    async def drain(self) -> None:
        """Refuse new calls, finish those in flight, sign and send their receipts, leave the hub."""
        self._state = HealthState.DRAINING
        self._calls.refusing = True
        if self._link is None:
            return
        self._link.announce()
        await self._calls.wait_idle()
        await self._receipts.flush()
        await self._link.leave()

    def health(self) -> Health:
        """Degraded with the reason when calls can't come or can't be served."""
        if self._state is not HealthState.READY:
            return Health(self._state)
        complaints = [model.complaint() for model in self._models.values()]
        through = ""
        if self._link is not None:
            through = self._link.through
            complaints = [self._link.complaint, self._link.notice, self._calls.clock_complaint, *complaints]
        if self._watch is not None:
            complaints.append(self._watch.complaint)
        complaints.append(self._keeper.complaint)
        reason = "; ".join(filter(None, complaints))
        if reason:
            return Health(HealthState.DEGRADED, reason)
        engines = [model.describe() for model in self._models.values() if isinstance(model, EngineModel)]
        return Health(HealthState.READY, "; ".join(filter(None, [through, *engines])))

    def _make_link(self, gpu: str) -> HubLink:
        config, ctx = self._config, self._ctx
        hub = config.hub_address
        settings = LinkSettings(
            direct=Way(config.hub_url, hub, is_router=False) if config.hub_url else None,
            routers=tuple(Way(ref.url, ref.address) for ref in config.routers),
            ssl_contexts=self._tls,
            reconnect_max_s=min(config.reconnect_max_s, self._params.round_s / 10),
            fetch_routers=self._make_router_directory().fetch if config.routers_from_chain else None,
        )
        desk = Desk(
            key=self._key,
            domain=self._domain,
            clock=ctx.clock,
            calls=self._calls,
            receipts=self._receipts,
            proofs=HubProofs(ctx.ledger, self._key.address, hub, self._domain, self._params, ctx.clock),
            heartbeat=Heartbeat(self._key, self._domain, hub, ctx.clock, __version__, gpu, self._load),
            status_interval_s=self._status_interval_s,
            log=ctx.log,
        )
        return HubLink(settings, desk)

    def _make_router_directory(self) -> RouterDirectory:
        def minimum_wei() -> int:
            return int.from_bytes(self._params_now().router_minimum_wei, "big")

        return RouterDirectory(
            self._ctx.chain,
            minimum_wei=minimum_wei,
            sample=random.SystemRandom().sample,
            allow_loopback=self._is_local(),
        )

    def _is_local(self) -> bool:
        """Whether the hub is on this machine: a devnet, whose other parts are here too."""
        urls = [self._config.hub_url] if self._config.hub_url else [ref.url for ref in self._config.routers]
        return all(is_loopback(parse_target(url, ("ws", "wss")).host) for url in urls) and bool(urls)

    def _params_now(self) -> NetworkParams:
        """As the network has them now; without a chain, as the deployment file says."""
        index = self._params.round_at(self._ctx.clock.now_ms())
        return self._ctx.parameters.schedule.newest_readable_at(index).parameters.params

    def _status_interval_s(self) -> float:
        return self._params_now().status_interval_ms / 1000

    def _make_watch(self) -> OmissionWatch | None:
        """Who looks after this node's calls in the bundles; nobody without a chain to find them by."""
        config, ctx = self._config, self._ctx
        if not config.check_bundles or ctx.rpc is None:
            reason = "check_bundles is off" if ctx.rpc is not None else "there is no [chain]"
            ctx.log.warning("node.bundles_unchecked", reason=reason)
            return None
        node, hub = self._key.address, config.hub_address
        timeout_s = min(_FETCH_MAX_S, max(1.0, self._params.round_s * _FETCH_SHARE))
        return OmissionWatch(
            node=node,
            params=self._params,
            parameters=ctx.parameters,
            ledger=ctx.ledger,
            clock=ctx.clock,
            pages=HubPages(
                node=node,
                hub=hub,
                domain=self._domain,
                folder=ctx.data_dir,
                max_bundle_bytes=config.bundle_limit_mb << 20,
                timeout_s=timeout_s,
            ),
            directory=Directory(ctx.rpc, hub, config.hub_api_url, allow_loopback=self._is_local()),
            filer=Filer(self._key, self._domain, timeout_s=timeout_s),
            log=ctx.log,
        )

    def _make_keeper(self) -> TranscriptKeeper:
        """Where calls are kept; by the node's key, for several nodes may share a data folder."""
        ctx, node = self._ctx, self._key.address
        folder = TranscriptFolder(ctx.data_dir / "transcripts" / node, self._config.transcript_mb << 20)
        return TranscriptKeeper(node, folder, ctx.log)

    def _make_challenge_watch(self) -> ChallengeWatch | None:
        """Who opens challenged receipts; nobody without a chain to know the validators by."""
        config, ctx = self._config, self._ctx
        if ctx.rpc is None:
            return None
        return ChallengeWatch(
            node=self._key.address,
            domain=self._domain,
            params=self._params,
            ledger=ctx.ledger,
            clock=ctx.clock,
            directory=Directory(
                ctx.rpc, config.hub_address, config.hub_api_url, allow_loopback=self._is_local()
            ),
            keeper=self._keeper,
            timeout_s=min(_FETCH_MAX_S, max(1.0, self._params.round_s * _FETCH_SHARE)),
            log=ctx.log,
        )

    def _load(self) -> Load:
        return Load(
            manifests=[model.manifest for model in self._models.values() if model.is_available()],
            capacity=0 if self._calls.refusing else self._config.max_parallel_calls,
            in_flight=self._calls.in_flight,
        )

    async def _watch_models(self, link: HubLink) -> None:
        """Tell the hub at once when an engine came or went."""
        shown: list[str] | None = None
        while True:
            available = [name for name, model in self._models.items() if model.is_available()]
            if shown is not None and available != shown:
                self._ctx.log.warning("node.models_changed", available=available)
                link.announce()
            shown = available
            await trio.sleep(_LOOK_S)

    async def _prune(self) -> None:
        """Forget what no bundle may carry any more, and sooner what one carried that can't be vetoed."""
        while True:
            params = self._ctx.parameters.schedule.newest.parameters.params
            settled = params.challenge_delay_rounds + params.void_after_rounds
            rows = await self._receipts.prune(MAX_CARRY_ROUNDS + _GRACE_ROUNDS, settled + _GRACE_ROUNDS)
            if rows:
                self._ctx.log.debug("node.pruned", rows=rows)
            await self._keeper.prune(self._params.round_at(self._ctx.clock.now_ms()))
            await trio.sleep(self._params.round_s)

    async def _consolidate(self) -> None:
        """Soon after each round: sign its receipts anew in larger batches, where they stand in small ones."""
        params, clock = self._params, self._ctx.clock
        wait_ms = min(_CONSOLIDATE_AFTER_MS, params.round_s * 1000 // 5)
        while True:
            index = params.round_at(clock.now_ms() - wait_ms) - 1
            if index >= 0 and self._state is HealthState.READY:
                batches = await self._receipts.consolidate(index)
                if batches:
                    self._ctx.log.info("node.receipts_consolidated", round=index, batches=batches)
            left_ms = params.round_end_ms(index + 1) + wait_ms - clock.now_ms()
            await trio.sleep(min(_LOOK_MAX_S, max(0.05, left_ms / 1000)))


SPEC = RoleSpec(
    kind="node",
    config=NodeConfig,
    build=NodeRole,
    summary="a compute node: serves AI models to a hub and signs a receipt for every call",
    migrations=MIGRATIONS,
)
