"""The node's standing connection to its hub, through a router or directly: made, kept, made again.

Owns which way is taken, and when. Invariants: one tunnel is current; where the node moves on by
itself, the hub has taken it over the next tunnel before the last one is left, which finishes its
calls; a router that does not bring it to the hub has failed, as far as the router's own word tells;
a pause between dials grows, with jitter, and is longest when a newer tunnel of the same key took over, since two
nodes with one key would drive each other out for ever.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from emcd.errors import RecoverableError
from emcd.net.reach import measure_connect_s
from emcd_node.node_tunnel import Desk, NodeTunnel
from emcd_node.router_choice import Way, WayChoice

_FIRST_PAUSE_S = 0.2
_STEADY_S = 10.0
"""A connection that lived this long ends the growth of the pause."""
_REPLACED = "EMC-1410"
_REPLACED_FACTOR = 10
_REFUSED_FOR_GOOD = frozenset(("EMC-1403", "EMC-1404", "EMC-1406", "EMC-1429"))
_MEASURE_S = 2.0
_MEASURED_AT_ONCE = 16
_HOME_S = 30.0
"""How often a node that had to go to the hub itself looks for a router."""
_FOLLOW_S = 300.0
_FETCH_S = 5.0
_TAKEN_S = 5.0
"""How long a router may need to have the node taken by the hub."""

_jitter = random.SystemRandom()


@dataclass(frozen=True)
class LinkSettings:
    """The ways to the hub.

    Attributes:
        ssl_contexts: by URL, where not the machine's certificates are trusted.
        fetch_routers: more routers, as the chain has them; raises RecoverableError.
    """

    direct: Way | None
    routers: tuple[Way, ...]
    ssl_contexts: dict[str, ssl.SSLContext]
    reconnect_max_s: float
    fetch_routers: Callable[[], Awaitable[list[Way]]] | None = None


class HubLink:
    """Keeps one node connected to one hub; `run` returns after `leave`."""

    def __init__(self, settings: LinkSettings, desk: Desk) -> None:
        self._settings = settings
        self._desk = desk
        self._choice = WayChoice(settings.routers, settings.direct, settings.reconnect_max_s)
        self._leaving = trio.Event()
        self._left = trio.Event()
        self._tunnels: set[NodeTunnel] = set()
        self._current: NodeTunnel | None = None
        self._complaint = "not connected to the hub yet"
        self._pause = _Pause(settings.reconnect_max_s, self._leaving)

    @property
    def complaint(self) -> str:
        """Why no calls come, or ""."""
        return "" if self._current is not None and self._current.link is not None else self._complaint

    @property
    def notice(self) -> str:
        """What hub or router had to say of this node on the present connection."""
        return "" if self._current is None else self._current.notice

    @property
    def through(self) -> str:
        """Through whom the hub is reached, in words; "" where it is reached directly, or not at all."""
        current = self._current
        if current is None or current.link is None or not current.way.is_router:
            return ""
        return f"through {current.name} at {current.way.url}"

    async def run(self) -> None:
        """Stay connected until `leave`."""
        async with trio.open_nursery() as nursery:
            await self._refresh_routers()
            nursery.start_soon(self._follow_routers)
            await self._keep(nursery)
            while self._tunnels:
                await next(iter(self._tunnels)).over.wait()
            nursery.cancel_scope.cancel()
        self._left.set()

    async def leave(self) -> None:
        """Say goodbye to the hub once the calls in flight are done; waits until that is so."""
        self._leaving.set()
        for tunnel in self._tunnels:
            tunnel.leave()
        await self._left.wait()

    def announce(self) -> None:
        """Send a status now: something changed."""
        if self._current is not None:
            self._current.announce()

    # ------------------------------------------------------------------ the current tunnel

    async def _keep(self, nursery: trio.Nursery) -> None:
        """One tunnel after the other."""
        pause = self._pause
        while not self._leaving.is_set():
            tunnel = await self._dial(nursery)
            if tunnel is None:
                await pause.wait(1.0)
            else:
                self._take_over(tunnel)
            current = self._current
            if current is None:
                continue
            await self._stay(current)
            if current.over.is_set():
                self._current = None
                if trio.current_time() - current.began >= _STEADY_S:
                    self._choice.note_steady(current.way)
                    pause.reset()
                self._note_over(current)
                if not self._leaving.is_set():
                    await pause.wait(_REPLACED_FACTOR if current.code == _REPLACED else 1.0)

    async def _dial(self, nursery: trio.Nursery) -> NodeTunnel | None:
        """A tunnel by the way that is best now; None when it did not come to stand."""
        way = await self._choose()
        if way is None:
            self._complaint = "no router is known yet"
        if way is None or (self._current is not None and self._current.way == way):
            return None
        context = self._settings.ssl_contexts.get(way.url)
        tunnel = NodeTunnel(way, self._desk, context, on_trial=self._current is not None)
        self._tunnels.add(tunnel)
        if self._leaving.is_set():
            tunnel.leave()
        nursery.start_soon(self._run_tunnel, tunnel)
        await tunnel.settled.wait()
        if tunnel.link is not None and self._current is not None:
            await self._try(tunnel, self._current)
        if tunnel.link is not None:
            return tunnel
        self._note_over(tunnel)
        return None

    async def _try(self, tunnel: NodeTunnel, current: NodeTunnel) -> None:
        """Give a router time to have the node taken; it is left when it does not, unless nothing else is."""
        events = (tunnel.accepted, tunnel.over, current.over, self._leaving)
        with trio.move_on_after(_TAKEN_S):
            await self._first(*(event.wait for event in events))
        if not any(event.is_set() for event in events):
            tunnel.give_up()
            await tunnel.over.wait()

    async def _run_tunnel(self, tunnel: NodeTunnel) -> None:
        try:
            await tunnel.run()
        finally:
            self._tunnels.discard(tunnel)

    def _take_over(self, tunnel: NodeTunnel) -> None:
        older, self._current = self._current, tunnel
        tunnel.begin()
        if older is not None:
            self._pause.reset()
            older.retire()
            older.leave()

    def _note_over(self, tunnel: NodeTunnel) -> None:
        """Remember how a way has done."""
        self._complaint = tunnel.complaint
        now = trio.current_time()
        if not tunnel.code:
            self._choice.note_leaving(tunnel.way, now)
        elif tunnel.code != _REPLACED:
            self._choice.note_failed(tunnel.way, now, for_good=tunnel.code in _REFUSED_FOR_GOOD)

    async def _stay(self, tunnel: NodeTunnel) -> None:
        """Wait until the tunnel is over, or another way is to be tried while it lives."""
        await self._first(
            tunnel.over.wait,
            self._leaving.wait,
            partial(self._wait_told, tunnel),
            partial(self._wait_home, tunnel),
            partial(self._wait_not_taken, tunnel),
        )

    @staticmethod
    async def _first(*waits: Callable[[], Awaitable[None]]) -> None:
        """Wait until the first of these returns."""
        async with trio.open_nursery() as nursery:

            async def wait(one: Callable[[], Awaitable[None]]) -> None:
                await one()
                nursery.cancel_scope.cancel()

            for one in waits:
                nursery.start_soon(wait, one)

    async def _wait_not_taken(self, tunnel: NodeTunnel) -> None:
        """Wait until it is clear that the router does not bring the node, and there is another way."""
        while not tunnel.accepted.is_set():
            with trio.move_on_after(_TAKEN_S):
                await tunnel.accepted.wait()
            now = trio.current_time()
            if not tunnel.accepted.is_set() and self._choice.has_other(tunnel.way, now):
                self._choice.note_failed(tunnel.way, now)
                return
        await trio.sleep_forever()

    async def _wait_told(self, tunnel: NodeTunnel) -> None:
        """Wait until the peer says that it is leaving, and there is another way."""
        if tunnel.link is not None:
            await tunnel.link.leaving.wait()
            now = trio.current_time()
            self._choice.note_leaving(tunnel.way, now)
            if self._choice.has_other(tunnel.way, now):
                return
        await trio.sleep_forever()

    async def _wait_home(self, tunnel: NodeTunnel) -> None:
        """On the direct way: wait until there is a router again."""
        if tunnel.way.is_router:
            await trio.sleep_forever()
        while True:
            await trio.sleep(_jitter.uniform(_HOME_S / 2, _HOME_S))
            await self._measure()
            if self._choice.has_known(trio.current_time()):
                return

    # ------------------------------------------------------------------ the ways

    async def _choose(self) -> Way | None:
        if not self._choice.has_known(trio.current_time()):
            await self._measure()
        return self._choice.choose(trio.current_time(), _jitter.randrange)

    async def _measure(self) -> None:
        """Find out how near the routers are of which that is not known."""
        ways = self._choice.list_unmeasured(trio.current_time())
        if len(ways) > _MEASURED_AT_ONCE:
            ways = _jitter.sample(ways, _MEASURED_AT_ONCE)

        async def measure(way: Way) -> None:
            connect_s = await measure_connect_s(way.url, _MEASURE_S)
            self._choice.note_measured(way, connect_s, trio.current_time())

        async with trio.open_nursery() as nursery:
            for way in ways:
                nursery.start_soon(measure, way)

    async def _follow_routers(self) -> None:
        while self._settings.fetch_routers is not None:
            await trio.sleep(_FOLLOW_S if self._choice.has_routers else _FETCH_S)
            await self._refresh_routers()

    async def _refresh_routers(self) -> None:
        """Take the chain's routers; those known stay where it can't be read."""
        settings = self._settings
        if settings.fetch_routers is None:
            return
        try:
            with trio.move_on_after(_FETCH_S):
                found = await settings.fetch_routers()
                named = {way.address for way in settings.routers}
                others = [way for way in found if way.address not in named]
                self._choice.set_routers((*settings.routers, *others))
        except RecoverableError as exc:
            self._desk.log.warning("node.routers_not_read", code=exc.code, detail=exc.detail)


class _Pause:
    """A pause between dials that grows."""

    def __init__(self, longest_s: float, leaving: trio.Event) -> None:
        self._longest_s = longest_s
        self._leaving = leaving
        self._next_s = _FIRST_PAUSE_S

    def reset(self) -> None:
        self._next_s = _FIRST_PAUSE_S

    async def wait(self, factor: float) -> None:
        with trio.move_on_after(factor * _jitter.uniform(self._next_s / 2, self._next_s)):
            await self._leaving.wait()
        self._next_s = min(2 * self._next_s, self._longest_s)
