"""One node's session at the hub: its peer, its channel, its handler, and the connections it has had.

Invariants: when the connection is lost, the handler is told at once, impatient calls end after
`give_up_s`, and the session after `resume_s` unless the node came back; when the session is over,
everything that waits on it is told at once, and `finished` is set when its handler has ended too.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import trio

from emcd.errors import EmcdError, RecoverableError, RemoteProtocolError
from emcd.net.tunnel_channel import Channel
from emcd.net.tunnel_link import Link, TunnelLimits
from emcd.net.tunnel_peer import TunnelPeer
from emcd.proto.tunnel_auth import Resume


class Tunnel:
    """A session, by its name and the number of its last resumption (`epoch`)."""

    __slots__ = ("_limits", "_nursery", "_resumed", "_scope", "channel", "epoch", "finished", "name", "peer")

    def __init__(
        self, name: bytes, peer: TunnelPeer, channel: Channel, limits: TunnelLimits, nursery: trio.Nursery
    ) -> None:
        self.name = name
        self.epoch = 0
        self.peer = peer
        self.channel = channel
        self.finished = trio.Event()
        self._limits = limits
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._resumed: trio.Event | None = None

    async def run(
        self,
        on_peer: Callable[[TunnelPeer], Awaitable[None]],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Run the handler; its end is the session's."""
        fault: EmcdError | None = None
        try:
            with self._scope:
                try:
                    await on_peer(self.peer)
                    await self.channel.flushed()
                except Exception as exc:  # noqa: BLE001 -- one node's handler is not the others'
                    fault = find_reason(exc)
                    if fault is None:
                        on_error(exc)
        finally:
            self.end(fault)
            self.finished.set()

    def end(self, fault: EmcdError | None) -> None:
        """End the session now; the first fault stays."""
        if self.channel.closed.is_set():
            return
        link = self.channel.link
        self.channel.close(fault)
        if link is not None:
            link.end(fault)
        if self._resumed is not None:
            self._resumed.set()
        self.peer.end()
        self._scope.cancel()

    async def leave(self, drain_s: float) -> None:
        """Let the open calls end, then end the session and wait for its handler."""
        await self.peer.leave(drain_s)
        self.end(None)
        await self.finished.wait()

    # The connections.

    def begin_epoch(self, session: Resume) -> None:
        """Make place for a new connection. Raises: RemoteProtocolError EMC-1415, EMC-1416."""
        log = self.channel.log
        if self.channel.closed.is_set() or not secrets.compare_digest(session.session, self.name):
            raise RemoteProtocolError("EMC-1415", "this session is not known here")
        if session.epoch <= self.epoch:
            raise RemoteProtocolError("EMC-1416", f"attempt {session.epoch} comes after {self.epoch}")
        log.require_resumable(session.received)
        self.epoch = session.epoch
        older = self.channel.link
        if older is not None:
            self._suspend()
            older.end(RecoverableError("EMC-1412", "a newer connection of this session is open"))

    def attach(self, link: Link, epoch: int, peer_received: int) -> None:
        """Go on over a new connection. Raises: RemoteProtocolError EMC-1415, EMC-1416 when it is too late."""
        if self.channel.closed.is_set():
            raise RemoteProtocolError("EMC-1415", "the session is over")
        if epoch != self.epoch:
            raise RemoteProtocolError("EMC-1416", f"attempt {epoch} comes after {self.epoch}")
        self.channel.attach(link, peer_received)
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None
            self._tell(live=True)

    def link_ended(self, link: Link) -> None:
        """A connection has ended: if it was lost, the node may come back."""
        if self.channel.link is not link:
            return
        if link.is_lost and self._limits.resume_s > 0:
            self._suspend()
        else:
            self.end(link.fault)

    def _suspend(self) -> None:
        self.channel.detach()
        resumed = self._resumed = trio.Event()
        self._nursery.start_soon(self._await_resume, resumed)
        self._tell(live=False)

    async def _await_resume(self, resumed: trio.Event) -> None:
        resume_s = self._limits.resume_s
        with trio.move_on_after(min(self._limits.give_up_s, resume_s)):
            await resumed.wait()
            return
        self.peer.give_up()
        with trio.move_on_after(max(0.0, resume_s - self._limits.give_up_s)):
            await resumed.wait()
            return
        self.end(RecoverableError("EMC-1412", f"the node did not come back within {resume_s} s"))

    def _tell(self, *, live: bool) -> None:
        on_live = self.peer.on_live
        if on_live is not None:
            self.peer.run(lambda: on_live(live))


def find_reason(exc: BaseException) -> RemoteProtocolError | None:
    """The EMC-14xx that a handler ended its session with, alone or in nurseries' groups of one."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    is_reason = isinstance(exc, RemoteProtocolError) and exc.code.startswith("EMC-14")
    return exc if is_reason and isinstance(exc, RemoteProtocolError) else None
