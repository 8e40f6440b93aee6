"""The hub's listener for tunnels: accepts, authenticates, keeps one session a node.

A session (`Tunnel`) outlives the connections that it has, one after the other. Invariants: nothing
of a node is looked at before it proved its key and was authorized; a handshake has a deadline, and a
source that fails too often is refused before it starts; the newer session of a node replaces the
older, whose handler has ended before the newer one's begins; a session is resumed only by the key
that began it, by a later attempt than its last, and the newer connection replaces the older.
"""

from __future__ import annotations

import errno
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from emcd.clock import Clock, SystemClock
from emcd.errors import ConfigError, RecoverableError, RemoteProtocolError
from emcd.net.ratelimit import FailureLimiter
from emcd.net.tunnel_channel import Channel, Flusher
from emcd.net.tunnel_link import Link, TunnelLimits, log_error
from emcd.net.tunnel_peer import TunnelPeer
from emcd.net.tunnel_session import Tunnel
from emcd.net.tunnel_socket import PlainSocket, TlsSocket, TunnelSocket
from emcd.net.tunnel_websocket import UpgradeError, accept_upgrade
from emcd.net.url_guard import is_loopback
from emcd.proto.eip712 import Domain
from emcd.proto.signing import Signer
from emcd.proto.tunnel_auth import FRESH, SESSION_BYTES, HubHandshake
from emcd.proto.tunnel_hub import HubSession
from emcd.types import Address, ParticipantRole

OnPeer = Callable[[TunnelPeer], Awaitable[None]]
Authorize = Callable[[Address, ParticipantRole], Awaitable[bool]]

_COMPUTE = frozenset({ParticipantRole.COMPUTE})
_NO_FILES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
_NO_FILES_S = 0.25
_REPLACE_S = 5.0
_SWEEP_PARTS = 8
_PROVEN = frozenset(("EMC-1407", "EMC-1409", "EMC-1415", "EMC-1416"))
"""Refusals of who has proved its key: they may try as often as they like."""


async def serve_tunnels(
    *,
    host: str,
    port: int,
    key: Signer,
    domain: Domain,
    on_peer: OnPeer,
    authorize: Authorize,
    roles: frozenset[ParticipantRole] = _COMPUTE,
    ssl_context: ssl.SSLContext | None = None,
    limits: TunnelLimits | None = None,
    drain: trio.Event | None = None,
    clock: Clock | None = None,
    on_error: Callable[[BaseException], None] = log_error,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept tunnels of nodes until drained or cancelled.

    Args:
        on_peer: runs as long as the session does: it is cancelled when the session is over or
            replaced, and the session ends when it returns. A RemoteProtocolError EMC-14xx out of it
            is what the node is told.
        authorize: asked with the proven address and role, within the handshake's deadline.
        drain: set it to accept no more, tell the nodes, and return when the open calls are done or
            `drain_s` is over.
        task_status: started with the port once it listens.

    Raises: ConfigError EMC-1414 without TLS on an address that is not loopback; OSError when it
        cannot listen.
    Cancellation: all tunnels are closed.
    """
    if ssl_context is None and not is_loopback(host):
        raise ConfigError("EMC-1414", f"tunnels on {host} without TLS")
    limits = limits or TunnelLimits()
    listeners = await trio.open_tcp_listeners(port, host=host)
    for extra in listeners[1:]:
        await extra.aclose()
    async with listeners[0] as listener, trio.open_nursery() as nursery:
        hub = _Hub(
            key=key,
            domain=domain,
            on_peer=on_peer,
            authorize=authorize,
            roles=roles,
            ssl_context=ssl_context,
            limits=limits,
            clock=clock or SystemClock(),
            on_error=on_error,
            nursery=nursery,
        )
        nursery.start_soon(hub.flusher.run)
        nursery.start_soon(hub.sweep)
        nursery.start_soon(hub.accept, listener)
        task_status.started(listener.socket.getsockname()[1])
        if drain is None:
            await trio.sleep_forever()
        else:
            await drain.wait()
        await hub.leave()
        nursery.cancel_scope.cancel()


@dataclass
class _Hub:
    """What the connections of one listener share."""

    key: Signer
    domain: Domain
    on_peer: OnPeer
    authorize: Authorize
    roles: frozenset[ParticipantRole]
    ssl_context: ssl.SSLContext | None
    limits: TunnelLimits
    clock: Clock
    on_error: Callable[[BaseException], None]
    nursery: trio.Nursery
    tunnels: dict[Address, Tunnel] = field(default_factory=dict)
    leaving: bool = False
    failures: FailureLimiter = field(default_factory=FailureLimiter)
    flusher: Flusher = field(default_factory=Flusher)

    async def accept(self, listener: trio.SocketListener) -> None:
        """Take connections, as many at a time as the limit allows; more wait in the backlog."""
        room = trio.Semaphore(self.limits.connections)
        while True:
            await room.acquire()
            try:
                stream = await listener.accept()
            except OSError as exc:
                room.release()
                if exc.errno not in _NO_FILES:
                    raise
                self.on_error(exc)
                await trio.sleep(_NO_FILES_S)
            else:
                sock = socket.socket(fileno=stream.socket.detach())
                self.nursery.start_soon(self._serve, sock, room)

    async def sweep(self) -> None:
        """Look after all links: one task, however many there are.

        A part of them at a time: nodes that all came at once are not all pinged, and heard, at once.
        """
        while True:
            tunnels = list(self.tunnels.values())
            for part in range(_SWEEP_PARTS):
                await trio.sleep(self.limits.sweep_s / _SWEEP_PARTS)
                now = trio.current_time()
                for tunnel in tunnels[part::_SWEEP_PARTS]:
                    tunnel.channel.tick(now)

    async def leave(self) -> None:
        """Let the open calls end, then end the sessions."""
        self.leaving = True
        async with trio.open_nursery() as nursery:
            for tunnel in list(self.tunnels.values()):
                nursery.start_soon(tunnel.leave, self.limits.drain_s)

    async def _serve(self, sock: socket.socket, room: trio.Semaphore) -> None:
        """One connection, from its handshake to its end."""
        try:
            link = await self._upgrade(sock)
            if link is not None:
                tunnel = await self._authenticate(link)
                if tunnel is None:
                    await link.say_goodbye()
                else:
                    ended = partial(tunnel.link_ended, link)
                    await link.run(tunnel.peer.handle, tunnel.channel.has_drained, ended)
        finally:
            room.release()

    async def _upgrade(self, sock: socket.socket) -> Link | None:
        """TLS and WebSocket; None when there is nobody to tell what went wrong."""
        stream: TunnelSocket = PlainSocket(sock)
        link: Link | None = None
        try:
            with trio.fail_after(self.limits.handshake_s):
                if self.ssl_context is not None:
                    stream = tls = TlsSocket(sock, self.ssl_context, server_side=True)
                    await tls.shake_hands()
                rest = await accept_upgrade(stream, self._screen(stream.source))
            link = Link(stream, rest, self.limits, self.nursery, is_client=False)
        except (OSError, trio.TooSlowError, UpgradeError, RemoteProtocolError):
            return None
        finally:
            if link is None:
                stream.close()
        return link

    def _screen(self, source: str) -> tuple[int, str] | None:
        """Refuse a source that failed too often before its upgrade."""
        if self.failures.check_allowed(source, trio.current_time()):
            return None
        return 429, "EMC-1408\n"

    async def _authenticate(self, link: Link) -> Tunnel | None:
        """The session that the connection belongs to from now on; None when it is refused."""
        try:
            with trio.move_on_after(self.limits.handshake_s):
                return await self._prove(link)
            raise RemoteProtocolError("EMC-1401", f"no handshake within {self.limits.handshake_s} s", 408)
        except RemoteProtocolError as exc:
            if exc.code not in _PROVEN:
                self.failures.add_failure(link.source, trio.current_time())
            link.end(exc)
        except RecoverableError as exc:
            link.end(exc)
        except OSError as exc:
            link.end(RecoverableError("EMC-1412", str(exc)))
        except BaseException:
            link.end(None)
            await link.say_goodbye()
            raise
        return None

    async def _prove(self, link: Link) -> Tunnel:
        handshake = HubHandshake(self.key, self.domain, secrets.token_bytes(32))
        await link.say(handshake.hello())
        address, role = handshake.check(await link.hear(), self.clock.now_ms(), self.roles)
        try:
            allowed = await self.authorize(address, role)
        except Exception as exc:  # noqa: BLE001 -- whatever it was, the answer is no
            self.on_error(exc)
            allowed = False
        if not allowed:
            raise RemoteProtocolError("EMC-1407", f"{address} is not authorized", 403)
        resume = handshake.resume
        if resume == FRESH:
            if self.leaving:
                raise RemoteProtocolError("EMC-1409", "the hub is leaving")
            tunnel = self._make_tunnel(address, role)
            await link.say(handshake.welcome(self.clock.now_ms(), tunnel.name))
            await self._admit(tunnel)
        else:
            found = self.tunnels.get(address)
            if found is None or found.peer.role is not role:
                raise RemoteProtocolError("EMC-1415", "this session is not known here")
            tunnel = found
            tunnel.begin_epoch(resume)  # from now on nothing more comes, so the count in the welcome stays
            received = tunnel.channel.log.received
            await link.say(handshake.welcome(self.clock.now_ms(), tunnel.name, received))
        tunnel.attach(link, resume.epoch, resume.received)
        return tunnel

    def _make_tunnel(self, address: Address, role: ParticipantRole) -> Tunnel:
        session = HubSession(self.limits.open_calls)
        channel = Channel(session, self.limits, self.flusher)
        peer = TunnelPeer(channel, session, address, role, self.on_error)
        return Tunnel(secrets.token_bytes(SESSION_BYTES), peer, channel, self.limits, self.nursery)

    async def _admit(self, tunnel: Tunnel) -> None:
        """Take the place of the node's older session, and start the handler.

        Raises: RemoteProtocolError EMC-1409.
        """
        address = tunnel.peer.address
        while (older := self.tunnels.get(address)) is not None:
            older.end(RemoteProtocolError("EMC-1410", "a newer tunnel of this node is open"))
            with trio.move_on_after(_REPLACE_S) as scope:
                await older.finished.wait()
            if scope.cancelled_caught:
                raise RemoteProtocolError("EMC-1409", "the older tunnel does not end")
        if self.leaving:
            raise RemoteProtocolError("EMC-1409", "the hub is leaving")
        self.tunnels[address] = tunnel
        self.nursery.start_soon(self._run_tunnel, tunnel)

    async def _run_tunnel(self, tunnel: Tunnel) -> None:
        try:
            await tunnel.run(self.on_peer, self.on_error)
        finally:
            if self.tunnels.get(tunnel.peer.address) is tunnel:
                del self.tunnels[tunnel.peer.address]
