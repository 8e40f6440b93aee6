"""The role `validator`: probes nodes as a user would, judges, votes, audits and attests.

Owns the tasks: the listener, commitments, attestations, and per round the probes, the reveal and
the exchange with peers. Everything that must survive is in the ledger, so that starting is also
recovering.
"""

from __future__ import annotations

from functools import partial

import trio

from emcd.config import is_loopback
from emcd.net.http_limit import Limits
from emcd.net.http_server import serve_http
from emcd.net.tls import server_context
from emcd.role import Health, HealthState, Role, RoleContext, RoleSpec
from emcd_validator.api_keys import ApiKeys, Retirement, load_api_keys
from emcd_validator.attester import Attester
from emcd_validator.bundle_store import BundleStore
from emcd_validator.chain_view import ChainViews
from emcd_validator.committer import Committer
from emcd_validator.config import ValidatorConfig
from emcd_validator.corpus_store import CorpusStore
from emcd_validator.hub_client import HubClient
from emcd_validator.judge_desk import make_judge
from emcd_validator.key_watch import KeyWatch
from emcd_validator.model import list_judged
from emcd_validator.offence_chain import OffenceChain
from emcd_validator.offence_desk import OffenceDesk
from emcd_validator.offence_exchange import OffenceExchange
from emcd_validator.offence_page import OffencePages
from emcd_validator.offence_run import OffenceRunner
from emcd_validator.page import MAX_ANSWER_BYTES
from emcd_validator.peer_client import PeerClient
from emcd_validator.prober import Prober
from emcd_validator.profile import load_profile
from emcd_validator.queries.keys import ensure_instance
from emcd_validator.queries.rounds import mark_lost
from emcd_validator.reference import ReferenceSettings
from emcd_validator.round_run import RoundRunner, prune
from emcd_validator.schema import MIGRATIONS
from emcd_validator.server import Pages
from emcd_validator.signatory import finish_drafts
from emcd_validator.slash_desk import SlashDesk
from emcd_validator.validator import Validator
from emcd_validator.voter import Voter
from emcd_validator.watch import Watch

_LIMITS = Limits(body_bytes=MAX_ANSWER_BYTES + 1024, connections=512)
"""Peers, hub, settler, nodes and users; every page has a smaller bound of its own for what it reads."""


class ValidatorRole(Role):
    """One running validator."""

    def __init__(self, config: ValidatorConfig) -> None:
        self._config = config
        self._health = Health(HealthState.STARTING)
        self._drain = trio.Event()

    async def setup(self, ctx: RoleContext) -> None:
        """Raises: ConfigError EMC-1805 (API keys that can't be used), EMC-11xx (key)."""
        config = self._config
        self._keys = ApiKeys((), Retirement(config.key_probes, config.key_days))
        if config.api_key_file is None or await trio.Path(config.api_key_file).exists():
            read = partial(load_api_keys, config.api_key_file, config.api_key_env)
            self._keys.replace(await trio.to_thread.run_sync(read))
        self._profile = await trio.to_thread.run_sync(load_profile, config.profile)
        models = await trio.to_thread.run_sync(
            list_judged, config.models, config.models_dir or ctx.data_dir / "models"
        )
        signer, *more = [ctx.load_key(ref) for ref in (config.key, *config.more_keys)]
        addresses = [signer.address, *(key.address for key in more)]
        self._chain = ctx.chain
        self._offence_chain = OffenceChain(ctx.chain)
        self._validator = Validator(
            signer=signer,
            more_signers=tuple(more),
            instance=await ctx.ledger.write(lambda con: ensure_instance(con, addresses)),
            parameters=ctx.parameters,
            fetch_members=self._offence_chain.fetch_members,
            hub=config.hub_address,
            deployment=ctx.deployment,
            models=models,
            ledger=ctx.ledger,
            clock=ctx.clock,
            bus=ctx.bus,
            started_at_ms=ctx.clock.now_ms(),
            log=ctx.log,
        )
        corpus = config.corpus or ctx.data_dir / f"{ctx.name}-corpus.jsonl"
        self._committer = Committer(
            self._validator,
            CorpusStore(
                corpus, config.corpus_leaves, is_generated=config.corpus is None, profile=self._profile
            ),
        )
        self._judge = make_judge(
            self._validator.domain, config.hub_address, models, ReferenceSettings(config.reference_threads)
        )
        self._views = ChainViews(ctx.chain, ctx.parameters)
        self._build_parts()

    def _build_parts(self) -> None:
        config, validator = self._config, self._validator
        hub = HubClient(
            config.hub_url,
            timeout_s=min(10.0, max(1.0, validator.params.round_s / 10)),
            clients=self._profile.clients,
        )
        self._key_watch = KeyWatch(validator, self._keys, config.api_key_file, config.api_key_env)
        peers = PeerClient(
            allow_loopback=is_loopback(config.listen.host),
            timeout_s=min(10.0, max(1.0, validator.params.round_s / 10)),
        )
        self._voter = Voter(validator, peers, self._judge)
        self._prober = Prober(validator, hub, self._keys, self._judge, config.call_timeout_s)
        store = BundleStore(validator.ledger.path.parent / "audits" / validator.address)
        self._attester = Attester(validator, hub, store, self._views, self._voter)
        watch = self._watch = Watch(validator, peers, self._views, self._judge, self._voter.own_judge)
        self._rounds = RoundRunner(
            validator, self._views, self._committer, self._prober, self._voter, watch.giver
        )
        chain = self._offence_chain
        desk = OffenceDesk(validator, chain, watch.false_verdicts)
        exchange = OffenceExchange(validator, peers, chain, desk)
        self._offences = OffenceRunner(validator, desk, exchange, SlashDesk(validator, chain))
        offences = OffencePages(validator, desk)
        self._pages = Pages(validator, self._attester, offences, self.health, watch.routes())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover, listen, then work rounds until cancelled."""
        validator, listen = self._validator, self._config.listen
        lost = await validator.write(
            lambda con: mark_lost(con, validator.address, "the daemon stopped while it was under way")
        )
        signed = await finish_drafts(validator)
        if lost or signed:
            validator.log.warning("recovered", lost_probes=lost, signed_drafts=signed)
        context = None
        if listen.tls_cert is not None and listen.tls_key is not None:
            context = server_context(listen.tls_cert, listen.tls_key)
        await self._committer.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._judge.run)
            serve = partial(
                serve_http,
                self._pages.build_app(),
                host=listen.host,
                port=listen.port,
                ssl_context=context,
                limits=_LIMITS,
                drain=self._drain,
                on_error=lambda exc: validator.log.error("page failed", exc_info=exc),
            )
            self.port = await nursery.start(serve)
            nursery.start_soon(self._key_watch.run)
            nursery.start_soon(self._committer.run)
            nursery.start_soon(self._attester.run)
            nursery.start_soon(self._rounds.run)
            nursery.start_soon(self._offences.run)
            nursery.start_soon(self._watch.run)
            nursery.start_soon(self._prune)
            self._health = Health(HealthState.READY)
            task_status.started()

    async def drain(self) -> None:
        """Stop listening; what was promised stands in the ledger and goes on at the next start."""
        self._health = Health(HealthState.DRAINING)
        self._drain.set()

    def health(self) -> Health:
        complaint = (
            self._committer.complaint
            or self._key_watch.complaint
            or self._judge.complaint
            or self._watch.complaint
            or self._chain.problem
        )
        if self._health.state is HealthState.READY and complaint:
            return Health(HealthState.DEGRADED, complaint)
        return self._health

    async def _prune(self) -> None:
        while True:
            await prune(self._validator)
            await trio.sleep(max(1.0, self._validator.params.round_s))


SPEC = RoleSpec(
    kind="validator",
    config=ValidatorConfig,
    build=ValidatorRole,
    summary="probes nodes, judges their answers, audits rounds and attests them",
    migrations=MIGRATIONS,
)
