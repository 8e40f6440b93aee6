"""The call plane: everything a call needs, put together from the ledger and the config.

Nothing here waits but `load_plane`, which reads the ledger once; tasks are the role's.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from emcd.keys import SigningKey
from emcd.ledger import Connection
from emcd.proto.parameter_rule import MAX_CARRY_ROUNDS
from emcd.proto.params import NetworkParams
from emcd.role import RoleContext
from emcd.types import Address
from emcd_hub.billing.book import AccountBook
from emcd_hub.billing.keys import KeyIndex
from emcd_hub.billing.office import BillingOffice
from emcd_hub.calls.gateway import Gateway
from emcd_hub.calls.recorder import CallRecorder
from emcd_hub.config import HubConfig
from emcd_hub.counts.desk import CountDesk
from emcd_hub.in_force import InForce
from emcd_hub.nodes.board import NodeBoard
from emcd_hub.nodes.gate import NodeGate
from emcd_hub.nodes.model_book import ModelBook
from emcd_hub.nodes.model_keeper import ModelKeeper
from emcd_hub.nodes.model_row import load_slots
from emcd_hub.nodes.scheduler import Scheduler
from emcd_hub.nodes.suspension import SuspensionWatch
from emcd_hub.records.batcher import Batcher
from emcd_hub.records.call_row import find_last_seq, sum_by_node
from emcd_hub.records.receipt_desk import ReceiptDesk
from emcd_hub.records.unsigned import find_unsigned
from emcd_hub.rounds.bundle_row import list_facts
from emcd_hub.routers.gate import RouterGate


@dataclass(frozen=True)
class CallPlane:
    """The parts."""

    book: AccountBook
    keys: KeyIndex
    office: BillingOffice
    board: NodeBoard
    scheduler: Scheduler
    models: ModelBook
    model_keeper: ModelKeeper
    suspension: SuspensionWatch
    batcher: Batcher
    desk: ReceiptDesk
    gate: NodeGate
    routers: RouterGate
    gateway: Gateway
    in_force: InForce
    counts: CountDesk


class _Sink:
    """Where the recorder sends record hashes."""

    def __init__(self, batcher: Batcher, desk: ReceiptDesk) -> None:
        self.add_forward = batcher.add_forward
        self.add_delivery = batcher.add_delivery
        self.expect_receipt = desk.expect


async def load_plane(
    config: HubConfig, ctx: RoleContext, key: SigningKey, is_open: Callable[[], str]
) -> CallPlane:
    """Build the plane, and queue again what a crash left unsigned."""
    deployment = ctx.deployment
    clock, domain = deployment.params, deployment.staking_domain
    keep_ms = (MAX_CARRY_ROUNDS + 2) * clock.round_s * 1000
    in_force = InForce(ctx.parameters)
    book = AccountBook(use_first=config.use_first, max_calls=config.max_calls_per_account)
    keys = KeyIndex()
    office = BillingOffice(ledger=ctx.ledger, clock=ctx.clock, book=book, keys=keys)
    await office.load()
    board = NodeBoard(in_force.params(ctx.clock.now_ms()).online_window_ms, config.max_waiting)
    desk = ReceiptDesk(domain=domain, ledger=ctx.ledger, clock=ctx.clock, keep_ms=keep_ms)
    gate = NodeGate(
        hub=key.address,
        domain=domain,
        in_force=in_force,
        manifests={name: frozenset(map(bytes, hashes)) for name, hashes in config.manifests.items()},
        board=board,
        desk=desk,
        ledger=ctx.ledger,
        clock=ctx.clock,
        bus=ctx.bus,
        log=ctx.log,
    )
    routers = RouterGate(
        hub=key.address,
        domain=domain,
        gate=gate,
        max_nodes=config.max_nodes_per_router,
        clock=ctx.clock,
        log=ctx.log,
    )
    batcher = Batcher(signer=key, domain=domain, ledger=ctx.ledger, clock=ctx.clock, notify=gate.notify)
    last_seq = await _restore(ctx, key.address, batcher, desk, keep_ms)
    recorder = CallRecorder(
        hub=key.address,
        in_force=in_force,
        ledger=ctx.ledger,
        clock=ctx.clock,
        book=book,
        sink=_Sink(batcher, desk),
        random_bytes=secrets.token_bytes,
        last_seq=last_seq,
    )
    now_ms = ctx.clock.now_ms()
    models = ModelBook(now_ms, await ctx.ledger.read(lambda con: load_slots(con, now_ms)))
    uniform = random.random
    scheduler = Scheduler(
        board=board,
        book=models,
        rules=config.routing_rules,
        price_now=recorder.price_now,
        draw=lambda n: int(uniform() * n),  # a tenth of what randrange takes
        jitter=uniform,
    )
    keeper = ModelKeeper(models=models, ledger=ctx.ledger, clock=ctx.clock)
    suspension = SuspensionWatch(board=board, ledger=ctx.ledger, clock=ctx.clock, params=clock)
    counts = CountDesk(
        models_dir=config.models_dir or ctx.data_dir / "models",
        share=config.reconcile_share,
        ledger=ctx.ledger,
        clock=ctx.clock,
        draw=uniform,
        log=ctx.log,
    )
    await counts.load()
    gateway = Gateway(
        scheduler=scheduler,
        book=book,
        recorder=recorder,
        limits=config.call_limits,
        is_open=is_open,
        on_evidence=counts.offer,
    )
    return CallPlane(
        book,
        keys,
        office,
        board,
        scheduler,
        models,
        keeper,
        suspension,
        batcher,
        desk,
        gate,
        routers,
        gateway,
        in_force,
        counts,
    )


async def _restore(ctx: RoleContext, hub: Address, batcher: Batcher, desk: ReceiptDesk, keep_ms: int) -> int:
    """Returns: the largest call number in use."""
    since_ms = ctx.clock.now_ms() - keep_ms
    lately_ms = ctx.clock.now_ms() - 2000 * ctx.deployment.params.round_s
    last_seq, unsigned, proven = await ctx.ledger.read(
        lambda con: (
            find_last_seq(con),
            find_unsigned(con, hub, since_ms, open_since_ms(con, ctx.deployment.params)),
            sum_by_node(con, lately_ms, 2**62),
        ),
        timeout_s=120,
    )
    batcher.restore(unsigned.forwards, unsigned.deliveries)
    desk.restore(unsigned.receipts)
    desk.restore_allowance((node, count) for node, count, _ in proven)
    return last_seq


def open_since_ms(con: Connection, params: NetworkParams) -> int:
    """When the first round began that is not closed: its calls stand in no bundle yet."""
    closed = list_facts(con, 1)
    return params.round_end_ms(closed[0].round) if closed else 0
