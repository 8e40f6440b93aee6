"""The role `node`: its models, its hub, its receipts, put together.

Owns the order of start and of the farewell. Invariants: nothing is served before every embedded
model is open; on drain the hub is told first, then the calls in flight are finished, their
receipts signed and sent, and only then is the tunnel closed.
"""

from __future__ import annotations

import os

import trio

from emcd import __version__
from emcd.errors import ConfigError
from emcd.inference.embedder import EmbedderSettings
from emcd.inference.engine import Engine, EngineTimes, load_api_key
from emcd.log import register_secret
from emcd.net.tls import client_context
from emcd.role import Health, HealthState, RoleContext, RoleSpec
from emcd_node.call_server import CallServer
from emcd_node.config import ModelConfig, NodeConfig
from emcd_node.embedded_model import EmbeddedModel
from emcd_node.engine_model import EngineModel
from emcd_node.gpu import describe_gpus
from emcd_node.heartbeat import Heartbeat, Load
from emcd_node.hub_link import HubLink, LinkSettings
from emcd_node.hub_proofs import HubProofs
from emcd_node.receipt_book import ReceiptBook
from emcd_node.schema import MIGRATIONS
from emcd_node.served_model import ServedModel

_LOOK_S = 1.0
"""How often it is looked whether a model came or went."""


class NodeRole:
    """One compute node."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._state = HealthState.STARTING
        self._models: dict[str, ServedModel] = {}

    async def setup(self, ctx: RoleContext) -> None:
        """Put the parts together.

        Raises: ConfigError EMC-1006 (no network), 1107 (key), 1323 (CA file), 1621 (engine's key),
        2014 (the hub's key is the node's).
        """
        config, deployment = self._config, ctx.deployment
        self._ctx = ctx
        self._params = deployment.params
        self._key = ctx.load_key(config.key)
        if self._key.address == config.hub_address:
            raise ConfigError("EMC-2014", str(config.hub_address))
        self._domain = deployment.staking_domain
        self._models = {model.name: self._make_model(model) for model in config.model}
        self._tls = None if config.hub_ca_file is None else client_context(config.hub_ca_file)
        self._receipts = ReceiptBook(ctx.ledger, self._key, self._domain, self._params, ctx.clock)
        self._calls = CallServer(
            node=self._key.address,
            hub=config.hub_address,
            models=self._models,
            receipts=self._receipts,
            clock=ctx.clock,
            max_parallel_calls=config.max_parallel_calls,
            call_timeout_s=config.call_timeout_s,
        )
        self._link: HubLink | None = None

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
            self._link = self._make_link(gpu)
            self._state = HealthState.READY
            nursery.start_soon(self._watch_models, self._link)
            nursery.start_soon(self._prune)
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
        if self._link is not None:
            complaints = [self._link.complaint, self._link.notice, self._calls.clock_complaint, *complaints]
        reason = "; ".join(filter(None, complaints))
        return Health(HealthState.DEGRADED, reason) if reason else Health(HealthState.READY)

    def _make_link(self, gpu: str) -> HubLink:
        config, ctx = self._config, self._ctx
        hub = config.hub_address
        settings = LinkSettings(
            url=config.hub_url,
            hub=hub,
            ssl_context=self._tls,
            status_interval_s=self._params.status_interval_ms / 1000,
            reconnect_max_s=min(config.reconnect_max_s, self._params.round_s / 10),
        )
        heartbeat = Heartbeat(self._key, self._domain, hub, ctx.clock, __version__, gpu, self._load)
        return HubLink(
            settings,
            key=self._key,
            domain=self._domain,
            clock=ctx.clock,
            calls=self._calls,
            receipts=self._receipts,
            proofs=HubProofs(ctx.ledger, self._key.address, hub, self._domain, self._params, ctx.clock),
            heartbeat=heartbeat,
            log=ctx.log,
        )

    def _make_model(self, model: ModelConfig) -> ServedModel:
        if model.kind == "embedded":
            threads = model.threads or os.cpu_count() or 1
            settings = EmbedderSettings(threads=threads, parallel_runs=model.parallel_runs)
            variant = "fp32" if model.serve_quantised == "none" else model.serve_quantised
            return EmbeddedModel(self._config.models_dir, settings, variant)
        api_key = load_api_key(model.api_key_env, model.api_key_file)
        if api_key:
            register_secret(api_key)
        times = EngineTimes(head_s=model.head_timeout_s, idle_s=model.idle_timeout_s)
        return EngineModel(model.name, Engine(model.url, api_key, times))

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
        while True:
            rows = await self._receipts.prune(self._params.carry_rounds)
            if rows:
                self._ctx.log.debug("node.pruned", rows=rows)
            await trio.sleep(self._params.round_s)


SPEC = RoleSpec(
    kind="node",
    config=NodeConfig,
    build=NodeRole,
    summary="a compute node: serves AI models to a hub and signs a receipt for every call",
    migrations=MIGRATIONS,
)
