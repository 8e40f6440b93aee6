"""A hub and nodes joined by real tunnels, with handlers that a test scripts."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from emcd.errors import EmcdError
from emcd.keys import SigningKey
from emcd.net.tunnel import (
    IncomingCall,
    TunnelLimits,
    TunnelLink,
    TunnelPeer,
    run_tunnel,
    serve_tunnels,
)
from emcd.proto.eip712 import Domain
from emcd.types import Address, ParticipantRole
from tests.support.net_world import WAIT_S

HUB, NODE, OTHER = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
DOMAIN = Domain(31337, HUB.address)


async def echo_call(call: IncomingCall) -> None:
    """Answer with the call's own meta and body."""
    await call.start(b"head " + call.meta)
    await call.send(call.body)
    await call.finish(b"end")


async def drop_control(message: bytes) -> None:
    """Take no notice."""


@dataclass
class HubWorld:
    """A running hub. `lost` collects the peers whose handler has ended, `controls` what they sent."""

    port: int = 0
    limits: TunnelLimits = field(default_factory=TunnelLimits)
    drain: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    authorized: set[Address] = field(default_factory=lambda: {NODE.address})
    peers: dict[Address, TunnelPeer] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    controls: list[bytes] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    _changed: trio.Event = field(default_factory=trio.Event)

    async def authorize(self, address: Address, role: ParticipantRole) -> bool:
        return address in self.authorized

    async def on_peer(self, peer: TunnelPeer) -> None:
        self.peers[peer.address] = peer
        self._note("joined")
        try:
            async for message in peer.controls():
                self.controls.append(message)
                self._note("control")
        finally:
            if self.peers.get(peer.address) is peer:
                del self.peers[peer.address]
            self._note("left")

    def _note(self, what: str) -> None:
        self.history.append(what)
        self._changed.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        with trio.fail_after(WAIT_S):
            while not condition():
                self._changed = trio.Event()
                await self._changed.wait()

    async def peer(self, address: Address = NODE.address) -> TunnelPeer:
        await self.until(lambda: address in self.peers)
        return self.peers[address]


@asynccontextmanager
async def hub_world(
    limits: TunnelLimits | None = None, ssl_context: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[HubWorld]:
    world = HubWorld(limits=limits or TunnelLimits())
    arguments: dict[str, Any] = {
        "on_peer": world.on_peer,
        "authorize": world.authorize,
        "key": HUB,
        "domain": DOMAIN,
    } | options

    async def run(task_status: trio.TaskStatus[int]) -> None:
        await serve_tunnels(
            host="127.0.0.1",
            port=0,
            ssl_context=ssl_context,
            limits=world.limits,
            drain=world.drain,
            on_error=world.errors.append,
            task_status=task_status,
            **arguments,
        )
        world.ended.set()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        world.port = await nursery.start(run)
        try:
            yield world
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@dataclass
class NodeWorld:
    """A running node. `fault` is how its tunnel ended, `errors` what its handlers let out."""

    link: TunnelLink
    drain: trio.Event
    ended: trio.Event
    errors: list[BaseException]
    scope: trio.CancelScope
    fault: EmcdError | None = None

    async def until_ended(self) -> EmcdError | None:
        with trio.fail_after(WAIT_S):
            await self.ended.wait()
        return self.fault


@asynccontextmanager
async def node_world(
    hub: HubWorld,
    on_call: Callable[[IncomingCall], Awaitable[None]] = echo_call,
    on_control: Callable[[bytes], Awaitable[None]] = drop_control,
    key: Any = NODE,
    **options: Any,
) -> AsyncIterator[NodeWorld]:
    """Connect a node; raises what the hub refuses it for."""
    drain, ended, scope = trio.Event(), trio.Event(), trio.CancelScope()
    errors: list[BaseException] = []
    arguments: dict[str, Any] = {"domain": DOMAIN, "hub_address": HUB.address, "limits": hub.limits} | options
    world: NodeWorld | None = None
    refused: EmcdError | None = None

    async def run(task_status: trio.TaskStatus[TunnelLink]) -> None:
        nonlocal refused
        try:
            with scope:
                await run_tunnel(
                    arguments.pop("url", f"ws://127.0.0.1:{hub.port}"),
                    key=key,
                    on_call=on_call,
                    on_control=on_control,
                    drain=drain,
                    on_error=errors.append,
                    task_status=task_status,
                    **arguments,
                )
        except EmcdError as exc:
            if world is None:
                refused = exc
                task_status.started(None)  # type: ignore[arg-type]
            else:
                world.fault = exc
        ended.set()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        link = await nursery.start(run)
        if refused is None:
            world = NodeWorld(link, drain, ended, errors, scope)
            try:
                yield world
            except Exception as exc:
                failure = exc
        nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused
    if failure is not None:
        raise failure


@asynccontextmanager
async def tunnel_world(
    on_call: Callable[[IncomingCall], Awaitable[None]] = echo_call, limits: TunnelLimits | None = None
) -> AsyncIterator[tuple[HubWorld, NodeWorld, TunnelPeer]]:
    """One hub, one node, and the hub's view of it."""
    async with hub_world(limits) as hub, node_world(hub, on_call) as node:
        yield hub, node, await hub.peer()
