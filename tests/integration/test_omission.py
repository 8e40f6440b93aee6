"""A hub that leaves one node's calls out of its bundles, and how the node gets them back.

Hub, node and the validators' audits are the real things over real sockets; the chain is a table,
and the lie is a double of the closer's input: the calls stand in the hub's ledger and in no bundle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import msgspec
import pytest
import trio
from click.testing import CliRunner

from emcd.accounting.round_close import CallRecords
from emcd.bus import Bus
from emcd.chain import BlockRef, Deposit, Publication, PublicationState
from emcd.clock import SystemClock
from emcd.command import CommandContext
from emcd.config import DaemonConfig, KeyFile
from emcd.ledger import Ledger, open_ledger
from emcd.log import get_logger
from emcd.net.http_client import request
from emcd.net.http_server import serve_http
from emcd.proto.bundle_codec import decode_bundle
from emcd.proto.records import BATCH_MS
from emcd.services import FixedParameters, Health, HealthState
from emcd.testing import make_context, make_key, running_role
from emcd.types import ZERO_ADDRESS, ZERO_HASH, Address, Micro, Wei
from emcd_hub.billing.queries import vault_account
from emcd_hub.rounds.settle_input import SettleInput
from emcd_node.cli import node as node_command
from emcd_node.config import ModelConfig, NodeConfig
from emcd_node.omission_row import CallState, count_states
from emcd_node.role import NodeRole
from emcd_node.schema import MIGRATIONS as NODE_MIGRATIONS
from emcd_validator.attester import Attester
from emcd_validator.bundle_store import BundleStore
from emcd_validator.chain_view import ChainViews
from emcd_validator.false_verdict import FalseVerdictJudge
from emcd_validator.hub_client import HubClient
from emcd_validator.offence_chain import OffenceChain
from emcd_validator.offence_desk import OffenceDesk
from emcd_validator.offence_page import OffencePages
from emcd_validator.peer_client import PeerClient
from emcd_validator.role import SPEC as VALIDATOR
from emcd_validator.server import Pages
from emcd_validator.validator import Validator
from emcd_validator.voter import Voter
from tests.support.hub_rounds import StubChain, quick_deployment
from tests.support.hub_world import (
    HUB_KEY,
    MODEL,
    HubWorld,
    StubNode,
    embedding_body,
    node_key,
    running_world,
)
from tests.support.inference_engine import answer, scripted_engine
from tests.support.validator_world import make_fake_judge

EMBEDDINGS = "/v1/embeddings"
KEY_FILE = KeyFile(Path("node.json"))
VICTIM = node_key(0)
ROUND_S = 2
READY = Health(HealthState.READY)
ENGINE: dict[str, Sequence[bytes]] = {
    EMBEDDINGS: [answer(200, embedding_body())],
    "/v1/models": [answer(200, b'{"object":"list","data":[{"id":"%s","object":"model"}]}' % MODEL.encode())],
}


class Chain(StubChain):
    """What hub, node and validators ask of the chain; nothing is ever published."""

    def __init__(self, deployment: Any) -> None:
        super().__init__(deployment)
        self.config = SimpleNamespace(poll_s=0.05, confirmations=1)
        self.problem = ""
        self.deposits: list[Deposit] = []
        self.hub_url = ""

    async def fetch_validator_set(self, epoch: int, *, at: BlockRef | None = None) -> Any:
        return await super().fetch_validator_set(epoch, at=at or await self.head())

    async def find_participant(self, node: Address, *, at: BlockRef | None = None) -> Any:
        found = {item.node: item for item in await self.fetch_participants(at=await self.head())}
        if node == HUB_KEY.address:
            return SimpleNamespace(endpoint=self.hub_url)
        return found.get(node)

    async def fetch_publication(self, index: int, *, at: BlockRef | None = None) -> Publication:
        await trio.lowlevel.checkpoint()
        return Publication(
            PublicationState.NONE, ZERO_HASH, ZERO_HASH, Wei(0), 0, ZERO_ADDRESS, Wei(0), False
        )

    async def find_tip_round(self, *, at: BlockRef | None = None) -> None:
        await trio.lowlevel.checkpoint()

    async def fetch_deposits(self, first: int = 0, *, at: BlockRef | None = None) -> list[Deposit]:
        await trio.lowlevel.checkpoint()
        return self.deposits[first:]


class Liar(SettleInput):
    """The closer's input without the calls of some nodes."""

    dropped: ClassVar[frozenset[Address]] = frozenset()

    def _iter_calls(self, named: frozenset[bytes]) -> Iterator[CallRecords]:
        for call in super()._iter_calls(named):
            if call.forward.node not in self.dropped:
                yield call


@dataclass
class Net:
    """What a test looks at."""

    chain: Chain
    hub: HubWorld
    victim: NodeRole
    node_ledger: Ledger
    folder: Path
    validators: list[str] = field(default_factory=list)

    def now_round(self) -> int:
        return int(self.chain.deployment.params.round_at(self.chain.clock.now_ms()))

    async def until(self, condition: Callable[[], Awaitable[bool]], rounds: int = 12) -> None:
        with trio.fail_after(rounds * self.chain.deployment.params.round_s):
            while not await condition():
                await trio.sleep(0.05)

    async def until_round(self, index: int) -> None:
        async def begun() -> bool:
            return self.now_round() >= index

        await self.until(begun)

    async def states(self) -> dict[CallState, int]:
        return await self.node_ledger.read(lambda con: count_states(con, VICTIM.address))

    async def wait_decisions(self, index: int, code: str) -> None:
        """Until every validator says this of a round."""

        async def decided() -> bool:
            return await self.decisions(index) == [code] * len(self.validators)

        await self.until(decided, 8)

    async def decisions(self, index: int) -> list[str]:
        """What each validator says of a round: "" for signed, else its code."""
        answers = [await request("GET", f"{url}/attestations/{index}") for url in self.validators]
        return ["" if item.status == 200 else item.json()["code"] for item in answers]

    async def get(self, path: str) -> Any:
        answered = await request("GET", self.hub.url + path)
        assert answered.status == 200, answered.body
        return answered.json()

    async def call(self, node: Address) -> None:
        headers = {"authorization": f"Bearer {self.hub.api_key}"}
        body = {"model": MODEL, "input": "hello", "provider": {"only": [node]}}
        answered = await request("POST", self.hub.url + EMBEDDINGS, json=body, headers=headers)
        assert answered.status == 200, answered.body


async def add_validator(
    nursery: trio.Nursery, name: str, chain: Chain, hub_url: str, ledger: Ledger, folder: Path
) -> str:
    """A validator that audits and attests; it draws no probes."""
    deployment, any_chain = chain.deployment, cast("Any", chain)
    parameters = FixedParameters(deployment.params, deployment.prices)
    offence_chain = OffenceChain(any_chain)
    validator = Validator(
        signer=make_key(name), parameters=parameters, fetch_members=offence_chain.fetch_members,
        hub=HUB_KEY.address, deployment=deployment, models={}, ledger=ledger, clock=chain.clock, bus=Bus(),
        started_at_ms=0, log=get_logger(name=name),
    )  # fmt: skip
    views = ChainViews(any_chain, parameters)
    judge = make_fake_judge(deployment)
    voter = Voter(validator, PeerClient(allow_loopback=True, timeout_s=1), judge)
    store = BundleStore(folder / f"{name}-audits")
    await store.prepare()
    attester = Attester(validator, HubClient(hub_url, timeout_s=2), store, views, voter)
    desk = OffenceDesk(validator, offence_chain, FalseVerdictJudge(judge))
    pages = Pages(validator, attester, OffencePages(validator, desk), lambda: READY)
    port = await nursery.start(partial(serve_http, pages.build_app(), host="127.0.0.1", port=0))
    nursery.start_soon(attester.run)
    url = f"http://127.0.0.1:{port}"
    chain.endpoints[make_key(name).address] = url
    return url


async def buy(hub: HubWorld, chain: Chain, credits_micro: int) -> None:
    """The account buys credits in the vault; hub and validators see it."""
    account, payer = vault_account(hub.account_id), make_key("payer").address
    args = {
        "account": account,
        "payer": payer,
        "amountWei": 10**18,
        "creditsMicro": credits_micro,
        "index": 0,
    }
    block = await chain.watchers[0].feed(("vault", "CreditsBought", args))
    chain.deposits.append(Deposit(0, account, payer, Wei(10**18), Micro(credits_micro), 0, block))


@asynccontextmanager
async def running_net(folder: Path, round_s: int = ROUND_S) -> AsyncIterator[Net]:
    deployment = quick_deployment(round_s)
    chain, other = Chain(deployment), StubNode(node_key(1))
    chain.nodes = [VICTIM.address, other.key.address]
    settings = {"collect_poll_s": 0.1, "registry_poll_s": 0.2, "admit": "staked", "allowed_nodes": ()}
    for name in ("node", "court"):
        (folder / name).mkdir()
    async with (
        scripted_engine(ENGINE) as engine,
        open_ledger(folder / "court" / "ledger.db", {"validator": VALIDATOR.migrations}) as court,
        open_ledger(folder / "node" / "ledger.db", {"node": NODE_MIGRATIONS}) as node_ledger,
        trio.open_nursery() as nursery,
    ):
        names = [f"validator-{n}" for n in range(4)]
        for name in names:
            chain.endpoints[make_key(name).address] = ""
        async with running_world(
            folder, deployment=deployment, chain=chain, granted_micro=0, **settings
        ) as hub:
            chain.hub_url = hub.url
            urls = [await add_validator(nursery, name, chain, hub.url, court, folder) for name in names]
            await hub.add_node(other)
            nursery.start_soon(beat, other)
            model = ModelConfig("engine", MODEL, url=engine.url)
            tunnel = f"ws://127.0.0.1:{hub.role.ports['tunnel']}"
            config = NodeConfig(KEY_FILE, HUB_KEY.address, tunnel, model=(model,), reconnect_max_s=0.3)
            context = make_context(
                "node", node_ledger, name="node-1", data_dir=folder / "node", deployment=deployment,
                chain=cast("Any", chain), clock=SystemClock(), keys={KEY_FILE: VICTIM},
            )  # fmt: skip
            victim = NodeRole(config)
            async with running_role(victim, context):
                await hub.until(lambda: hub.plane.board.find(VICTIM.address) is not None)
                await hub.until(lambda: hub.plane.board.find(VICTIM.address).status is not None)
                yield Net(chain, hub, victim, node_ledger, folder, urls)
        nursery.cancel_scope.cancel()


async def beat(node: StubNode) -> None:
    while node.link is not None and not node.link.closed.is_set():
        await node.send_status()
        await trio.sleep(0.3)


def show_omissions(net: Net) -> list[dict[str, Any]]:
    """`emcd node omissions --json` beside the running node."""

    class Context(CommandContext):
        def load_daemon(self) -> DaemonConfig:
            return DaemonConfig(data_dir=net.folder / "node")

    context = Context(None, lambda _file, _roles: 0, lambda: cast("Any", None))
    done = CliRunner().invoke(node_command, ["omissions", "--json"], obj=context)
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = msgspec.json.decode(done.output)["omissions"]
    return rows


async def test_calls_left_out_are_found_filed_enforced_and_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emcd_hub.rounds.build.SettleInput", Liar)
    monkeypatch.setattr(Liar, "dropped", frozenset((VICTIM.address,)))
    async with running_net(tmp_path) as net:
        await buy(net.hub, net.chain, 10**9)
        index = net.now_round() + 1

        await net.until_round(index)
        for _ in range(3):
            await net.call(VICTIM.address)
        await net.call(node_key(1).address)

        async def filed() -> bool:
            return (await net.states()).get(CallState.FILED) == 3

        await net.until(filed, 6)
        assert {row["state"] for row in show_omissions(net)} == {"filed"}
        assert "3 calls" in net.victim.health().reason
        await net.wait_decisions(index, "")  # nobody knew it when the first bundle came
        await net.wait_decisions(net.now_round() + 1, "EMC-1825")
        monkeypatch.setattr(Liar, "dropped", frozenset())

        async def carried() -> bool:
            return (await net.states()).get(CallState.CARRIED) == 3

        await net.until(carried, 8)
        rows = show_omissions(net)
        assert {row["state"] for row in rows} == {"carried"}
        (paid_in,) = {row["carried_in"] for row in rows}

        await net.wait_decisions(paid_in, "")
        detail = await net.get(f"/api/rounds/{paid_in}")
        row = next(item for item in detail["participants"] if item["node"] == VICTIM.address)
        assert int(row["credits_micro"]) == 3 * 50_000
        assert int(row["reward_wei"]) > 0
        assert "lack" not in net.victim.health().reason
        for later in (1, 2):  # validators list the filings still: nothing is carried twice
            await net.wait_decisions(paid_in + later, "")
        assert await net.hub.rows("SELECT * FROM hub_carried_calls") == []


async def test_receipts_of_small_batches_stand_in_one_batch_of_the_bundle(tmp_path: Path) -> None:
    async with running_net(tmp_path, round_s=5) as net:
        await buy(net.hub, net.chain, 10**9)
        index = net.now_round() + 1
        await net.until_round(index)
        for _ in range(4):
            await net.call(VICTIM.address)
            await trio.sleep(1.2 * BATCH_MS / 1000)  # so that each has a batch of its own
        sizes = "SELECT length(record_hashes) / 32 FROM hub_batches WHERE signer = '%s' ORDER BY batch_id"

        async def has_larger() -> bool:
            return await net.hub.rows(sizes % VICTIM.address) == [(1,), (1,), (1,), (1,), (4,)]

        await net.until(has_larger, 3)
        await net.wait_decisions(index, "")
        answered = await request("GET", f"{net.hub.url}/api/rounds/{index}/bundle", max_bytes=1 << 24)
        bundle = decode_bundle(answered.body)
        assert [b.count for b in bundle.batches if b.signer == VICTIM.address] == [4]
        assert len({call.receipt_ref for call in bundle.calls}) == 4
        assert await net.hub.rows("SELECT count(*) FROM hub_calls") == [(4,)]
