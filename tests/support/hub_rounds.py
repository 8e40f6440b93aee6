"""A chain that is a table and validators that are scripts, for rounds of a real hub."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import msgspec
import trio

from emcd.accounting.assignment import ProbeAssignment, assign_probes, probed_nodes
from emcd.accounting.plan import compute_commitment, compute_probes_hash
from emcd.chain import BlockRef, ChainEvent, Participant
from emcd.chain.proxies.staking import ValidatorSet
from emcd.clock import Clock, SystemClock
from emcd.errors import RecoverableError
from emcd.inference.manifest import model_hash
from emcd.keys import SigningKey
from emcd.money import WEI_PER_TOKEN, encode_wei
from emcd.net.http_client import request
from emcd.net.http_server import serve_http
from emcd.proto.address import address_bytes, hex_hash
from emcd.proto.bundle import ProbeResult, SnapshotEntry, ValidatorPower
from emcd.proto.hashing import keccak
from emcd.proto.json_form import to_json
from emcd.proto.messages import PlanCommitment, Reveal, RoundRoot, Verdict, Vote
from emcd.proto.network import Deployment
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.proto.params import ModelStanding, devnet_params
from emcd.proto.records import parse_call_id, request_hash
from emcd.testing import make_key
from emcd.types import Address, Epoch, ParticipantRole, Round, Wei
from tests.support.hub_world import DOMAIN, MANIFEST, MODEL, make_deployment

BLOCK_MS = 200
VALIDATOR_WEI = 1_000_000 * WEI_PER_TOKEN
NODE_WEI = 5_000 * WEI_PER_TOKEN
EMBEDDINGS = "/v1/embeddings"


def quick_deployment(round_s: int = 2, *, rounds_ago: int = 100) -> Deployment:
    """A network with short rounds that began some rounds ago (-1: it begins with the next one)."""
    genesis_s = (int(time.time()) // round_s - rounds_ago) * round_s
    params = devnet_params(genesis_s, round_s)
    numbers = {name: getattr(params, name) for name in params.__struct_fields__}
    models = ((hex_hash(model_hash(MANIFEST)), int(ModelStanding.ENFORCED)),)
    return make_deployment(**{**numbers, "models": models})


@cache
def wallet_of(node: Address) -> Address:
    return make_key(f"wallet of {node}").address


@dataclass
class StubWatcher:
    """The chain's watcher, fed by hand."""

    sink: Any
    block: int = 0
    problem: str = ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def feed(self, *events: tuple[str, str, dict[str, Any]], block: int | None = None) -> int:
        """Apply events of one block. Returns: its number."""
        self.block = block or self.block + 1
        block_hash = keccak(b"event block %d" % self.block)
        made = [
            ChainEvent(
                contract, name, args, self.block, block_hash, int(time.time()), keccak(b"tx" + bytes([i])), i
            )
            for i, (contract, name, args) in enumerate(events)
        ]
        await self.sink.apply(made, self.block, block_hash)
        return self.block


class StubChain:
    """What the hub asks of `emcd.chain.Chain`. A block every fifth of a second."""

    def __init__(self, deployment: Deployment, clock: Clock | None = None) -> None:
        self.deployment = deployment
        self.clock = clock or SystemClock()
        self.nodes: list[Address] = []
        self.endpoints: dict[Address, str] = {}
        self.staking = self.distributor = self.vault = self
        self.fork = b""
        self.broken = False
        self.problem = ""
        self.watchers: list[StubWatcher] = []
        self._first_ms = (deployment.params.genesis_time_s - 3600) * 1000

    def _block(self, number: int) -> BlockRef:
        at_s = (self._first_ms + number * BLOCK_MS) // 1000
        return BlockRef(
            number, keccak(self.fork + b"block %d" % number), at_s, keccak(b"block %d" % (number - 1))
        )

    async def head(self) -> BlockRef:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise RecoverableError("EMC-1502", "no endpoint answers")
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

    def snapshot(self) -> tuple[SnapshotEntry, ...]:
        rows = [
            SnapshotEntry(n, wallet_of(n), int(ParticipantRole.COMPUTE), encode_wei(NODE_WEI), 0, 0)
            for n in self.nodes
        ]
        rows += [
            SnapshotEntry(n, wallet_of(n), int(ParticipantRole.VALIDATOR), encode_wei(VALIDATOR_WEI), 360, 0)
            for n in self.endpoints
        ]
        return tuple(sorted(rows, key=lambda row: address_bytes(row.node)))

    async def fetch_snapshot(self, at: BlockRef, epoch: int = 0) -> tuple[SnapshotEntry, ...]:
        await trio.lowlevel.checkpoint()
        return self.snapshot()

    async def fetch_participants(self, *, at: BlockRef) -> list[Participant]:
        await trio.lowlevel.checkpoint()
        rows = [(n, ParticipantRole.COMPUTE, NODE_WEI, "") for n in self.nodes]
        rows += [(n, ParticipantRole.VALIDATOR, VALIDATOR_WEI, url) for n, url in self.endpoints.items()]
        return [
            Participant(
                node,
                wallet_of(node),
                role,
                Wei(stake),
                Wei(0),
                0,
                10_000,
                Epoch(0),
                Round(0),
                1,
                url,
                0,
                Wei(0),
            )
            for node, role, stake, url in rows
        ]

    async def fetch_validator_set(self, epoch: int, *, at: BlockRef) -> ValidatorSet:
        await trio.lowlevel.checkpoint()
        ordered = sorted(self.endpoints, key=address_bytes)
        return ValidatorSet(ValidatorPower(node, encode_wei(VALIDATOR_WEI)) for node in ordered)

    async def fetch_extraction_nonce(self, wallet: Address) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    def watcher(self, sink: Any, contracts: Collection[str]) -> StubWatcher:
        self.watchers.append(StubWatcher(sink))
        return self.watchers[-1]


@dataclass
class StubValidator:
    """Commits, probes through the hub, reveals, signs roots; `pages` may be edited to make it lie."""

    key: SigningKey
    chain: StubChain
    hub_url: str = ""
    api_key: str = ""
    verdicts: Mapping[Address, Verdict] = field(default_factory=dict)
    pages: dict[str, Any] = field(default_factory=dict)
    is_silent: bool = False
    probes: dict[int, list[ProbeResult]] = field(default_factory=dict)
    receipts: dict[bytes, bytes] = field(default_factory=dict)
    served: int = 0

    @property
    def address(self) -> Address:
        return self.key.address

    def secrets(self, index: int) -> tuple[bytes, bytes, bytes]:
        return keccak(b"seed %d" % index), keccak(b"corpus"), keccak(b"salt %d" % index)

    def commit(self, index: int) -> None:
        params = self.chain.deployment.params
        at_ms = min(SystemClock().now_ms(), params.round_start_ms(index) - 1)
        plan = PlanCommitment(self.address, index, compute_commitment(*self.secrets(index)), at_ms)
        self.pages[f"/commitments/{index}"] = {
            "commitment": to_json(plan),
            "signature": "0x" + self.key.sign(DOMAIN, plan).hex(),
        }

    async def probe(self, index: int, assignments: Sequence[ProbeAssignment]) -> None:
        """Do this validator's probes of the open round."""
        for item in assignments:
            if item.validator == self.address:
                self.probes.setdefault(index, []).append(await self._probe(item))

    async def _probe(self, item: ProbeAssignment) -> ProbeResult:
        body = msgspec.json.encode(
            {"model": MODEL, "input": f"probe {item.slot}", "provider": {"only": [item.node]}}
        )
        headers = {"authorization": f"Bearer {self.api_key}"}
        answer = await request("POST", self.hub_url + EMBEDDINGS, body=body, headers=headers)
        assert answer.status == 200, answer.body
        upstream = read_request(ENDPOINTS[EMBEDDINGS], body).body
        return ProbeResult(
            item.node,
            item.slot,
            1,
            parse_call_id(answer.headers["x-emc-call-id"]),
            request_hash(EMBEDDINGS, upstream),
            keccak(answer.body),
            int(self.verdicts.get(item.node, Verdict.PASS)),
            123,
        )

    def reveal(self, index: int) -> None:
        probes = tuple(sorted(self.probes.get(index, []), key=lambda p: (address_bytes(p.node), p.slot)))
        reveal = Reveal(self.address, index, *self.secrets(index), compute_probes_hash(probes))
        self.pages[f"/reveals/{index}"] = {
            "reveal": to_json(reveal),
            "signature": "0x" + self.key.sign(DOMAIN, reveal).hex(),
            "probes": [to_json(probe) for probe in probes],
        }

    def vote(self, index: int, call_id: bytes, receipt_hash: bytes, verdict: Verdict) -> None:
        vote = Vote(self.address, index, call_id, receipt_hash, int(verdict), 99)
        page = self.pages.setdefault(f"/votes/{index}", {"votes": []})
        page["votes"].append({"vote": to_json(vote), "signature": "0x" + self.key.sign(DOMAIN, vote).hex()})

    def attest(self, root: RoundRoot) -> None:
        signature = self.key.sign(self.chain.deployment.distributor_domain, root)
        self.pages[f"/attestations/{root.round}"] = {
            "round_root": to_json(root),
            "signature": "0x" + signature.hex(),
        }

    def refuse(self, index: int, code: str) -> None:
        self.pages[f"/attestations/{index}"] = (404, {"code": code, "reason": "a test says no"})

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.served += 1
        if self.is_silent:
            await trio.sleep_forever()
        found = self.pages.get(scope["path"], (404, {"reason": "nothing here"}))
        status, page = found if isinstance(found, tuple) else (200, found)
        body = page if isinstance(page, bytes) else msgspec.json.encode(page)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def running_validators(chain: StubChain, count: int = 4) -> AsyncIterator[list[StubValidator]]:
    """Validators with listeners, registered on the chain."""
    made = [StubValidator(make_key(f"validator {n}"), chain) for n in range(count)]
    async with trio.open_nursery() as nursery:
        for validator in made:
            port = await nursery.start(partial(serve_http, validator.app, host="127.0.0.1", port=0))
            chain.endpoints[validator.address] = f"http://127.0.0.1:{port}"
        yield made
        nursery.cancel_scope.cancel()


def list_assignments(chain: StubChain, beacon_hash: bytes, index: int) -> tuple[ProbeAssignment, ...]:
    params = chain.deployment.params
    powers = [(node, VALIDATOR_WEI) for node in chain.endpoints]
    return assign_probes(beacon_hash, index, probed_nodes(chain.snapshot(), params), powers, params)
