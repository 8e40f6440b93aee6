"""The role `settler`: publishes attested rounds, claims for wallets that asked, brings orders to slash.

Nobody has to trust it: a root counts by the validators' signatures, a claim by the wallet's. It
holds a key with gas and no other power. Everything that must survive is in the ledger or in the
outbox, so starting is also recovering.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from emcd.config import is_loopback
from emcd.errors import EmcdError, FatalError
from emcd.ledger.outbox_store import LedgerOutboxStore
from emcd.net.url_guard import parse_target
from emcd.role import Health, HealthState, Role, RoleContext, RoleSpec
from emcd.types import Hash
from emcd_settler.claimer import Claimer
from emcd_settler.config import SettlerConfig
from emcd_settler.hub_group import HubGroup
from emcd_settler.hub_source import HubSource
from emcd_settler.peer import PeerCollector
from emcd_settler.publisher import Publisher
from emcd_settler.reporter import Reporter
from emcd_settler.schema import MIGRATIONS
from emcd_settler.slasher import Slasher

MAX_POLL_S = 30.0
POLLS_PER_ROUND = 15
SLASH_POLLS = 4
"""Orders to slash stand for an epoch: they are looked for less often."""
WATCH_ROUNDS = 12
"""How long a paid claim is watched."""


class SettlerRole(Role):
    """One running settler."""

    def __init__(self, config: SettlerConfig) -> None:
        self._config = config
        self._state = HealthState.STARTING
        self._problems: dict[str, str] = {}
        self._log: structlog.stdlib.BoundLogger

    async def setup(self, ctx: RoleContext) -> None:
        """Raises: ConfigError EMC-11xx (key), EMC-1006, EMC-1007 (no network, no chain)."""
        config, deployment, chain = self._config, ctx.deployment, ctx.chain
        params = deployment.params
        self._log = ctx.log
        self._poll_s = config.poll_s or min(MAX_POLL_S, params.round_s / POLLS_PER_ROUND)
        timeout_s = min(config.peer_timeout_s, max(1.0, params.round_s / 3))
        self._chain = chain
        key, store = ctx.load_key(config.key), LedgerOutboxStore(ctx.ledger)
        self._outbox = chain.outbox(store, key)
        sources = [
            HubSource(
                url,
                deployment,
                timeout_s=timeout_s,
                bundle_timeout_s=config.bundle_timeout_s,
                folder=ctx.ledger.path.parent,
            )
            for url in dict.fromkeys((config.hub_url, *config.hub_urls))
        ]
        self._hubs = HubGroup(sources, ctx.log)

        async def find_tx(name: str) -> Hash | None:
            attempts = await store.list_attempts(key.address, name)
            return Hash(attempts[-1].tx_hash) if attempts else None

        self._claimer = Claimer(
            instance=ctx.name,
            domain=deployment.distributor_domain,
            chain=chain,
            outbox=self._outbox,
            ledger=ctx.ledger,
            clock=ctx.clock,
            hub=self._hubs,
            find_tx=find_tx,
            find_round=lambda: params.round_at(ctx.clock.now_ms()),
            watch_ms=WATCH_ROUNDS * params.round_s * 1000,
            submit_claims=config.submit_claims,
            least_claim_wei=int(config.least_claim_wei),
            log=ctx.log,
        )
        peers = PeerCollector(
            deployment.distributor_domain,
            ctx.log,
            staking=deployment.staking_domain,
            allow_loopback=is_loopback(parse_target(config.hub_url).host),
            timeout_s=timeout_s,
        )
        self._slasher = Slasher(
            instance=ctx.name,
            params=params,
            chain=chain,
            outbox=self._outbox,
            ledger=ctx.ledger,
            clock=ctx.clock,
            peers=peers,
            log=ctx.log,
        )
        self._publisher = Publisher(
            instance=ctx.name,
            parameters=ctx.parameters,
            every_rounds=config.publish_every_rounds or params.epoch_rounds,
            chain=chain,
            outbox=self._outbox,
            ledger=ctx.ledger,
            clock=ctx.clock,
            peers=peers,
            list_wanted=self._claimer.list_wanted,
            is_worth=self._claimer.is_worth,
            log=ctx.log,
        )

        self._reporter = Reporter(
            instance=ctx.name,
            domain=deployment.staking_domain,
            key=key,
            ledger=ctx.ledger,
            clock=ctx.clock,
            hubs=self._hubs,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look and act until cancelled. Cancellation: at any point; the next start goes on."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._outbox.run)
            nursery.start_soon(self._repeat, "publishing", self._publisher.step)
            nursery.start_soon(self._repeat, "slashing", self._slasher.step, SLASH_POLLS)
            nursery.start_soon(self._repeat, "requests", self._claimer.take_requests)
            nursery.start_soon(self._repeat, "claiming", self._claimer.step)
            nursery.start_soon(self._repeat, "reporting", self._reporter.step)
            self._state = HealthState.READY
            task_status.started()

    async def drain(self) -> None:
        """Take nothing new on; what the outbox holds goes on at the next start."""
        self._state = HealthState.DRAINING

    def health(self) -> Health:
        if self._state is not HealthState.READY:
            return Health(self._state)
        problems = {
            **self._problems,
            "overdue": self._publisher.problem,
            "hubs": self._hubs.problem,
            "transactions": self._outbox.problem,
            "chain": self._chain.problem,
        }
        named = [f"{name}: {text}" for name, text in problems.items() if text]
        return Health(HealthState.DEGRADED, "; ".join(named)) if named else Health(self._state)

    async def _repeat(self, name: str, step: Callable[[], Awaitable[None]], polls: int = 1) -> None:
        while True:
            if self._state is HealthState.READY:
                await self._try(name, step)
            await trio.sleep(polls * self._poll_s)

    async def _try(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """One step; what may work the next time is a complaint, not a crash."""
        try:
            await step()
        except FatalError:
            raise
        except EmcdError as exc:
            text = f"{exc.code}: {exc.detail}"
            if self._problems.get(name) != text:
                self._log.warning("settler_step_failed", step=name, code=exc.code, detail=exc.detail)
            self._problems[name] = text
        else:
            self._problems[name] = ""


SPEC = RoleSpec(
    kind="settler",
    config=SettlerConfig,
    build=SettlerRole,
    summary="carries attested rounds, asked-for claims and orders to slash to the chain",
    migrations=MIGRATIONS,
)
