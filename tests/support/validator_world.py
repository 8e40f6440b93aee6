"""A hub and a chain for validators to meet, over real sockets: honest unless a test makes them lie.

The hub here signs real records, batches and seals, and closes rounds with the real builder; its
nodes are functions from texts to vectors. The chain is a table.
"""

from __future__ import annotations

import math
import os
import struct
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import msgspec
import trio

from emcd.accounting.price import charge_call_ceil, price_of
from emcd.accounting.receipt import CallReceipt
from emcd.accounting.round_close import (
    CallRecords,
    Evidence,
    RoundFacts,
    SignedBatch,
)
from emcd.accounting.suspension import Conduct, advance_conduct
from emcd.accounting.verdict import NumericClass
from emcd.bus import Bus
from emcd.chain import ActiveRoot, BlockRef, Deposit, Participant, Publication, PublicationState
from emcd.chain.proxies.staking import ValidatorSet
from emcd.clock import Clock, ManualClock, SystemClock
from emcd.config import KeyFile, Listen
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.inference.manifest import model_hash
from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME
from emcd.keys import SigningKey
from emcd.ledger import Ledger
from emcd.log import get_logger
from emcd.money import WEI_PER_TOKEN, encode_wei
from emcd.net.http_client import request
from emcd.net.http_server import serve_http
from emcd.proto.bundle import SnapshotEntry, StatusEntry, ValidatorPower
from emcd.proto.hashing import keccak
from emcd.proto.json_form import to_json
from emcd.proto.messages import NodeStatus
from emcd.proto.network import Deployment
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.proto.params import NetworkParams
from emcd.proto.records import (
    CallStatus,
    Delivery,
    Forward,
    Receipt,
    RecordBatch,
    RecordKind,
    RecordProof,
    batch_root,
    format_call_id,
    parse_call_id,
    request_hash,
)
from emcd.services import FixedParameters, ParametersInForce
from emcd.testing import make_context, make_key
from emcd.types import ZERO_ADDRESS, ZERO_HASH, Address, Hash, ParticipantRole, Round, Wei
from emcd_validator.api_keys import ApiKeys
from emcd_validator.attester import Attester
from emcd_validator.bundle_store import BundleStore
from emcd_validator.chain_view import ChainViews
from emcd_validator.committer import Committer
from emcd_validator.config import ValidatorConfig
from emcd_validator.corpus_store import CorpusStore
from emcd_validator.entry import collect
from emcd_validator.hub_client import HubAnswer, HubClient, NodeOffer, SealedBundle
from emcd_validator.judge import EMBEDDINGS
from emcd_validator.judge_desk import Judge
from emcd_validator.judge_embedding import ReferenceRun, Vectors
from emcd_validator.model import list_judged
from emcd_validator.offence_chain import OffenceChain
from emcd_validator.offence_desk import OffenceDesk
from emcd_validator.offence_exchange import OffenceExchange
from emcd_validator.peer_client import PeerClient
from emcd_validator.prober import Prober
from emcd_validator.queries.items import list_items
from emcd_validator.role import ValidatorRole
from emcd_validator.slash_desk import SlashDesk
from emcd_validator.statement import (
    read_commitment,
    read_reveal,
    read_votes,
    write_commitment,
    write_reveal,
    write_votes,
)
from emcd_validator.validator import Validator
from emcd_validator.voter import Voter
from emcd_validator.watch import Watch
from tests.support.round_world import SealedBundle as ClosedBundle
from tests.support.round_world import close_to_bytes

HUB = make_key("hub")
MODEL_HASH = model_hash(MINILM_MANIFEST)
API_KEY = "emc_sk_" + "v" * 40
VALIDATOR_WEI = 1_000_000 * WEI_PER_TOKEN
NODE_WEI = 5_000 * WEI_PER_TOKEN
DIMENSION = MINILM_MANIFEST.dimension
BLOCK_MS = 250

T = TypeVar("T")
Embed = Callable[[Sequence[str]], Awaitable[tuple[Vectors, int]]]


def make_deployment(genesis_time_s: int, round_s: int = 2, **params: Any) -> Deployment:
    contracts = [make_key(f"contract {n}").address for n in range(5)]
    numbers = {
        "round_s": round_s,
        "beacon_blocks": 1,
        "challenge_delay_rounds": 1,
        "minimum_judges": 4,
        **params,
    }
    return Deployment(31337, *contracts, 1, NetworkParams(genesis_time_s, **numbers))


def fake_vector(text: str, noise: float = 0.0) -> tuple[float, ...]:
    """A unit vector that only depends on the text; `noise` is its relative distance from the true one."""
    raw = b"".join(keccak(text.encode() + bytes([i])) for i in range(DIMENSION // 32))
    row = [byte / 255 - 0.5 for byte in raw]
    norm = math.hypot(*row)
    vector = [x / norm for x in row]
    if noise:
        other = fake_vector("noise of " + text)
        vector = [x + noise * y for x, y in zip(vector, other, strict=True)]
    return tuple(vector)


class FakeReference:
    """A model of which everybody has a perfect copy; `scatter` is how far its second run lies off."""

    def __init__(self, scatter: float = 0.0) -> None:
        self.scatter = scatter
        self.runs = 0

    def compute(self, texts: Sequence[str]) -> ReferenceRun:
        self.runs += 1
        return ReferenceRun(tuple(map(fake_vector, texts)), count_tokens(texts), NumericClass.FP32)

    def compute_again(self, texts: Sequence[str]) -> list[Vectors]:
        self.runs += 1
        return [tuple(fake_vector(text, self.scatter) for text in texts)]

    async def run(self, work: Callable[[FakeReference], T]) -> T:
        await trio.lowlevel.checkpoint()
        return work(self)

    async def close_idle(self, idle_s: float) -> None:
        """It takes no memory."""


def make_fake_judge(deployment: Deployment, reference: FakeReference | None = None) -> Judge:
    """The real judge over a model that everybody has."""
    models = list_judged([MINILM_NAME])
    return Judge(deployment.staking_domain, HUB.address, models, {MINILM_NAME: reference or FakeReference()})


def count_tokens(texts: Sequence[str]) -> int:
    return sum(len(text.split()) + 2 for text in texts)


def fake_embed(noise: float = 0.0, extra_tokens: int = 0) -> Embed:
    """A node's engine: honest without arguments."""

    async def embed(texts: Sequence[str]) -> tuple[Vectors, int]:
        return tuple(fake_vector(text, noise) for text in texts), count_tokens(texts) + extra_tokens

    return embed


def answer_body(vectors: Vectors, tokens: int, *, base64: bool = False) -> bytes:
    def shown(row: Sequence[float]) -> Any:
        if not base64:
            return list(row)
        return b64encode(struct.pack(f"<{len(row)}f", *row)).decode()

    return msgspec.json.encode(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": shown(row)} for i, row in enumerate(vectors)
            ],
            "model": MINILM_NAME,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@dataclass
class Call:
    """A call as the hub keeps it."""

    records: CallRecords
    batches: tuple[SignedBatch, ...]

    @property
    def receipt(self) -> CallReceipt:
        forward, receipt, delivery = (RecordProof(b.batch, b.signature, 0, ()) for b in self.batches)
        records = self.records
        return CallReceipt(records.forward, forward, records.receipt, receipt, records.delivery, delivery)


def make_call(
    deployment: Deployment,
    node: SigningKey,
    upstream: bytes,
    response: bytes,
    at_ms: int,
    *,
    path: str = "/v1/embeddings",
    tokens: int = 10,
    status: CallStatus = CallStatus.OK,
    http_status: int = 200,
    hub: SigningKey = HUB,
    receipt_key: SigningKey | None = None,
    model: bytes = MODEL_HASH,
    delivered: bytes | None = None,
    call_id: bytes = b"",
) -> Call:
    """The three records of a call, each in a signed batch of its own."""
    prices, domain = deployment.prices, deployment.staking_domain
    forward = Forward(
        call_id or os.urandom(16), hub.address, ZERO_ADDRESS, node.address, request_hash(path, upstream),
        model, prices.version, at_ms,
    )  # fmt: skip
    receipt = Receipt(forward.struct_hash(), keccak(response), http_status, tokens, 0, at_ms, at_ms + 1)
    charge = charge_call_ceil(price_of(prices, model), tokens, 0) if status.is_success else 0
    delivery = Delivery(
        forward.struct_hash(), receipt.struct_hash(), keccak(response if delivered is None else delivered),
        int(status), charge, 0, deployment.params.round_at(at_ms + 2), at_ms + 2,
    )  # fmt: skip
    batches = []
    for key, kind, record in (
        (hub, RecordKind.FORWARD, forward),
        (receipt_key or node, RecordKind.RECEIPT, receipt),
        (hub, RecordKind.DELIVERY, delivery),
    ):
        hashes = (record.struct_hash(),)
        batch = RecordBatch(key.address, int(kind), batch_root(hashes), 1, at_ms)
        batches.append(SignedBatch(batch, key.sign(domain, batch), hashes))
    return Call(CallRecords(forward, receipt, delivery), tuple(batches))


@dataclass
class FakeNode:
    """A compute node behind the hub."""

    key: SigningKey
    embed: Embed = field(default_factory=fake_embed)
    online: bool = True
    models: tuple[str, ...] = (MINILM_NAME,)
    delay_s: float = 0.0
    status: int = 200
    sequence: int = 0


class FakeChain:
    """The chain as a table: a block every quarter second, participants that never change."""

    def __init__(self, deployment: Deployment, validators: Mapping[Address, str], nodes: Sequence[Address],
                 clock: Clock | None = None) -> None:  # fmt: skip
        self.deployment = deployment
        self.clock = clock or SystemClock()
        self.endpoints = dict(validators)
        self.nodes = list(nodes)
        self.publications: dict[int, Publication] = {}
        self.deposits: list[Deposit] = []
        self.active: ActiveRoot | None = None
        self.used_evidence: set[bytes] = set()
        self.accounts: dict[Address, Address] = {}
        """First keys of those that changed theirs."""
        self.in_force: dict[Address, list[tuple[int, Address]]] = {}
        """By account: from which block on which key is in force."""
        self.stakes: dict[Address, int] = {}
        """Of who is asked for one by one; VALIDATOR_WEI for those that stand nowhere."""
        self.config = self
        self.poll_s = 0.1
        self.confirmations = 1
        self.staking = self.distributor = self.vault = self
        self._first_ms = (deployment.params.genesis_time_s - 3600) * 1000

    def _block(self, number: int) -> BlockRef:
        at_s = (self._first_ms + number * BLOCK_MS) // 1000
        return BlockRef(number, keccak(b"block %d" % number), at_s, keccak(b"block %d" % (number - 1)))

    async def head(self) -> BlockRef:
        await trio.lowlevel.checkpoint()
        return self._block((self.clock.now_ms() - self._first_ms) // BLOCK_MS)

    async def confirmed_head(self) -> BlockRef:
        return await self.head()

    async def fetch_block(self, number: int) -> BlockRef:
        if number > (await self.head()).number:
            raise RecoverableError("EMC-1505", f"block {number}")
        return self._block(number)

    async def block_at(self, time_s: int) -> BlockRef:
        if (await self.head()).timestamp_s <= time_s:
            raise RecoverableError("EMC-1506", str(time_s))
        return self._block(((time_s + 1) * 1000 - self._first_ms) // BLOCK_MS - 1)

    async def wait_block_at(self, time_s: int) -> BlockRef:
        while True:
            with suppress(RecoverableError):
                return await self.block_at(time_s)
            await trio.sleep(self.poll_s)

    def snapshot(self) -> tuple[SnapshotEntry, ...]:
        rows = [
            SnapshotEntry(node, wallet_of(node), int(ParticipantRole.COMPUTE), encode_wei(NODE_WEI), 0, 0)
            for node in self.nodes
        ] + [
            SnapshotEntry(
                node, wallet_of(node), int(ParticipantRole.VALIDATOR), encode_wei(VALIDATOR_WEI), 360, 0
            )
            for node in self.endpoints
        ]
        return tuple(sorted(rows, key=lambda row: bytes.fromhex(row.node[2:])))

    async def fetch_snapshot(self, at: BlockRef, epoch: int = 0) -> tuple[SnapshotEntry, ...]:
        await trio.lowlevel.checkpoint()
        return self.snapshot()

    async def fetch_participants(self, *, at: BlockRef) -> list[Participant]:
        await trio.lowlevel.checkpoint()
        return [
            Participant(node, wallet_of(node), ParticipantRole.VALIDATOR, Wei(VALIDATOR_WEI), Wei(0), 360,
                        10_000, self.deployment.params.epoch_of(0), Round(0), 1, endpoint, 0, Wei(0))
            for node, endpoint in self.endpoints.items()
        ]  # fmt: skip

    async def fetch_validator_set(self, epoch: int, *, at: BlockRef) -> ValidatorSet:
        await trio.lowlevel.checkpoint()
        return self.powers()

    def powers(self) -> ValidatorSet:
        ordered = sorted(self.endpoints, key=lambda node: bytes.fromhex(node[2:]))
        return ValidatorSet(ValidatorPower(node, encode_wei(VALIDATOR_WEI)) for node in ordered)

    async def fetch_publication(self, index: int, *, at: BlockRef | None = None) -> Publication:
        await trio.lowlevel.checkpoint()
        none = Publication(
            PublicationState.NONE, ZERO_HASH, ZERO_HASH, Wei(0), 0, ZERO_ADDRESS, Wei(0), False
        )
        return self.publications.get(index, none)

    def publish(
        self, index: int, bundle_hash: bytes, state: PublicationState = PublicationState.PENDING
    ) -> None:
        self.publications[index] = Publication(
            state, Hash(bundle_hash), ZERO_HASH, Wei(0), 0, ZERO_ADDRESS, Wei(0), False
        )

    async def find_active_root(self, *, at: BlockRef | None = None) -> ActiveRoot | None:
        await trio.lowlevel.checkpoint()
        return self.active

    async def fetch_evidence_used(self, evidence_hash: bytes, *, at: BlockRef | None = None) -> bool:
        await trio.lowlevel.checkpoint()
        return evidence_hash in self.used_evidence

    async def find_participant(self, node: Address, *, at: BlockRef | None = None) -> Any:
        """What is asked of it here: how much there is to take, whose key it is, where it serves."""
        await trio.lowlevel.checkpoint()
        stake_wei = self.stakes.get(node, VALIDATOR_WEI)
        account, endpoint = self.accounts.get(node, node), self.endpoints.get(node, "")
        keys = [key for block, key in self.in_force.get(account, []) if at is None or block <= at.number]
        return SimpleNamespace(
            stake_wei=stake_wei, pending_wei=0, unbonding_wei=0, account=account, endpoint=endpoint,
            role=ParticipantRole.HUB if account == self.accounts.get(HUB.address, HUB.address) else None,
            node=keys[-1] if keys else account, next_node=ZERO_ADDRESS, next_from_epoch=0,
        )  # fmt: skip

    async def find_tip_round(self, *, at: BlockRef | None = None) -> Round | None:
        await trio.lowlevel.checkpoint()
        live = [k for k, p in self.publications.items() if p.state is not PublicationState.VOID]
        return Round(max(live)) if live else None

    async def fetch_deposits(self, first: int = 0, *, at: BlockRef) -> list[Deposit]:
        await trio.lowlevel.checkpoint()
        return self.deposits[first:]


def wallet_of(node: Address) -> Address:
    return make_key(f"wallet of {node}").address


@dataclass
class FakeHub:
    """A hub that a test may make lie; `edit_evidence` sees a round before it is closed."""

    deployment: Deployment
    chain: FakeChain
    nodes: list[FakeNode]
    edit_request: Callable[[bytes], bytes] = lambda upstream: upstream
    edit_answer: Callable[[bytes], bytes] = lambda body: body
    edit_evidence: Callable[[int, Evidence], Evidence] = lambda index, evidence: evidence
    other_evidence: Callable[[int, Evidence], Evidence] | None = None
    """What the bundle under /alt is made of: another story for whoever asks there."""
    write: Callable[[str, bytes], bytes] | None = None
    """What nodes answer to chats and completions: path and upstream body to the answer's bytes."""
    model_hash: bytes = bytes(MODEL_HASH)
    receipts_missing: bool = False
    url: str = ""
    calls: dict[bytes, Call] = field(default_factory=dict)
    closed: dict[int, ClosedBundle] = field(default_factory=dict)
    other: dict[int, ClosedBundle] = field(default_factory=dict)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    statuses: dict[tuple[int, Address], StatusEntry] = field(default_factory=dict)
    pages: dict[tuple[str, int, Address], Any] = field(default_factory=dict)
    _conduct: dict[Address, Conduct] = field(default_factory=dict)

    def now_ms(self) -> int:
        return self.chain.clock.now_ms()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, fields, out = await self._answer(scope["method"], scope["path"], headers, body)
        raw = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": out})

    async def _answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        alternative = path.startswith("/alt/")
        path = path.removeprefix("/alt")
        if path == "/api/nodes":
            return 200, {}, msgspec.json.encode({"nodes": [self._show(node) for node in self.nodes]})
        if path in ENDPOINTS and method == "POST":
            self.requests.append((headers, body))
            return await self._call(path, body)
        if path.endswith("/receipt"):
            call = self.calls.get(parse_call_id(path.split("/")[3]))
            if call is None or self.receipts_missing:
                return (404, {}, b"{}") if call is None else (202, {}, b'{"state":"pending"}')
            return 200, {}, msgspec.json.encode(to_json(call.receipt))
        if path.endswith("/bundle"):
            rounds = self.other if alternative and self.other else self.closed
            closed = rounds.get(int(path.split("/")[3]))
            if closed is None:
                return 404, {}, b"{}"
            seal = HUB.sign(self.deployment.staking_domain, closed.seal)
            fields = {
                "x-emc-bundle-hash": "0x" + closed.bundle_hash.hex(),
                "x-emc-bundle-seal": "0x" + seal.hex(),
            }
            return 200, fields, closed.data
        return 404, {}, b"{}"

    def _show(self, node: FakeNode) -> dict[str, Any]:
        now_ms = self.now_ms()
        if node.online:
            self._note_status(node, now_ms)
        models = [{"name": name, "model_hash": "0x" + MODEL_HASH.hex()} for name in node.models]
        shown = {
            "address": node.key.address,
            "online": node.online,
            "models": models,
            "capacity": 8,
            "in_flight": 0,
        }
        return {**shown, "version": "x", "gpu": "", "last_status_at_ms": now_ms if node.online else None}

    def _note_status(self, node: FakeNode, now_ms: int) -> None:
        index = self.deployment.params.round_at(now_ms)
        if (index, node.key.address) not in self.statuses:
            node.sequence += 1
            status = NodeStatus(
                node.key.address, HUB.address, node.sequence, now_ms, (MODEL_HASH,), 8, 0, "x", ""
            )
            entry = StatusEntry(status, node.key.sign(self.deployment.staking_domain, status))
            self.statuses[index, node.key.address] = entry

    async def _call(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        asked = read_request(ENDPOINTS[path], body, evidence=True)
        node = next(node for node in self.nodes if node.key.address in asked.only)
        upstream = self.edit_request(asked.body)
        table = msgspec.json.decode(upstream)
        asked_for = table.get("input", "")
        texts = [asked_for] if isinstance(asked_for, str) else asked_for
        at_ms = self.now_ms()
        await trio.sleep(node.delay_s)
        if node.status != 200:
            return node.status, {}, b'{"error":{}}'
        if path == EMBEDDINGS:
            vectors, tokens = await node.embed(texts)
            response = answer_body(vectors, tokens, base64=table.get("encoding_format") == "base64")
        else:
            assert self.write is not None
            response, tokens = self.write(path, upstream), 10
        delivered = self.edit_answer(response)
        call = make_call(
            self.deployment, node.key, upstream, response, at_ms, path=path, tokens=tokens,
            delivered=delivered, model=self.model_hash,
        )  # fmt: skip
        call_id = call.records.forward.call_id
        self.calls[call_id] = call
        return 200, {"content-type": "application/json", "x-emc-call-id": format_call_id(call_id)}, delivered

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve, collect what validators say, close rounds."""
        async with trio.open_nursery() as nursery:
            port = await nursery.start(lambda task_status: serve_http(
                self.app, host="127.0.0.1", port=0, task_status=task_status))  # fmt: skip
            self.url = f"http://127.0.0.1:{port}"
            nursery.start_soon(self._collect)
            task_status.started()

    async def _collect(self) -> None:
        params = self.deployment.params
        following = 0
        while True:
            current = params.round_at(self.now_ms())
            for node in self.nodes:
                if node.online and current >= 0:
                    self._note_status(node, self.now_ms())
            async with trio.open_nursery() as nursery:
                for validator, endpoint in self.chain.endpoints.items():
                    nursery.start_soon(self._fetch, "commitments", current, validator, endpoint)
                    nursery.start_soon(self._fetch, "reveals", current - 1, validator, endpoint)
                    nursery.start_soon(self._fetch, "votes", current - 1, validator, endpoint)
            while self.now_ms() >= params.grace_end_ms(following):
                self.close(following)
                following += 1
            await trio.sleep(0.15)

    async def _fetch(self, what: str, index: int, validator: Address, endpoint: str) -> None:
        if index < 0 or not endpoint:
            return
        with suppress(RecoverableError, RemoteProtocolError):
            answer = await request("GET", f"{endpoint}/{what}/{index}", timeout_s=1.0)
            if answer.status == 200:
                self.pages[what, index, validator] = answer.json()

    def gather(self, index: int) -> Evidence:
        calls = [call for call in self.calls.values() if call.records.delivery.round == index]

        def read(what: str, reader: Callable[[Any], Any]) -> list[Any]:
            return [reader(page) for (name, k, _), page in self.pages.items() if name == what and k == index]

        return Evidence(
            calls=[call.records for call in calls],
            batches=[batch for call in calls for batch in call.batches],
            statuses=[entry for (k, _), entry in self.statuses.items() if k == index],
            commitments=read("commitments", read_commitment),
            reveals=read("reveals", read_reveal),
            votes=[vote for page in read("votes", read_votes) for vote in page],
        )

    def close(self, index: int) -> ClosedBundle:
        facts, evidence = self.facts(index), self.gather(index)
        self.closed[index] = close_to_bytes(facts, self.edit_evidence(index, evidence))
        if self.other_evidence is not None:
            self.other[index] = close_to_bytes(facts, self.other_evidence(index, evidence))
        closed = self.closed[index]
        self._conduct = advance_conduct(self._conduct, index, closed.result.strikes, self.deployment.params)
        return closed

    def facts(self, index: int) -> RoundFacts:
        deployment, chain, params = self.deployment, self.chain, self.deployment.params
        start_s = params.round_start_ms(index) // 1000
        snapshot = chain._block(((start_s + 1) * 1000 - chain._first_ms) // BLOCK_MS - 1)
        beacon = chain._block((start_s * 1000 - chain._first_ms) // BLOCK_MS + params.beacon_blocks)
        before = self.closed.get(index - 1)
        participants = [
            msgspec.structs.replace(
                entry,
                suspended_until_round=self._conduct.get(entry.node, Conduct()).suspended_until_round,
            )
            for entry in chain.snapshot()
        ]
        facts = RoundFacts(
            round=index, hub=HUB.address, chain_id=deployment.chain_id, staking=deployment.staking,
            distributor=deployment.distributor, params=params, prices=(deployment.prices,),
            snapshot_block=snapshot.number, snapshot_block_hash=snapshot.hash, beacon_block=beacon.number,
            beacon_block_hash=beacon.hash, participants=participants, validators=chain.powers(),
        )  # fmt: skip
        if before is None:
            return facts
        totals = {t.wallet: int.from_bytes(t.cumulative_wei, "big") for t in before.result.totals_after}
        return replace(
            facts, totals=totals, previous_round=index - 1, previous_bundle_hash=before.bundle_hash
        )


@asynccontextmanager
async def running_hub(hub: FakeHub) -> AsyncIterator[FakeHub]:
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        yield hub
        nursery.cancel_scope.cancel()


KEY_NAMES = ("validator-1", "validator-2", "validator-3", "validator-4")


def key_ref(name: str) -> KeyFile:
    return KeyFile(Path(f"{name}.json"))


def next_genesis_s(round_s: int, ahead_s: float = 1.0) -> int:
    """The next round boundary that is at least so far ahead."""
    return math.ceil((time.time() + ahead_s) / round_s) * round_s


def make_config(name: str, hub_url: str, folder: Path, models_dir: Path, **changes: Any) -> ValidatorConfig:
    keys = folder / "api.keys"
    if not keys.exists():
        keys.write_text(API_KEY + "\n", "utf-8")
        keys.chmod(0o600)
    settings: dict[str, Any] = {
        "key": key_ref(name),
        "listen": Listen("127.0.0.1", 0),
        "hub_url": hub_url,
        "hub_address": HUB.address,
        "api_key_file": keys,
        "corpus_leaves": 400,
        "models_dir": models_dir,
        **changes,
    }
    return ValidatorConfig(**settings)


async def start_validator(
    nursery: trio.Nursery,
    config: ValidatorConfig,
    name: str,
    ledger: Ledger,
    chain: FakeChain,
    folder: Path,
    corrupt: Callable[[ValidatorRole], None] = lambda role: None,
) -> ValidatorRole:
    """Set up and run a validator; its endpoint is published on the chain. `corrupt` changes it in between."""
    role = ValidatorRole(config)
    context = make_context(
        "validator",
        ledger,
        name=name,
        data_dir=folder,
        deployment=chain.deployment,
        chain=cast("Any", chain),
        keys={config.key: make_key(name)},
        clock=chain.clock,
    )
    await role.setup(context)
    corrupt(role)
    await nursery.start(lambda task_status: role.run(task_status=task_status))
    chain.endpoints[make_key(name).address] = f"http://127.0.0.1:{role.port}"
    return role


class DirectHub:
    """The hub without sockets: what `HubClient` asks is answered in place."""

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub

    async def fetch_nodes(self) -> Mapping[Address, NodeOffer]:
        await trio.lowlevel.checkpoint()
        return {
            node.key.address: NodeOffer(
                node.online, frozenset(node.models), self.hub.now_ms() if node.online else 0
            )
            for node in self.hub.nodes
        }

    async def send_probe(self, path: str, body: bytes, api_key: str, timeout_s: float) -> HubAnswer:
        status, fields, out = await self.hub._answer("POST", path, {"authorization": api_key}, body)
        call_id = parse_call_id(fields["x-emc-call-id"]) if "x-emc-call-id" in fields else b""
        return HubAnswer(status, fields.get("content-type", ""), out, call_id)

    async def fetch_receipt(self, call_id: bytes, api_key: str) -> bytes | None:
        status, _, out = await self.hub._answer(
            "GET", f"/v1/calls/{format_call_id(call_id)}/receipt", {}, b""
        )
        return out if status == 200 else None

    async def find_bundle(self, round_index: int, path: Path, timeout_s: float) -> SealedBundle | None:
        await trio.lowlevel.checkpoint()
        closed = self.hub.closed.get(round_index)
        if closed is None:
            return None
        seal = HUB.sign(self.hub.deployment.staking_domain, closed.seal)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(closed.data)
        return SealedBundle(path, closed.bundle_hash, seal)


class SilentPeers:
    """Peers of whom nobody answers."""

    async def find_page(self, endpoint: str, what: str, key: int | bytes | None) -> Any:
        await trio.lowlevel.checkpoint()
        return None


@dataclass
class OffenceParts:
    """What finds, compares and punishes."""

    desk: OffenceDesk
    exchange: OffenceExchange
    slashes: SlashDesk


@dataclass
class Parts:
    """One validator's parts, put together as the role does, but on doubles."""

    validator: Validator
    committer: Committer
    prober: Prober
    voter: Voter
    views: ChainViews
    attester: Attester
    offences: OffenceParts
    reference: FakeReference
    watch: Watch


def make_parts(
    name: str,
    ledger: Ledger,
    hub: FakeHub,
    folder: Path,
    *,
    peers: Any = None,
    reference: FakeReference | None = None,
    signer: SigningKey | None = None,
    parameters: ParametersInForce | None = None,
    judge: Judge | None = None,
) -> Parts:
    reference = reference or FakeReference()
    parameters = parameters or FixedParameters(hub.deployment.params, hub.deployment.prices)
    judge = judge or make_fake_judge(hub.deployment, reference)
    validator = Validator(
        signer=signer or make_key(name),
        parameters=parameters,
        fetch_members=OffenceChain(cast("Any", hub.chain)).fetch_members,
        hub=HUB.address,
        deployment=hub.deployment,
        models=judge.models,
        ledger=ledger,
        clock=hub.chain.clock,
        bus=Bus(),
        started_at_ms=0,
        log=get_logger(name=name),
    )
    direct = cast("HubClient", DirectHub(hub))
    views = ChainViews(cast("Any", hub.chain), parameters)
    voter = Voter(validator, cast("PeerClient", peers or SilentPeers()), judge)
    offence_chain = OffenceChain(cast("Any", hub.chain))
    watch = Watch(validator, cast("PeerClient", peers or SilentPeers()), views, judge, voter.own_judge)
    desk = OffenceDesk(validator, offence_chain, watch.false_verdicts)
    exchange = OffenceExchange(validator, cast("PeerClient", peers or SilentPeers()), offence_chain, desk)
    store = CorpusStore(folder / f"{name}-corpus.jsonl", 120, is_generated=True)
    return Parts(
        validator,
        Committer(validator, store),
        Prober(validator, direct, ApiKeys((API_KEY,)), judge, 5.0),
        voter,
        views,
        Attester(validator, direct, BundleStore(folder / f"{name}-audits"), views, voter),
        OffenceParts(desk, exchange, SlashDesk(validator, offence_chain)),
        reference,
        watch,
    )


def make_world(
    names: Sequence[str] = KEY_NAMES, *, embeds: Sequence[Embed] | None = None, **params: Any
) -> FakeHub:
    """A hub, its nodes and a chain on a clock that the test sets (`hub.chain.clock`)."""
    deployment = make_deployment(1_800_000_000, **params)
    clock = ManualClock(deployment.params.round_start_ms(0) - 1000)
    nodes = [FakeNode(make_key(f"node-{i}"), embed) for i, embed in enumerate(embeds or [fake_embed()] * 3)]
    endpoints = {make_key(name).address: f"http://127.0.0.1/{name}" for name in names}
    chain = FakeChain(deployment, endpoints, [node.key.address for node in nodes], clock)
    return FakeHub(deployment, chain, nodes)


def set_clock(hub: FakeHub, at_ms: int) -> None:
    clock = hub.chain.clock
    assert isinstance(clock, ManualClock)
    clock.at_ms = at_ms


async def take_statements(hub: FakeHub, validator: Validator, index: int) -> None:
    """What the hub would have fetched from the validator's endpoint."""
    items = await validator.read(lambda con: list_items(con, validator.address, index))
    held = collect(item for item in items if item.author == validator.address)
    for author, commitment in held.commitments.items():
        hub.pages["commitments", index, author] = write_commitment(commitment)
    for author, reveal in held.reveals.items():
        hub.pages["reveals", index, author] = write_reveal(reveal)
    if held.votes:
        hub.pages["votes", index, validator.address] = write_votes(held.votes.values())
    for node in hub.nodes:
        if node.online:
            hub._note_status(node, hub.deployment.params.round_start_ms(index) + 500)
