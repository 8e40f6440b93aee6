"""Routers of every kind: one that a test scripts word by word, and real ones between hub and nodes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from emcd.clock import SystemClock
from emcd.config import KeyFile, Listen
from emcd.errors import EmcdError
from emcd.inference.manifest import canonical_json, model_hash
from emcd.keys import SigningKey
from emcd.ledger import Ledger
from emcd.net.http_client import request
from emcd.net.tunnel import IncomingCall, TunnelLink, run_tunnel
from emcd.proto.control import (
    CallEnd,
    CallMeta,
    NoticeMessage,
    RelayGone,
    RelayMessage,
    RelayTaken,
    ResponseHead,
    RoutedMeta,
    RouterControl,
    RouterStatusMessage,
    StatusMessage,
    StatusRequest,
    decode_control,
    decode_part,
    decode_router_control,
    encode,
)
from emcd.proto.hashing import keccak
from emcd.proto.messages import NodeStatus, RouterStatus
from emcd.proto.records import Receipt
from emcd.role import RoleContext
from emcd.testing import make_context, make_key, running_role
from emcd.types import Address, ParticipantRole
from emcd_node.router_choice import Way
from emcd_router.config import HubRef, RouterConfig
from emcd_router.role import RouterRole
from tests.support.hub_world import (
    DEPLOYMENT,
    DOMAIN,
    HUB_KEY,
    MANIFEST,
    HubWorld,
    StubNode,
    embedding_body,
    node_key,
)

ROUTER_KEYS = [make_key(f"router {number}") for number in range(4)]
ROUTER_FILE = KeyFile(Path("router.json"))


def router_of(world: HubWorld, node: str = node_key(1).address) -> str | None:
    """Through whom the hub reaches a node; None where it is not online."""
    entry = world.plane.board.find(node)
    return None if entry is None or entry.status is None else str(entry.router)


async def answer_call(call: IncomingCall, routed: RoutedMeta) -> None:
    """As the node behind the router would."""
    meta = decode_part(routed.meta, CallMeta)
    body = embedding_body()
    now_ms = SystemClock().now_ms()
    receipt = Receipt(meta.forward.struct_hash(), keccak(body), 200, 5, 0, now_ms, now_ms)
    await call.start(encode(ResponseHead(200, "application/json")))
    await call.send(body)
    await call.finish(encode(CallEnd(receipt)))


def make_status(key: SigningKey, **changes: Any) -> bytes:
    """A node's status as an honest node sends it, but for the changes."""
    now_ms = SystemClock().now_ms()
    status = NodeStatus(
        key.address, HUB_KEY.address, now_ms, now_ms, (model_hash(MANIFEST),), 8, 0, "0.1", "stub"
    )
    status = msgspec.structs.replace(status, **changes)
    return encode(StatusMessage(status, key.sign(DOMAIN, status), (canonical_json(MANIFEST),)))


@dataclass
class ScriptedRouter:
    """A router's end of a tunnel to a hub; the test says every word."""

    key: SigningKey
    role: ParticipantRole = ParticipantRole.ROUTER
    link: TunnelLink | None = None
    heard: list[RouterControl] = field(default_factory=list)
    calls: list[RoutedMeta] = field(default_factory=list)
    fault: EmcdError | None = None
    over: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    answer: Callable[[IncomingCall, RoutedMeta], Any] | None = None

    async def run(self, port: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Dial, and stay until the tunnel ends."""

        async def tunnel(*, task_status: trio.TaskStatus[TunnelLink]) -> None:
            try:
                await run_tunnel(
                    f"ws://127.0.0.1:{port}",
                    key=self.key,
                    domain=DOMAIN,
                    hub_address=HUB_KEY.address,
                    role=self.role,
                    on_call=self._serve,
                    on_control=self._take,
                    task_status=task_status,
                )
            except EmcdError as exc:
                self.fault = exc
            self.over.set()

        with self.scope:
            async with trio.open_nursery() as nursery:
                with suppress(RuntimeError):  # it ended before it stood
                    self.link = await nursery.start(tunnel)
                task_status.started()

    async def say(self, *messages: RouterControl) -> None:
        for message in messages:
            await self.say_raw(encode(message))

    async def say_raw(self, raw: bytes) -> None:
        assert self.link is not None
        await self.link.send_control(raw)

    async def bring(self, key: SigningKey, **changes: Any) -> None:
        """Relay a fresh status of a node."""
        await self.say(RelayMessage(key.address, make_status(key, **changes)))

    async def report(self, **changes: Any) -> None:
        """A status of its own."""
        now_ms = SystemClock().now_ms()
        status = RouterStatus(self.key.address, HUB_KEY.address, now_ms, now_ms, 1, 0, "0.1", "test")
        status = msgspec.structs.replace(status, **changes)
        await self.say(RouterStatusMessage(status, self.key.sign(DOMAIN, status)))

    def notices(self) -> list[str]:
        return [message.code for message in self.heard if isinstance(message, NoticeMessage)]

    def gone(self) -> list[tuple[Address, str]]:
        return [(message.node, message.code) for message in self.heard if isinstance(message, RelayGone)]

    def taken(self) -> list[Address]:
        return [message.node for message in self.heard if isinstance(message, RelayTaken)]

    async def _serve(self, call: IncomingCall) -> None:
        meta = decode_part(call.meta, RoutedMeta)
        self.calls.append(meta)
        if self.answer is not None:
            await self.answer(call, meta)

    async def _take(self, raw: bytes) -> None:
        self.heard.append(decode_router_control(raw))


async def add_router(world: HubWorld, router: ScriptedRouter) -> ScriptedRouter:
    """Connect a scripted router to a hub."""
    await world.nursery.start(partial(router.run, world.role.ports["tunnel"]))
    return router


async def get_routers(world: HubWorld) -> list[dict[str, Any]]:
    answer = await request("GET", f"{world.url}/api/routers")
    assert answer.status == 200
    found: list[dict[str, Any]] = answer.json()["routers"]
    return found


@dataclass
class RunningRouter:
    """A real router in a task of its own."""

    role: RouterRole
    key: SigningKey
    _stop: trio.Event = field(default_factory=trio.Event)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _over: trio.Event = field(default_factory=trio.Event)

    @property
    def address(self) -> Address:
        return self.key.address

    @property
    def way(self) -> Way:
        """How a node gets there."""
        return Way(f"ws://127.0.0.1:{self.role.port}", self.key.address)

    def kill(self) -> None:
        """End it without a word."""
        self._scope.cancel()

    async def stop(self) -> None:
        """End it as SIGTERM does."""
        self._stop.set()
        await self._over.wait()

    async def run(self, context: RoleContext, *, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with running_role(self.role, context, drain_s=15):
                task_status.started()
                await self._stop.wait()
        self._over.set()


async def start_router(
    nursery: trio.Nursery, ledger: Ledger, key: SigningKey, *hubs: HubRef, **settings: Any
) -> RunningRouter:
    """A router of these hubs, on a free port."""
    values = {"hubs": hubs, "listen": Listen("127.0.0.1", 0), "reconnect_max_s": 0.3, **settings}
    role = RouterRole(RouterConfig(key=ROUTER_FILE, **values))
    keys = {ROUTER_FILE: key}
    context = make_context("router", ledger, deployment=DEPLOYMENT, keys=keys, clock=SystemClock())
    running = RunningRouter(role, key)
    await nursery.start(partial(running.run, context))
    return running


@dataclass
class RoutedStub(StubNode):
    """A stub of a node that connects to a router instead."""

    router: Address | None = None
    first: bytes | None = None
    fault: EmcdError | None = None

    async def on_control(self, raw: bytes) -> None:
        if isinstance(decode_control(raw), StatusRequest):
            await self.send_status()
        await super().on_control(raw)

    async def send_status(self, **changes: Any) -> None:
        if self.first is None:
            await super().send_status(**changes)
        else:
            assert self.link is not None
            await self.link.send_control(self.first)

    async def _tunnel(self, port: int, task_status: trio.TaskStatus[TunnelLink]) -> None:
        try:
            await run_tunnel(
                f"ws://127.0.0.1:{port}",
                key=self.key,
                domain=DOMAIN,
                hub_address=self.router,
                on_call=self.on_call,
                on_control=self.on_control,
                task_status=task_status,
            )
        except EmcdError as exc:
            self.fault = exc
