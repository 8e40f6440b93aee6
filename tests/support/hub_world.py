"""A hub over real sockets, with nodes that are real tunnels around a stub of an engine.

The node here keeps the protocol (or breaks it, where a test says how); what it answers is made up.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from emcd.accounting.receipt import CallReceipt
from emcd.clock import SystemClock
from emcd.config import HttpListen, KeyFile
from emcd.errors import EmcdError
from emcd.inference.manifest import EngineManifest, Manifest, canonical_json, model_hash
from emcd.keys import SigningKey
from emcd.ledger import Ledger, open_ledger
from emcd.net.http_client import Response, request
from emcd.net.tunnel import IncomingCall, TunnelLink, run_tunnel
from emcd.proto.batch_proof import read_batch_proof
from emcd.proto.control import (
    BatchMessage,
    BatchProofMessage,
    CallEnd,
    CallMeta,
    NoticeMessage,
    ProofMessage,
    ResponseHead,
    StatusMessage,
    decode_control,
    decode_part,
    encode,
)
from emcd.proto.hashing import keccak
from emcd.proto.json_form import from_json
from emcd.proto.messages import NodeStatus
from emcd.proto.network import Deployment
from emcd.proto.params import NetworkParams
from emcd.proto.records import Receipt, RecordBatch, RecordKind, batch_root
from emcd.testing import make_context, make_key, running_role
from emcd_hub.bootstrap import create_account
from emcd_hub.config import AdminToken, HubConfig
from emcd_hub.role import SPEC, HubRole

HUB_KEY = make_key("hub")
KEY_FILE = KeyFile(Path("hub.json"))
ADMIN_TOKEN = "emc_admin_" + "a" * 43
READ_TOKEN = "emc_admin_" + "r" * 43
MODEL = "stub-model"
MANIFEST = EngineManifest(name=MODEL)


def make_deployment(**params: Any) -> Deployment:
    """A network that began long ago, on no chain."""
    numbers: dict[str, Any] = {"genesis_time_s": 1_700_000_000 // 7200 * 7200, **params}
    contracts = [make_key(f"contract {n}").address for n in range(5)]
    return Deployment(31337, *contracts, 1, NetworkParams(**numbers))


DEPLOYMENT = make_deployment()
DOMAIN = DEPLOYMENT.staking_domain
CHUNK = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}


def sse(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def chat_events(words: list[str], prompt_tokens: int = 7) -> list[bytes]:
    """A whole streamed completion: words, finish, usage, [DONE]."""
    events = [
        sse({**CHUNK, "choices": [{"index": 0, "delta": {"content": w}, "finish_reason": None}]})
        for w in words
    ]
    events.append(sse({**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(words),
        "total_tokens": prompt_tokens + len(words),
    }
    events.append(sse({**CHUNK, "choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"]


def embedding_body(tokens: int = 5) -> bytes:
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 1.0]}],
            "model": MODEL,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@dataclass
class StubNode:
    """A node with a made-up engine. `answer` may be replaced; so may what it says of itself."""

    key: SigningKey
    manifests: tuple[Manifest, ...] = (MANIFEST,)
    capacity: int = 64
    answer: Callable[[StubNode, IncomingCall, CallMeta], Awaitable[None]] | None = None
    edit_receipt: Callable[[Receipt], Receipt] = lambda receipt: receipt
    edit_status: Callable[[NodeStatus], NodeStatus] = lambda status: status
    batching: bool = True
    link: TunnelLink | None = None
    calls: int = 0
    cancelled: int = 0
    bodies: list[bytes] = field(default_factory=list)
    notices: list[NoticeMessage] = field(default_factory=list)
    proofs: list[ProofMessage] = field(default_factory=list)
    receipts: list[bytes] = field(default_factory=list)
    sequence: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    keep_bodies: bool = True

    async def on_call(self, call: IncomingCall) -> None:
        meta = decode_part(call.meta, CallMeta)
        self.calls += 1
        if self.keep_bodies:
            self.bodies.append(call.body)
        try:
            await (self.answer or answer_embedding)(self, call, meta)
        except trio.Cancelled:
            self.cancelled += 1
            raise

    async def on_control(self, raw: bytes) -> None:
        message = decode_control(raw)
        if isinstance(message, NoticeMessage):
            self.notices.append(message)
        elif isinstance(message, ProofMessage) and self.keep_bodies:
            self.proofs.append(message)
        elif isinstance(message, BatchProofMessage) and self.keep_bodies:
            self.proofs.append(read_batch_proof(message))

    async def finish(
        self, call: IncomingCall, meta: CallMeta, body_hash: bytes, status: int, tokens: tuple[int, int]
    ) -> None:
        """End a call with a receipt."""
        now_ms = SystemClock().now_ms()
        receipt = self.edit_receipt(
            Receipt(meta.forward.struct_hash(), body_hash, status, *tokens, max(0, now_ms - 1), now_ms)
        )
        self.receipts.append(receipt.struct_hash())
        await call.finish(encode(CallEnd(receipt)))

    async def send_status(self, **changes: Any) -> None:
        assert self.link is not None
        now_ms = SystemClock().now_ms()
        self.sequence = max(self.sequence + 1, now_ms)
        hashes = tuple(sorted(model_hash(m) for m in self.manifests))
        status = NodeStatus(
            self.key.address, HUB_KEY.address, self.sequence, now_ms, hashes, self.capacity, 0, "0.1", "stub"
        )
        status = self.edit_status(msgspec.structs.replace(status, **changes))
        signature = self.key.sign(DOMAIN, status)
        manifests = tuple(canonical_json(m) for m in self.manifests)
        await self.link.send_control(encode(StatusMessage(status, signature, manifests)))

    async def send_batch(self) -> None:
        """Sign and send what waits."""
        assert self.link is not None
        hashes, self.receipts = tuple(self.receipts[:256]), self.receipts[256:]
        if hashes:
            await self.link.send_control(encode(self.make_batch(hashes)))

    def make_batch(self, hashes: tuple[bytes, ...], **changes: Any) -> BatchMessage:
        now_ms = SystemClock().now_ms()
        batch = RecordBatch(self.key.address, RecordKind.RECEIPT, batch_root(hashes), len(hashes), now_ms)
        batch = msgspec.structs.replace(batch, **changes)
        return BatchMessage(batch, self.key.sign(DOMAIN, batch), hashes)

    async def run(self, port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay connected until the tunnel ends, whoever ends it."""
        with self.scope:
            await self._run(port, task_status)

    async def _run(self, port: int, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self.link = await nursery.start(self._tunnel, port)
            await self.send_status()
            task_status.started()
            while not self.link.closed.is_set():
                await trio.sleep(0.05)
                if self.batching:
                    with suppress(EmcdError):
                        await self.send_batch()

    async def _tunnel(self, port: int, task_status: trio.TaskStatus[TunnelLink]) -> None:
        with suppress(EmcdError):
            await run_tunnel(
                f"ws://127.0.0.1:{port}",
                key=self.key,
                domain=DOMAIN,
                hub_address=HUB_KEY.address,
                on_call=self.on_call,
                on_control=self.on_control,
                task_status=task_status,
            )


async def answer_embedding(node: StubNode, call: IncomingCall, meta: CallMeta) -> None:
    body = embedding_body()
    await call.start(encode(ResponseHead(200, "application/json")))
    await call.send(body)
    await node.finish(call, meta, keccak(body), 200, (5, 0))


def answer_with(status: int, body: bytes, tokens: tuple[int, int] = (0, 0)) -> Any:
    """An engine that says this to everything."""

    async def answer(node: StubNode, call: IncomingCall, meta: CallMeta) -> None:
        await call.start(encode(ResponseHead(status, "application/json")))
        await call.send(body)
        await node.finish(call, meta, keccak(body), status, tokens)

    return answer


def answer_stream(
    events: list[bytes], tokens: tuple[int, int], *, pause_s: float = 0, pieces: int = 0
) -> Any:
    """An engine that streams these events, `pieces` bytes at a time if not 0."""

    async def answer(node: StubNode, call: IncomingCall, meta: CallMeta) -> None:
        await call.start(encode(ResponseHead(200, "text/event-stream")))
        body = b"".join(events)
        parts = [body[i : i + pieces] for i in range(0, len(body), pieces)] if pieces else events
        for part in parts:
            await call.send(part)
            if pause_s:
                await trio.sleep(pause_s)
        await node.finish(call, meta, keccak(body), 200, tokens)

    return answer


@dataclass
class HubWorld:
    """A running hub, an account with a key, and its nodes."""

    role: HubRole
    ledger: Ledger
    api_key: str
    account_id: str
    nursery: trio.Nursery

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.role.ports['public']}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.role.ports['admin']}"

    @property
    def plane(self) -> Any:
        return self.role._plane

    async def add_node(self, node: StubNode, *, online: bool = True) -> StubNode:
        """Connect a node and wait until the hub has its status."""
        await self.nursery.start(partial(node.run, self.role.ports["tunnel"]))
        if online:
            await self.until(lambda: self.is_online(node))
        return node

    def is_online(self, node: StubNode) -> bool:
        entry = self.plane.board.find(node.key.address)
        return entry is not None and entry.status is not None

    async def until(self, condition: Callable[[], object], timeout_s: float = 10) -> None:
        """Wait for something that other tasks bring about."""
        with trio.fail_after(timeout_s):
            while not condition():
                await trio.sleep(0.01)

    async def balances(self) -> tuple[int, int]:
        """(granted, vault) on disk."""

        def read(con: Any) -> tuple[int, int]:
            row = con.execute(
                "SELECT granted_micro, max(0, vault_micro - undone_micro) FROM hub_accounts WHERE account_id = ?",
                (self.account_id,),
            ).fetchone()
            return row[0], row[1]

        return await self.ledger.read(read)

    async def rows(self, sql: str) -> list[Any]:
        return await self.ledger.read(lambda con: [tuple(row) for row in con.execute(sql)])


def node_key(number: int) -> SigningKey:
    return make_key(f"node {number}")


def make_config(**settings: Any) -> HubConfig:
    """Loopback, free ports, both admin tokens, three nodes on the list."""
    free = HttpListen("127.0.0.1", 0)
    tokens = (
        AdminToken("ops", hashlib.sha256(ADMIN_TOKEN.encode()).hexdigest(), ("keys", "credits", "read")),
        AdminToken("eyes", hashlib.sha256(READ_TOKEN.encode()).hexdigest(), ("read",)),
    )
    values: dict[str, Any] = {
        "key": KEY_FILE,
        "listen": free,
        "tunnel_listen": free,
        "admin_listen": free,
        "admin_tokens": tokens,
        "admit": "listed",
        "allowed_nodes": tuple(node_key(n).address for n in range(8)),
        **settings,
    }
    return HubConfig(**values)


@asynccontextmanager
async def running_world(
    folder: Path,
    *,
    granted_micro: int = 10**12,
    deployment: Deployment = DEPLOYMENT,
    chain: Any = None,
    **settings: Any,
) -> AsyncIterator[HubWorld]:
    """A hub with one account, on a new or an old ledger in the folder."""
    async with open_ledger(folder / "ledger.db", {"hub": SPEC.migrations}) as ledger:
        account, secret = await create_account(ledger, "user", granted_micro)
        role = HubRole(make_config(**settings))
        context = make_context(
            "hub",
            ledger,
            deployment=deployment,
            chain=chain,
            keys={KEY_FILE: HUB_KEY},
            clock=SystemClock(),
        )
        async with trio.open_nursery() as nursery:
            async with running_role(role, context):
                yield HubWorld(role, ledger, secret, account.account_id, nursery)
            nursery.cancel_scope.cancel()


BODY = {"model": MODEL, "input": "hello"}


async def post(world: HubWorld, body: Any = BODY, path: str = "/v1/embeddings", **headers: str) -> Response:
    sent = {"authorization": f"Bearer {world.api_key}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return await request("POST", world.url + path, json=body, headers=sent, timeout_s=20)


async def fetch_receipt(world: HubWorld, call_id: str) -> CallReceipt:
    headers = {"authorization": f"Bearer {world.api_key}"}
    with trio.fail_after(10):
        while True:
            answer = await request("GET", f"{world.url}/v1/calls/{call_id}/receipt", headers=headers)
            if answer.status == 200:
                table = answer.json()
                del table["notes"]
                return from_json(CallReceipt, table)
            assert answer.status == 202
            assert answer.json() == {"state": "pending"}
            assert answer.headers["retry-after"] == "1"
            await trio.sleep(0.05)
