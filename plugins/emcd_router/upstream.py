"""The connection to one hub: dialled, kept, dialled again; what goes over it beside calls.

Invariants: one tunnel at a time; a pause between dials grows, with jitter; a new session knows none
of the nodes, so each is asked for a status and brought anew; without a hub for `hub_lost_s` its nodes
are sent to other routers, who may have one.
"""

from __future__ import annotations

import math
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from emcd import __version__
from emcd.clock import Clock
from emcd.errors import ProtocolError, RecoverableError, RemoteProtocolError
from emcd.net.tunnel import IncomingCall, TunnelLimits, TunnelLink, run_tunnel
from emcd.proto.control import (
    Accepted,
    NoticeMessage,
    RelayGone,
    RelayLive,
    RelayMessage,
    RelayTaken,
    StatusRequest,
    decode_router_control,
    encode,
)
from emcd.proto.eip712 import Domain
from emcd.proto.signing import Signer
from emcd.types import Address, ParticipantRole
from emcd_router.config import HubRef
from emcd_router.held_node import HeldNode
from emcd_router.outbox import Outbox
from emcd_router.report import Report

REPORT_S = 2.0
LOOK_S = 0.5
_FIRST_PAUSE_S = 0.2
_STEADY_S = 10.0
_REPLACED = "EMC-1410"
_REPLACED_FACTOR = 10
LEAVING = "EMC-2304"

OnCall = Callable[[Address, IncomingCall], Awaitable[None]]

_jitter = random.SystemRandom()


class Nodes(Protocol):
    """What is used of `nodes.NodeDesk`."""

    def list_of(self, hub: Address) -> list[HeldNode]: ...

    def find(self, node: Address, hub: Address) -> HeldNode | None: ...


@dataclass(frozen=True)
class UpstreamSettings:
    """What all upstreams of a router share."""

    region: str
    limits: TunnelLimits
    hub_lost_s: float
    reconnect_max_s: float


class Upstream:
    """Keeps the router at one hub; `run` returns after `leave`."""

    def __init__(
        self,
        hub: HubRef,
        settings: UpstreamSettings,
        *,
        key: Signer,
        domain: Domain,
        clock: Clock,
        ssl_context: ssl.SSLContext | None,
        nodes: Nodes,
        on_call: OnCall,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self.hub = hub.address
        self._complaint = "not connected yet"
        self._url = hub.url
        self._settings = settings
        self._key = key
        self._domain = domain
        self._clock = clock
        self._ssl_context = ssl_context
        self._nodes = nodes
        self._on_call = on_call
        self._log = log.bind(hub=hub.address)
        self._report = Report(key, domain, hub.address, clock, __version__, settings.region)
        self._outbox = Outbox()
        self._link: TunnelLink | None = None
        self._seen_at = -math.inf
        self._number = 0
        self._drain = trio.Event()

    @property
    def is_up(self) -> bool:
        """Whether nodes of this hub have business here: there is a connection now."""
        return self._link is not None and self._link.live

    @property
    def has_session(self) -> bool:
        """Whether what is said reaches the hub, now or when the connection is back."""
        return self._link is not None

    @property
    def complaint(self) -> str:
        """Why calls of this hub do not come, or ""."""
        if self.is_up:
            return ""
        return self._complaint if self._link is None else "the connection is lost for now"

    async def run(self) -> None:
        """Stay connected until `leave`."""
        async with trio.open_nursery() as nursery:
            pause_s = _FIRST_PAUSE_S
            nursery.start_soon(self._turn_away)
            while not self._drain.is_set():
                began = trio.current_time()
                factor = await self._connect_once(nursery)
                if trio.current_time() - began >= _STEADY_S:
                    pause_s = _FIRST_PAUSE_S
                with trio.move_on_after(factor * _jitter.uniform(pause_s / 2, pause_s)):
                    await self._drain.wait()
                pause_s = min(2 * pause_s, self._settings.reconnect_max_s)
            nursery.cancel_scope.cancel()

    def leave(self) -> None:
        """Take no calls, finish those in flight, and be gone."""
        self._drain.set()

    # ------------------------------------------------------------------ what the hub is told

    async def bring(self, node: HeldNode, status: bytes) -> None:
        """Show a node to the hub, which will say whether it takes it."""
        self._number += 1
        node.number = self._number
        node.brought = True
        await self.relay(node, status)

    async def relay(self, node: HeldNode, message: bytes) -> None:
        """Bring a control message of a node, once there is room. Dropped where the hub is away."""
        await self._outbox.room()
        if self._link is not None:
            self._outbox.post(encode(RelayMessage(node.address, message, node.number)))

    def tell_live(self, node: HeldNode, live: bool) -> None:
        """The node's link was lost, or is there again."""
        if self._link is not None and node.brought:
            self._outbox.post(encode(RelayLive(node.address, live, node.number)))

    def tell_gone(self, node: HeldNode, code: str, detail: str) -> None:
        """The node is not reached through here any more."""
        if self._link is not None and node.brought:
            node.brought = False
            self._outbox.post(encode(RelayGone(node.address, code, detail, node.number)))

    # ------------------------------------------------------------------ the tunnel

    async def _connect_once(self, nursery: trio.Nursery) -> float:
        """One session's life. Returns: by how much the pause after it is longer than usual."""
        factor = 1.0
        scope = trio.CancelScope()

        def on_link(link: TunnelLink) -> None:
            self._link = link
            self._seen_at = trio.current_time()
            self._log.info("router.hub_connected")
            nursery.start_soon(self._talk, link, scope)

        try:
            await run_tunnel(
                self._url,
                key=self._key,
                domain=self._domain,
                hub_address=self.hub,
                role=ParticipantRole.ROUTER,
                on_call=self._serve,
                on_control=self._take_control,
                ssl_context=self._ssl_context,
                limits=self._settings.limits,
                drain=self._drain,
                clock=self._clock,
                on_error=self._report_error,
                task_status=_Started(on_link),
            )
            self._complaint = "the hub took its leave"
        except (RecoverableError, RemoteProtocolError) as exc:
            self._complaint = f"no connection: {exc}"
            factor = _REPLACED_FACTOR if exc.code == _REPLACED else 1.0
            self._log.warning("router.hub_lost", code=exc.code, detail=exc.detail)
        finally:
            scope.cancel()
            self._link = None
            self._outbox.clear()
            for node in self._nodes.list_of(self.hub):
                node.forget()
        return factor

    async def _talk(self, link: TunnelLink, scope: trio.CancelScope) -> None:
        """While there is a session: have the nodes brought, write, report."""
        for node in self._nodes.list_of(self.hub):
            node.post(encode(StatusRequest()))
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, link)
                while True:
                    nodes = self._nodes.list_of(self.hub)
                    in_flight = sum(node.room.in_flight for node in nodes)
                    self._outbox.post(self._report.make(len(nodes), in_flight))
                    await trio.sleep(REPORT_S)

    async def _write(self, link: TunnelLink) -> None:
        with suppress(RecoverableError):  # lost: `run` dials again
            while True:
                await link.send_control(await self._outbox.take())

    async def _serve(self, call: IncomingCall) -> None:
        await self._on_call(self.hub, call)

    async def _take_control(self, raw: bytes) -> None:
        message = decode_router_control(raw)
        if isinstance(message, NoticeMessage):
            self._log.warning("router.hub_notice", code=message.code[:16], detail=message.detail[:300])
            return
        if not isinstance(message, RelayMessage | RelayTaken | RelayGone):
            raise RemoteProtocolError("EMC-2305", f"a {type(message).__name__}")
        node = self._nodes.find(message.node, self.hub)
        if node is None or not node.brought or node.number != message.number:
            return  # it has just gone, or come anew
        if isinstance(message, RelayMessage):
            node.post(message.payload)
        elif isinstance(message, RelayTaken):
            node.take()
            node.post(encode(Accepted()))
        else:
            node.brought = False
            node.end(message.code[:16], message.detail[:300])

    async def _turn_away(self) -> None:
        """Send the nodes elsewhere when the hub is away for long."""
        while True:
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            if self.is_up:
                self._seen_at = now
            elif now - self._seen_at > self._settings.hub_lost_s:
                for node in self._nodes.list_of(self.hub):
                    node.end("EMC-1409", "this router has no connection to the hub")

    def _report_error(self, exc: BaseException) -> None:
        if isinstance(exc, ProtocolError):
            self._log.warning("router.hub_message_refused", code=exc.code, detail=exc.detail)
        else:
            self._log.error("router.handler_failed", exc_info=exc)


class _Started:
    """A task status that hands the value on."""

    def __init__(self, on_link: Callable[[TunnelLink], None]) -> None:
        self._on_link = on_link

    def started(self, value: TunnelLink | None = None) -> None:
        assert value is not None
        self._on_link(value)
