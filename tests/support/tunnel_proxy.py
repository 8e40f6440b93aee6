"""A TCP proxy between a node and its hub that loses, delays and silences connections as a test says."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

TO_HUB, TO_NODE = "to hub", "to node"


@dataclass
class TunnelProxy:
    """Every connection that is made here goes to the hub, until it is cut.

    Attributes:
        refusing: new connections are closed at once.
        budget: how many bytes still pass in a direction before everything is cut; None: all.
    """

    hub_port: int
    port: int = 0
    accepted: int = 0
    refusing: bool = False
    budget: dict[str, int | None] = field(default_factory=lambda: {TO_HUB: None, TO_NODE: None})
    _open: list[tuple[trio.SocketStream, trio.SocketStream]] = field(default_factory=list)
    _half_open: set[trio.SocketStream] = field(default_factory=set)
    _gates: dict[str, trio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for way in (TO_HUB, TO_NODE):
            self._gates[way] = trio.Event()
            self._gates[way].set()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def cut(self, *, half: bool = False) -> None:
        """Reset every connection, losing what is under way; `half`: the hub does not learn of it."""
        for near, onward in self._open:
            if half:
                self._half_open.add(onward)
            for stream in (near,) if half else (near, onward):
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                trio.lowlevel.notify_closing(stream.socket)
                stream.socket.close()
        self._open.clear()

    def silence(self, *ways: str) -> None:
        """Carry nothing more, and leave the connections open."""
        for way in ways or (TO_HUB, TO_NODE):
            if self._gates[way].is_set():
                self._gates[way] = trio.Event()

    def resume(self) -> None:
        """Carry again."""
        for gate in self._gates.values():
            gate.set()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.accepted += 1
        if self.refusing:
            await stream.aclose()
            return
        onward = await trio.open_tcp_stream("127.0.0.1", self.hub_port)
        self._open.append((stream, onward))
        async with onward, trio.open_nursery() as nursery:
            nursery.start_soon(self._carry, stream, onward, TO_HUB)
            nursery.start_soon(self._carry, onward, stream, TO_NODE)

    async def _carry(self, source: trio.SocketStream, sink: trio.SocketStream, way: str) -> None:
        try:
            while data := await source.receive_some(16384):
                await self._gates[way].wait()
                left = self.budget[way]
                if left is not None:
                    self.budget[way] = max(0, left - len(data))
                    if len(data) >= left:
                        await sink.send_all(data[:left])
                        self.budget[way] = None
                        self.cut()
                        return
                await sink.send_all(data)
            await sink.send_eof()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            if self._half_open.intersection((source, sink)):
                await trio.sleep_forever()
            for stream in (source, sink):
                await trio.aclose_forcefully(stream)


@asynccontextmanager
async def tunnel_proxy(hub_port: int) -> AsyncIterator[TunnelProxy]:
    """A proxy in front of a hub's tunnel port."""
    proxy = TunnelProxy(hub_port)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(proxy.serve, 0, host="127.0.0.1", task_status=task_status)
        )
        proxy.port = listeners[0].socket.getsockname()[1]
        try:
            yield proxy
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
