"""A hub as a node meets it: a real tunnel, answers written down, and whatever lie a test wants."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import trio

from emcd.clock import Clock, SystemClock
from emcd.inference.manifest import Manifest, model_hash
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.net.tunnel import TunnelPeer, serve_tunnels
from emcd.proto.control import (
    BatchMessage,
    CallEnd,
    CallMeta,
    ResponseHead,
    StatusMessage,
    decode_control,
    decode_part,
    encode,
)
from emcd.proto.hashing import keccak
from emcd.proto.network import Deployment
from emcd.proto.params import NetworkParams
from emcd.proto.records import Forward, request_hash
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS, Address

HUB_KEY = make_key("hub")
NODE_KEY = make_key("node")
EMBEDDINGS = "/v1/embeddings"
CHAT = "/v1/chat/completions"


def make_deployment(**params: Any) -> Deployment:
    """A network with quick statuses; nothing of it is on a chain."""
    numbers: dict[str, Any] = {
        "genesis_time_s": 1_700_000_000 // 7200 * 7200,
        "status_interval_ms": 200,
        **params,
    }
    contracts = [make_key(f"contract {n}").address for n in range(5)]
    return Deployment(31337, *contracts, 1, NetworkParams(**numbers))


DEPLOYMENT = make_deployment()
DOMAIN = DEPLOYMENT.staking_domain


def make_meta(
    body: bytes,
    *,
    path: str = EMBEDDINGS,
    manifest: Manifest = MINILM_MANIFEST,
    stream: bool = False,
    clock: Clock | None = None,
    **changes: Any,
) -> CallMeta:
    """A call as an honest hub makes it; `changes` are of the forward record's fields."""
    forward = Forward(
        call_id=secrets.token_bytes(16),
        hub=HUB_KEY.address,
        router=ZERO_ADDRESS,
        node=NODE_KEY.address,
        request_hash=request_hash(path, body),
        model_hash=model_hash(manifest),
        price_version=1,
        started_at_ms=(clock or SystemClock()).now_ms(),
    )
    return CallMeta(msgspec.structs.replace(forward, **changes), path, manifest.name, stream)


async def poll_until(condition: Callable[[], object], timeout_s: float = 5) -> None:
    """Wait for something that nobody announces."""
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.01)


@dataclass
class Answered:
    """What a node made of a call."""

    meta: CallMeta
    status: int
    content_type: str
    body: bytes
    end: CallEnd

    def require_sound(self) -> Answered:
        """The receipt is over exactly this."""
        receipt = self.end.receipt
        assert receipt.forward_hash == self.meta.forward.struct_hash()
        assert receipt.response_hash == keccak(self.body)
        assert receipt.http_status == self.status
        assert 0 <= receipt.finished_at_ms - receipt.started_at_ms < 60_000
        return self

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class TestHub:
    """The hub's end; `peer` is the newest tunnel."""

    __test__ = False

    url: str = ""
    port: int = 0
    peer: TunnelPeer | None = None
    peers: int = 0
    statuses: list[StatusMessage] = field(default_factory=list)
    batches: list[BatchMessage] = field(default_factory=list)
    admit: Callable[[Address], bool] = lambda _address: True
    changed: trio.Event = field(default_factory=trio.Event)

    async def until(self, condition: Callable[[], object], timeout_s: float = 10) -> None:
        """Wait until something that the node causes is so."""
        with trio.fail_after(timeout_s):
            while not condition():
                await self.changed.wait()

    async def call(self, body: bytes, meta: CallMeta | None = None, **fields: Any) -> Answered:
        """Call the node and read the whole answer."""
        await self.until(lambda: self.peer)
        assert self.peer is not None
        meta = meta or make_meta(body, **fields)
        async with self.peer.call(encode(meta), body) as call:
            head, content, end = await call.whole(1 << 26)
        parsed = decode_part(head, ResponseHead)
        return Answered(meta, parsed.status, parsed.content_type, content, decode_part(end, CallEnd))

    def batched(self) -> set[bytes]:
        return {item for batch in self.batches for item in batch.record_hashes}

    async def drop(self) -> None:
        """Lose the present tunnel without a word."""
        assert self.peer is not None
        self.peer = None
        self._dropped.set()

    def __post_init__(self) -> None:
        self._dropped = trio.Event()

    async def on_peer(self, peer: TunnelPeer) -> None:
        self._dropped = trio.Event()
        self.peer, self.peers = peer, self.peers + 1
        self._ring()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_dropped, nursery.cancel_scope)
                async for message in peer.controls():
                    control = decode_control(message)
                    if isinstance(control, StatusMessage):
                        self.statuses.append(control)
                    elif isinstance(control, BatchMessage):
                        self.batches.append(control)
                    self._ring()
                nursery.cancel_scope.cancel()
        finally:
            if self.peer is peer:
                self.peer = None
            self._ring()

    async def authorize(self, address: Address, _role: object) -> bool:
        return self.admit(address)

    async def _end_when_dropped(self, scope: trio.CancelScope) -> None:
        await self._dropped.wait()
        scope.cancel()

    def _ring(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


@asynccontextmanager
async def running_hub(
    *, key: Any = HUB_KEY, port: int = 0, hub: TestHub | None = None
) -> AsyncIterator[TestHub]:
    """A hub on a free port of loopback, or on `port` to come back where it was."""
    hub = hub or TestHub()
    async with trio.open_nursery() as nursery:
        serve: Callable[..., Awaitable[None]] = partial(
            serve_tunnels,
            host="127.0.0.1",
            port=port,
            key=key,
            domain=DOMAIN,
            on_peer=hub.on_peer,
            authorize=hub.authorize,
        )
        hub.port = await nursery.start(serve)
        hub.url = f"ws://127.0.0.1:{hub.port}"
        yield hub
        nursery.cancel_scope.cancel()
