"""The node's end of a tunnel: dials out, proves its key, runs a handler for every call.

Invariants: nothing is signed for a hub that is not the pinned one; off loopback only wss, with the
chain and the name verified; redirects are not followed; a call's handler is cancelled when the hub
cancels it or the link ends; every call ends with exactly one END or ERROR.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.trio.client import ClientConnection

from emcd.clock import Clock, SystemClock
from emcd.errors import ConfigError, EmcdError, RecoverableError, RemoteProtocolError
from emcd.net.tls import client_context
from emcd.net.tunnel_link import (
    Link,
    TunnelLimits,
    close_code,
    close_websocket,
    fault_of,
    log_error,
)
from emcd.net.tunnel_wire import NodeWire, connect_wire, websocket_logger
from emcd.net.url_guard import Target, is_loopback, parse_target
from emcd.proto.eip712 import Domain
from emcd.proto.signing import Signer
from emcd.proto.tunnel import MESSAGE_BYTES
from emcd.proto.tunnel_auth import NodeHandshake
from emcd.proto.tunnel_node import NodeCall, NodeSession, NodeState
from emcd.types import Address, ParticipantRole

OnCall = Callable[["IncomingCall"], Awaitable[None]]
OnControl = Callable[[bytes], Awaitable[None]]


class TunnelLink:
    """A live tunnel, from the node. Attributes: `hub` as proven, `closed`, `leaving` when the hub
    said that no new calls come."""

    def __init__(self, link: Link, session: NodeSession, hub: Address) -> None:
        self.hub = hub
        self.closed = link.closed
        self.leaving = trio.Event()
        self._link = link
        self._session = session

    @property
    def in_flight(self) -> int:
        return len(self._session.calls)

    async def send_control(self, message: bytes) -> None:
        """Send a control message (256 KiB at most) once there is room.

        Raises: RecoverableError EMC-1412 when the tunnel is lost.
        """
        await self._link.room()
        self._session.send_control(message)
        self._link.flush()


class IncomingCall:
    """One call of the hub; its body is whole. One writer at a time."""

    __slots__ = ("_call", "_credit", "_link", "_session", "body", "meta", "scope")

    def __init__(self, link: Link, session: NodeSession, call: NodeCall) -> None:
        self.meta = call.meta
        self.body = session.take_body(call)
        self.scope = trio.CancelScope()
        self._link = link
        self._session = session
        self._call = call
        self._credit: trio.Event | None = None
        call.notify = self._changed

    async def start(self, head: bytes) -> None:
        """Send the answer's head (64 KiB at most)."""
        await self._link.room()
        self._session.start(self._call, head)
        self._link.flush()

    async def send(self, chunk: bytes) -> None:
        """Send a piece of the answer; waits while the hub's reader of this call is behind.

        Cancellation: a part of it may have been sent.
        """
        await self._link.room()
        left = memoryview(chunk)
        while left:
            left = left[self._session.send_piece(self._call, left) :]
            self._link.flush()
            if left:
                self._credit = trio.Event()
                await self._credit.wait()

    async def finish(self, meta: bytes) -> None:
        """Send the call's last word (64 KiB at most); nothing may follow."""
        await self._link.room()
        self._session.finish(self._call, meta)
        self._link.flush()

    async def fail(self, code: str, detail: str) -> None:
        """End the call with an error that the hub's caller gets as RecoverableError(code, detail)."""
        self._session.fail(self._call, code, detail)
        self._link.flush()

    def _changed(self) -> None:
        if self._call.cancelled:
            self.scope.cancel()
        if self._credit is not None:
            self._credit.set()


async def run_tunnel(
    url: str,
    *,
    key: Signer,
    domain: Domain,
    hub_address: Address | None,
    on_call: OnCall,
    on_control: OnControl,
    role: ParticipantRole = ParticipantRole.COMPUTE,
    ssl_context: ssl.SSLContext | None = None,
    limits: TunnelLimits | None = None,
    drain: trio.Event | None = None,
    clock: Clock | None = None,
    on_error: Callable[[BaseException], None] = log_error,
    task_status: trio.TaskStatus[TunnelLink] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Open one tunnel to a hub and serve its calls until it ends. Who wants it back calls again.

    Returns when the hub took its leave, or `drain` was set and the calls in flight are done.

    Args:
        hub_address: who the hub must prove to be; None only on loopback.
        on_call: run in a task of its own for each call. What it lets out becomes the call's
            ERROR: an EmcdError with its code, anything else as EMC-1427.
        on_control: run for one control message after the other.
        drain: set it to take no new calls, finish those in flight, and close.
        task_status: started with the TunnelLink once both sides are proven.

    Raises: ConfigError EMC-1320, EMC-1414; RecoverableError EMC-1401 no handshake in time, 1409 the
        hub is full or leaving, 1411 no connection, 1412 lost; RemoteProtocolError EMC-1402 to 1408
        refused, 1410 replaced by a newer tunnel, 1420 to 1423 a side broke the protocol.
    Cancellation: handlers are cancelled, the hub learns that the tunnel is gone.
    """
    target = _require_target(url, hub_address)
    limits = limits or TunnelLimits()
    try:
        async with connect_wire(
            url,
            ssl=(ssl_context or client_context()) if target.tls else None,
            compression=None,
            proxy=None,
            user_agent_header=None,
            open_timeout=limits.handshake_s,
            ping_interval=limits.ping_interval_s,
            ping_timeout=limits.ping_timeout_s,
            close_timeout=limits.close_s,
            max_size=MESSAGE_BYTES,
            logger=websocket_logger,
            create_connection=NodeWire,
        ) as websocket:
            handshake = NodeHandshake(key, domain, secrets.token_bytes(32), role, hub_address)
            hub = await _prove(websocket, handshake, clock or SystemClock(), limits)
            assert isinstance(websocket, NodeWire)
            session = NodeSession(limits.open_calls, limits.body_bytes, limits.bodies_bytes)
            link = Link(websocket, session, limits)
            tunnel = TunnelLink(link, session, hub)
            task_status.started(tunnel)
            await _Node(tunnel, link, session, on_call, on_control, on_error).run(drain, limits.drain_s)
            await link.say_goodbye()
    except InvalidStatus as exc:
        raise _refused(exc.response.status_code) from exc
    except (OSError, WebSocketException, trio.BrokenResourceError) as exc:
        raise RecoverableError("EMC-1411", f"{target.shown}: {exc.__cause__ or exc}") from exc
    if link.fault is not None:
        raise link.fault


def _require_target(url: str, hub_address: Address | None) -> Target:
    target = parse_target(url, ("ws", "wss"))
    if not is_loopback(target.host):
        if not target.tls:
            raise ConfigError("EMC-1414", f"{target.shown} is neither wss nor on loopback")
        if hub_address is None:
            raise ConfigError("EMC-1414", f"no hub address is pinned for {target.shown}")
    return target


def _refused(status: int) -> EmcdError:
    if status == 429:
        return RemoteProtocolError("EMC-1408", "the hub does not listen to this address for now", 429)
    if status == 503:
        return RecoverableError("EMC-1409", "the hub is full or leaving")
    return RecoverableError("EMC-1411", f"no tunnel here: HTTP status {status}")


async def _prove(
    websocket: ClientConnection, handshake: NodeHandshake, clock: Clock, limits: TunnelLimits
) -> Address:
    """Run the handshake; closes the connection with the reason when it fails."""
    try:
        with trio.move_on_after(limits.handshake_s):
            proof = handshake.prove(_binary(await websocket.recv()), clock.now_ms())
            await websocket.send(proof)
            return handshake.check(_binary(await websocket.recv()), clock.now_ms())
    except ConnectionClosed as exc:
        raise fault_of(exc) or RecoverableError("EMC-1412", "closed during the handshake") from exc
    except RemoteProtocolError as exc:
        await close_websocket(websocket, *close_code(exc), limits.close_s)
        raise
    raise RecoverableError("EMC-1401", f"no handshake within {limits.handshake_s} s")


def _binary(message: bytes | str) -> bytes:
    if isinstance(message, str):
        raise RemoteProtocolError("EMC-1402", "a text message")
    return message


@dataclass
class _Node:
    """The tasks of one tunnel."""

    tunnel: TunnelLink
    link: Link
    session: NodeSession
    on_call: OnCall
    on_control: OnControl
    on_error: Callable[[BaseException], None]

    async def run(self, drain: trio.Event | None, drain_s: float) -> None:
        self._control = trio.Event()
        self._idle = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                await self._run_in(nursery, drain, drain_s)
        finally:
            self.link.end(None)

    async def _run_in(self, nursery: trio.Nursery, drain: trio.Event | None, drain_s: float) -> None:
        def handle(message: bytes) -> None:
            self._handle(message, nursery)

        nursery.start_soon(self.link.write)
        nursery.start_soon(self.link.read, handle)
        nursery.start_soon(self._run_controls)
        if drain is not None:
            nursery.start_soon(self._leave, drain, drain_s)
        await self.link.closed.wait()
        nursery.cancel_scope.cancel()

    def _handle(self, message: bytes, nursery: trio.Nursery) -> None:
        session = self.session
        session.receive(message)
        while session.ready:
            call = session.ready.popleft()
            if call.state is not NodeState.CLOSED:
                nursery.start_soon(self._run_call, call)
        if session.controls:
            self._control.set()
        if session.peer_leaving:
            self.tunnel.leaving.set()

    async def _run_call(self, call: NodeCall) -> None:
        incoming = IncomingCall(self.link, self.session, call)
        with incoming.scope:
            try:
                if not call.cancelled:
                    await self.on_call(incoming)
                    if call.state is not NodeState.CLOSED:
                        self.session.fail(call, "EMC-1427", "the handler gave no end")
                        self.on_error(RuntimeError(f"call {call.number}: the handler gave no end"))
            except EmcdError as exc:
                self.session.fail(call, exc.code, exc.detail)
            except Exception as exc:  # noqa: BLE001 -- one call's handler is not the others'
                self.session.fail(call, "EMC-1427", "internal error")
                self.on_error(exc)
        self.link.flush()
        if not self.session.calls:
            self._idle.set()

    async def _run_controls(self) -> None:
        while True:
            while not self.session.controls:
                self._control = trio.Event()
                await self._control.wait()
            try:
                await self.on_control(self.session.take_control())
            except Exception as exc:  # noqa: BLE001 -- one message's handler is not the next one's
                self.on_error(exc)

    async def _leave(self, drain: trio.Event, drain_s: float) -> None:
        await drain.wait()
        self.session.leave()
        self.link.flush()
        with trio.move_on_after(drain_s):
            while self.session.calls:
                self._idle = trio.Event()
                await self._idle.wait()
            await self.link.flushed()
        self.link.end(None)
