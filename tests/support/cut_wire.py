"""A wire that a test cuts: bytes go through until it says otherwise, and new connections may be refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import trio

_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass
class CutWire:
    """Listens on a port of loopback and passes everything on to another."""

    target: int
    port: int = 0
    is_cut: bool = False
    _scopes: list[trio.CancelScope] = field(default_factory=list)

    async def run(self, *, task_status: trio.TaskStatus[int]) -> None:
        serve = partial(trio.serve_tcp, self._pass_on, 0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(serve)
            self.port = listeners[0].socket.getsockname()[1]
            task_status.started(self.port)

    def cut(self) -> None:
        """Break all connections; new ones break at once."""
        self.is_cut = True
        for scope in self._scopes:
            scope.cancel()

    def mend(self) -> None:
        self.is_cut = False

    async def _pass_on(self, stream: trio.SocketStream) -> None:
        if self.is_cut:
            await trio.aclose_forcefully(stream)
            return
        scope = trio.CancelScope()
        self._scopes.append(scope)
        with scope:
            other = await trio.open_tcp_stream("127.0.0.1", self.target)
            async with stream, other, trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, stream, other, scope)
                nursery.start_soon(self._copy, other, stream, scope)

    @staticmethod
    async def _copy(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(65536):
                await target.send_all(data)
        except _BROKEN:
            pass
        scope.cancel()
