"""The node's end of a tunnel: dials out, runs a handler for every call, comes back after a loss.

Invariants: a call's handler is cancelled when the hub cancels it or the session is over, and not
when the connection is lost: what it sends meanwhile waits, and goes out once the session goes on
over another; every call ends with exactly one END or ERROR.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from emcd.clock import Clock, SystemClock
from emcd.errors import EmcdError, RecoverableError
from emcd.net.tunnel_channel import Channel, Flusher
from emcd.net.tunnel_dial import Dialer, require_target
from emcd.net.tunnel_incoming import IncomingCall, TunnelLink
from emcd.net.tunnel_link import Link, TunnelLimits, log_error
from emcd.proto.eip712 import Domain
from emcd.proto.signing import Signer
from emcd.proto.tunnel_auth import FRESH, Resume
from emcd.proto.tunnel_node import NodeCall, NodeSession, NodeState
from emcd.proto.tunnel_resume import HEADER
from emcd.types import Address, ParticipantRole

OnCall = Callable[[IncomingCall], Awaitable[None]]
OnControl = Callable[[bytes], Awaitable[None]]

_REDIAL_S = 0.2
_REDIAL_MAX_S = 1.0
_jitter = random.SystemRandom()


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
    """Open one session with a hub and serve its calls until it ends. Who wants it back calls again.

    A connection that is lost is dialled again for `limits.resume_s`, and the session goes on.
    Returns when the hub took its leave, or `drain` was set and the calls in flight are done.

    Args:
        hub_address: who the hub must prove to be; None only on loopback.
        on_call: run in a task of its own for each call. What it lets out becomes the call's
            ERROR: an EmcdError with its code, anything else as EMC-1427.
        on_control: run for one control message after the other.
        drain: set it to take no new calls, finish those in flight, and close.
        task_status: started with the TunnelLink once both sides are proven.

    Raises: ConfigError EMC-1320, EMC-1414; RecoverableError EMC-1401 no handshake in time, 1409 the
        hub is full or leaving, 1411 no connection, 1412 lost and not resumed in time, 1415 the hub
        does not know the session any more; RemoteProtocolError EMC-1402 to 1408 refused, 1410
        replaced by a newer tunnel, 1416 to 1423 a side broke the protocol.
    Cancellation: handlers are cancelled, the hub learns that the tunnel is gone.
    """
    limits = limits or TunnelLimits()
    target = require_target(url, hub_address)
    dialer = Dialer(url, target, key, domain, hub_address, role, ssl_context, limits, clock or SystemClock())
    session = NodeSession(limits.open_calls, limits.body_bytes, limits.bodies_bytes)
    flusher = Flusher()
    node = _Node(
        dialer, session, Channel(session, limits, flusher), flusher, limits, on_call, on_control, on_error
    )
    try:
        async with trio.open_nursery() as nursery:
            node.nursery = nursery
            await node.serve(drain, task_status)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _only(group) from None
    if node.channel.fault is not None:
        raise node.channel.fault


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a nursery's group of one stands for: nothing but the dialling lets an EmcdError out."""
    if len(group.exceptions) == 1 and isinstance(group.exceptions[0], EmcdError):
        return group.exceptions[0]
    return group


@dataclass
class _Node:
    """The tasks of one session."""

    dialer: Dialer
    session: NodeSession
    channel: Channel
    flusher: Flusher
    limits: TunnelLimits
    on_call: OnCall
    on_control: OnControl
    on_error: Callable[[BaseException], None]
    nursery: trio.Nursery = field(init=False)
    tunnel: TunnelLink = field(init=False)
    name: bytes = b""
    epoch: int = 0

    async def serve(self, drain: trio.Event | None, task_status: trio.TaskStatus[TunnelLink]) -> None:
        """The session's life. Raises: what the first dialling raises."""
        self._control = trio.Event()
        self._idle = trio.Event()
        self._over = trio.CancelScope()
        link, handshake, hub = await self.dialer.dial(FRESH, self.nursery)
        self.name = handshake.session
        self.channel.attach(link, 0)
        self.tunnel = TunnelLink(self.channel, self.session, hub)
        for task in (self.flusher.run, self._sweep, self._run_controls):
            self.nursery.start_soon(task)
        if drain is not None:
            self.nursery.start_soon(self._leave, drain)
        task_status.started(self.tunnel)
        try:
            with self._over:
                next_link: Link | None = link
                while next_link is not None:
                    next_link = await self._live_on(next_link)
        finally:
            self.channel.close(None)

    async def _live_on(self, link: Link) -> Link | None:
        """Serve over one connection, and find the next. Returns: None when the session is over."""

        def ended() -> None:
            self.channel.detach()
            if not (link.is_lost and self.limits.resume_s > 0):
                self.channel.close(link.fault)

        await link.run(self._handle, self.channel.has_drained, ended)
        if self.channel.closed.is_set():
            return None
        with trio.move_on_after(self.limits.resume_s):
            return await self._redial()
        assert link.fault is not None
        self.channel.close(link.fault)
        return None

    async def _redial(self) -> Link | None:
        """Connect again, until it works or is refused. Returns: None when it is refused."""
        pause_s = _REDIAL_S
        while True:
            await trio.sleep(_jitter.uniform(0, pause_s))
            pause_s = min(2 * pause_s, _REDIAL_MAX_S)
            self.epoch += 1
            resume = Resume(self.name, self.epoch, self.channel.log.received)
            try:
                link, handshake, _ = await self.dialer.dial(resume, self.nursery)
                self.channel.attach(link, handshake.received)
                return link
            except RecoverableError as exc:
                if exc.code == "EMC-1415":
                    self.channel.close(exc)
                    return None
            except EmcdError as exc:
                self.channel.close(exc)
                return None

    def _handle(self, message: bytes) -> None:
        session = self.session
        if not self.channel.received(message):
            return
        session.receive(message, HEADER.size)
        while session.ready:
            call = session.ready.popleft()
            if call.state is not NodeState.CLOSED:
                self.nursery.start_soon(self._run_call, call)
        if session.controls:
            self._control.set()
        if session.peer_leaving:
            self.tunnel.leaving.set()
        self.channel.flush()

    async def _run_call(self, call: NodeCall) -> None:
        incoming = IncomingCall(self.channel, self.session, call)
        with incoming.scope:
            try:
                if not call.cancelled:
                    await self.on_call(incoming)
            except EmcdError as exc:
                self.session.fail(call, exc.code, exc.detail)
            except Exception as exc:  # noqa: BLE001 -- one call's handler is not the others'
                self.session.fail(call, "EMC-1427", "internal error")
                self.on_error(exc)
        if call.cancelled:
            self.session.fail(call, "EMC-1426", "cancelled by the hub")
        elif call.state is not NodeState.CLOSED:
            self.session.fail(call, "EMC-1427", "the handler gave no end")
            self.on_error(RuntimeError(f"call {call.number}: the handler gave no end"))
        self.channel.flush()
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

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(self.limits.sweep_s)
            self.channel.tick(trio.current_time())

    async def _leave(self, drain: trio.Event) -> None:
        await drain.wait()
        self.session.leave()
        self.channel.flush()
        with trio.move_on_after(self.limits.drain_s):
            while self.session.calls:
                self._idle = trio.Event()
                await self._idle.wait()
            await self.channel.flushed(acknowledged=True)
        link = self.channel.link
        self.channel.close(None)
        if link is not None:
            link.end(None)
        self._over.cancel()
