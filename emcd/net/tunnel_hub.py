"""The hub's listener for tunnels: accepts, authenticates, keeps one tunnel a node.

Invariants: nothing of a node is looked at before it proved its key and was authorized; a handshake
has a deadline, and a source that fails too often is refused before it starts; the newer tunnel of a
node replaces the older, whose handler has ended before the newer one's begins.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.trio.server import ServerConnection, serve

from emcd.clock import Clock, SystemClock
from emcd.errors import ConfigError, EmcdError, RemoteProtocolError
from emcd.net.ratelimit import FailureLimiter
from emcd.net.tunnel_link import Link, TunnelLimits, close_code, close_websocket, log_error
from emcd.net.tunnel_peer import TunnelPeer
from emcd.net.tunnel_wire import HubWire, websocket_logger
from emcd.net.url_guard import is_loopback
from emcd.proto.eip712 import Domain
from emcd.proto.signing import Signer
from emcd.proto.tunnel import MESSAGE_BYTES
from emcd.proto.tunnel_auth import HubHandshake
from emcd.proto.tunnel_hub import HubSession
from emcd.types import Address, ParticipantRole

OnPeer = Callable[[TunnelPeer], Awaitable[None]]
Authorize = Callable[[Address, ParticipantRole], Awaitable[bool]]

_COMPUTE = frozenset({ParticipantRole.COMPUTE})
_FULL_S = 0.25
_REPLACE_S = 5.0


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
        on_peer: runs as long as the tunnel does: it is cancelled when the tunnel is lost or
            replaced, and the tunnel is closed when it returns.
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
    hub = _Hub(
        key=key,
        domain=domain,
        on_peer=on_peer,
        authorize=authorize,
        roles=roles,
        limits=limits,
        clock=clock or SystemClock(),
        on_error=on_error,
    )
    listeners = await trio.open_tcp_listeners(port, host=host)
    for extra in listeners[1:]:
        await extra.aclose()
    bounded = _BoundedListener(listeners[0], limits.connections)
    async with bounded, trio.open_nursery() as nursery:
        serving = await nursery.start(_start_serving, hub, bounded, ssl_context)
        task_status.started(listeners[0].socket.getsockname()[1])
        if drain is None:
            await trio.sleep_forever()
        else:
            await drain.wait()
        await hub.leave()
        serving.cancel()
        nursery.cancel_scope.cancel()


async def _start_serving(
    hub: _Hub,
    listener: _BoundedListener,
    ssl_context: ssl.SSLContext | None,
    task_status: trio.TaskStatus[trio.CancelScope],
) -> None:
    limits = hub.limits
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await serve(
            hub.serve,
            listeners=[listener],  # type: ignore[list-item]
            ssl=ssl_context,
            origins=[None],  # a browser's page has no business here
            compression=None,
            process_request=hub.screen,
            server_header=None,
            open_timeout=limits.handshake_s,
            ping_interval=limits.ping_interval_s,
            ping_timeout=limits.ping_timeout_s,
            close_timeout=limits.close_s,
            max_size=MESSAGE_BYTES,
            logger=websocket_logger,
            create_connection=HubWire,
        )


class _BoundedListener(trio.abc.Listener[trio.SocketStream]):
    """A listener that lets only so many streams be open at once; more wait in the backlog."""

    def __init__(self, listener: trio.SocketListener, limit: int) -> None:
        self.socket = listener.socket
        self._listener = listener
        self._limit = limit
        self._streams: list[trio.SocketStream] = []

    async def accept(self) -> trio.SocketStream:
        while len(self._streams) >= self._limit:
            self._streams = [s for s in self._streams if s.socket.fileno() >= 0]
            if len(self._streams) >= self._limit:
                await trio.sleep(_FULL_S)
        stream = await self._listener.accept()
        self._streams.append(stream)
        return stream

    async def aclose(self) -> None:
        await self._listener.aclose()


@dataclass
class _Hub:
    """What the connections of one listener share."""

    key: Signer
    domain: Domain
    on_peer: OnPeer
    authorize: Authorize
    roles: frozenset[ParticipantRole]
    limits: TunnelLimits
    clock: Clock
    on_error: Callable[[BaseException], None]
    tunnels: dict[Address, _Tunnel] = field(default_factory=dict)
    leaving: bool = False
    failures: FailureLimiter = field(default_factory=FailureLimiter)

    def screen(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse before the upgrade: a source that failed too often, and all once the hub leaves."""
        if self.leaving:
            return connection.respond(503, "EMC-1409\n")
        if not self.failures.check_allowed(_source(connection), trio.current_time()):
            return connection.respond(429, "EMC-1408\n")
        return None

    async def serve(self, websocket: ServerConnection) -> None:
        """One connection, from its handshake to its end."""
        try:
            address, role = await self._authenticate(websocket)
        except RemoteProtocolError as exc:
            if exc.code != "EMC-1407":  # that one proved its key
                self.failures.add_failure(_source(websocket), trio.current_time())
            await close_websocket(websocket, *close_code(exc), self.limits.close_s)
            return
        except ConnectionClosed:
            return
        assert isinstance(websocket, HubWire)
        session = HubSession(self.limits.open_calls)
        link = Link(websocket, session, self.limits)
        tunnel = _Tunnel(link, TunnelPeer(link, session, address, role))
        if await self._admit(tunnel):
            try:
                await self._run(tunnel)
            finally:
                if self.tunnels.get(address) is tunnel:
                    del self.tunnels[address]
                tunnel.finished.set()
        await link.say_goodbye()
        tunnel.gone.set()

    async def _authenticate(self, websocket: ServerConnection) -> tuple[Address, ParticipantRole]:
        with trio.move_on_after(self.limits.handshake_s):
            handshake = HubHandshake(self.key, self.domain, secrets.token_bytes(32))
            await websocket.send(handshake.hello())
            proof = await websocket.recv()
            if isinstance(proof, str):
                raise RemoteProtocolError("EMC-1402", "a text message")
            address, role = handshake.check(proof, self.clock.now_ms(), self.roles)
            try:
                allowed = await self.authorize(address, role)
            except Exception as exc:  # noqa: BLE001 -- whatever it was, the answer is no
                self.on_error(exc)
                allowed = False
            if not allowed:
                raise RemoteProtocolError("EMC-1407", f"{address} is not authorized", 403)
            await websocket.send(handshake.welcome(self.clock.now_ms()))
            return address, role
        raise RemoteProtocolError("EMC-1401", f"no handshake within {self.limits.handshake_s} s", 408)

    async def _admit(self, tunnel: _Tunnel) -> bool:
        """Take the place of the node's older tunnel; False when this one was replaced meanwhile."""
        address = tunnel.peer.address
        while (older := self.tunnels.get(address)) is not None:
            older.cut(RemoteProtocolError("EMC-1410", "a newer tunnel of this node is open"))
            with trio.move_on_after(_REPLACE_S) as scope:
                await older.finished.wait()
            if scope.cancelled_caught:
                tunnel.link.end(RemoteProtocolError("EMC-1409", "the older tunnel does not end"))
                return False
        if self.leaving:
            tunnel.link.end(RemoteProtocolError("EMC-1409", "the hub is leaving"))
            return False
        self.tunnels[address] = tunnel
        return True

    async def _run(self, tunnel: _Tunnel) -> None:
        peer, link = tunnel.peer, tunnel.link

        async def read() -> None:
            await link.read(peer.handle)
            tunnel.cut(None)

        async def write() -> None:
            await link.write()
            tunnel.cut(None)

        try:
            with tunnel.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read)
                    nursery.start_soon(write)
                    try:
                        await self.on_peer(peer)
                        await link.flushed()
                    except Exception as exc:  # noqa: BLE001 -- one node's handler is not the others'
                        self.on_error(exc)
                    nursery.cancel_scope.cancel()
        finally:
            tunnel.cut(None)

    async def leave(self) -> None:
        """Let the open calls end, then end the tunnels."""
        self.leaving = True
        async with trio.open_nursery() as nursery:
            for tunnel in list(self.tunnels.values()):
                nursery.start_soon(tunnel.leave, self.limits.drain_s)


class _Tunnel:
    """A peer, its link and the scope that its handler runs in.

    `finished` when the handler has ended, `gone` when the connection is closed too.
    """

    def __init__(self, link: Link, peer: TunnelPeer) -> None:
        self.link = link
        self.peer = peer
        self.scope = trio.CancelScope()
        self.finished = trio.Event()
        self.gone = trio.Event()

    def cut(self, fault: EmcdError | None) -> None:
        """End it now; all that wait on it are told."""
        self.link.end(fault)
        self.peer.wake_all()
        self.scope.cancel()

    async def leave(self, drain_s: float) -> None:
        await self.peer.leave(drain_s)
        self.cut(None)
        with trio.move_on_after(_REPLACE_S):
            await self.gone.wait()


def _source(connection: ServerConnection) -> str:
    try:
        return str(connection.remote_address[0])
    except (OSError, IndexError):
        return "unknown"
