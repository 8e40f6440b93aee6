"""The round plane: keeper, watcher and reader, put together. Needs the chain."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.chain import Watcher
from emcd.config import Listen
from emcd.keys import SigningKey
from emcd.net.url_guard import is_loopback
from emcd.role import RoleContext
from emcd_hub.billing.book import AccountBook
from emcd_hub.config import HubConfig
from emcd_hub.rounds.archivist import Archivist
from emcd_hub.rounds.bundle_folder import BundleFolder
from emcd_hub.rounds.chain_events import HubEventSink
from emcd_hub.rounds.closer import Closer
from emcd_hub.rounds.collector import Collector
from emcd_hub.rounds.keeper import RoundKeeper
from emcd_hub.rounds.reader import RoundReader

FETCH_SHARE = 0.1
"""How much of a round one fetch from a validator may take."""
FETCH_MAX_S = 20.0


@dataclass(frozen=True)
class RoundPlane:
    """The parts."""

    folder: BundleFolder
    keeper: RoundKeeper
    archivist: Archivist
    watcher: Watcher
    reader: RoundReader


def build_rounds(config: HubConfig, ctx: RoleContext, key: SigningKey, book: AccountBook) -> RoundPlane:
    """Build the plane; nothing is asked yet."""
    chain, params = ctx.chain, ctx.deployment.params
    folder = BundleFolder(ctx.ledger.path.parent)
    closer = Closer(
        key=key,
        deployment=ctx.deployment,
        parameters=ctx.parameters,
        ledger=ctx.ledger,
        folder=folder,
        clock=ctx.clock,
        bus=ctx.bus,
        log=ctx.log,
    )
    collector = Collector(
        hub=key.address,
        deployment=ctx.deployment,
        parameters=ctx.parameters,
        ledger=ctx.ledger,
        timeout_s=min(FETCH_MAX_S, max(1.0, params.round_s * FETCH_SHARE)),
        any_endpoint=config.private_validators or _is_local(config.listen),
        log=ctx.log,
    )
    keeper = RoundKeeper(
        chain=chain,
        parameters=ctx.parameters,
        ledger=ctx.ledger,
        clock=ctx.clock,
        bus=ctx.bus,
        closer=closer,
        collector=collector,
        poll_s=config.collect_poll_s,
        log=ctx.log,
    )
    sink = HubEventSink(
        ledger=ctx.ledger, clock=ctx.clock, params=params, book=book, bus=ctx.bus, log=ctx.log
    )
    reader = RoundReader(
        ledger=ctx.ledger, clock=ctx.clock, parameters=ctx.parameters, is_attested=keeper.is_attested
    )
    archivist = Archivist(
        params=params,
        parameters=ctx.parameters,
        ledger=ctx.ledger,
        folder=folder,
        clock=ctx.clock,
        terms=config.retention,
        log=ctx.log,
    )
    return RoundPlane(folder, keeper, archivist, chain.watcher(sink, ("distributor", "vault")), reader)


def _is_local(listen: Listen) -> bool:
    return is_loopback(listen.host)
