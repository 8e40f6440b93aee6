"""A node as the hub sees it through its tunnel: calls to it, control messages both ways.

Two ways to call: `submit` tells an answer to a callback in the reader's own task, so that a plain
call costs no task switch; `call` is the same for coroutines. Invariants: a callback that fails harms
nobody else; every submitted call's `on_end` is called exactly once, unless it is dropped; while the
connection is lost no call is opened, and one that is not patient is given up soon; a reader that is
slow holds up only its own call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import trio

from emcd.errors import RecoverableError
from emcd.net.tunnel_call import OutgoingCall
from emcd.net.tunnel_channel import Channel
from emcd.proto.tunnel_hub import HubCall, HubSession, HubState
from emcd.proto.tunnel_resume import HEADER
from emcd.types import Address, ParticipantRole

OnCall = Callable[[HubCall], None]
_IS_ENDED = HubState.ENDED


class TunnelPeer:
    """One authenticated session.

    Attributes:
        address, role: as proven.
        closed: set when the session is over.
        on_live: called with False when the connection is lost, with True when the session goes on
            over another. Not at its end.
        on_orphan: called with a call whose END came when its owner had gone.
    """

    def __init__(
        self,
        channel: Channel,
        session: HubSession,
        address: Address,
        role: ParticipantRole,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.address = address
        self.role = role
        self.closed = channel.closed
        self.on_live: Callable[[bool], None] | None = None
        self.on_orphan: OnCall | None = None
        self._channel = channel
        self._session = session
        self._on_error = on_error
        self._control: trio.Event | None = None
        self._idle: trio.Event | None = None

    @property
    def live(self) -> bool:
        """Whether there is a connection now."""
        return self._channel.link is not None

    @property
    def leaving(self) -> bool:
        """Whether no new call can ever be opened here."""
        return self._session.leaving or self._session.peer_leaving or self.closed.is_set()

    @property
    def open_calls(self) -> int:
        """Calls that have not ended, those cancelled and not yet ended by the node included."""
        return len(self._session.calls)

    # Calls.

    def submit(
        self, meta: bytes, body: bytes, on_end: OnCall, *, max_bytes: int = 0, on_data: OnCall | None = None
    ) -> HubCall:
        """Open a call.

        Args:
            on_end: called once, when the call has ended or failed: with `call.error` set, or with
                `head`, `end` and what was not taken yet. It must not wait.
            max_bytes: of the whole answer's body, which `call.body()` has then; for calls without
                `on_data`.
            on_data: for streams: called after each message that brought a head or data, to `take` it.

        Raises: RecoverableError EMC-1412 lost, EMC-1413 the connection is lost for now, EMC-1424 too
            many calls, EMC-1425 leaving; LocalProtocolError EMC-1423.
        """
        channel = self._channel
        if channel.link is None:
            if channel.closed.is_set():
                raise channel.lost()
            raise RecoverableError("EMC-1413", "no new calls until it is back")
        call = self._session.open(meta, body, on_end, on_data, max_bytes)
        channel.flush()
        return call

    def take(self, call: HubCall) -> bytes:
        """All data of a streamed call that is there, b"" for none; the node may send as much again."""
        data = self._session.take(call)
        self._channel.flush()
        return data

    def cancel(self, call: HubCall) -> None:
        """Stop a call at the node. What is under way still comes, until the node's END or ERROR."""
        self._session.cancel(call)
        self._channel.flush()

    def drop(self, call: HubCall) -> None:
        """Nobody waits for the call: it is cancelled, and `on_end` is not called. A late END goes to
        `on_orphan`."""
        self._session.drop(call)
        self._channel.flush()

    def call(self, meta: bytes, body: bytes) -> OutgoingCall:
        """Prepare a call; it is opened by `async with`."""
        return OutgoingCall(self, meta, body)

    # Control messages.

    async def send_control(self, message: bytes) -> None:
        """Send a control message (256 KiB at most) once there is room.

        Raises: RecoverableError EMC-1412 when the session is over.
        """
        await self._channel.send_control(message)

    def post_control(self, message: bytes) -> bool:
        """Send a control message if there is room for it now. Returns: whether there was."""
        return self._channel.post_control(message)

    def controls(self) -> AsyncIterator[bytes]:
        """The node's control messages, until the session is over. One reader at a time."""
        return _Controls(self)

    async def next_control(self) -> bytes | None:
        """The next control message; None when the session is over."""
        while not self._session.controls:
            if self.closed.is_set():
                return None
            self._control = trio.Event()
            await self._control.wait()
        return self._session.take_control()

    # For the listener and the calls.

    async def room(self) -> None:
        """Wait until there is room for another call. Raises: RecoverableError EMC-1412."""
        await self._channel.room()

    async def leave(self, drain_s: float) -> None:
        """Tell the node that no new calls come, and wait for the open ones."""
        self._session.leave()
        self._channel.flush()
        with trio.move_on_after(drain_s):
            while self._session.calls and not self.closed.is_set():
                self._idle = trio.Event()
                await self._idle.wait()
            await self._channel.flushed()

    def handle(self, message: bytes) -> None:
        """Take a message of the node. Raises: RemoteProtocolError; then the session is over."""
        session = self._session
        if not self._channel.received(message):
            return
        calls = session.receive(message, HEADER.size)
        for call in calls:
            self._tell(call)
        if session.controls and self._control is not None:
            self._control.set()
        if self._idle is not None and not session.calls:
            self._idle.set()
        self._channel.flush()

    def give_up(self) -> None:
        """The connection does not come back at once: end the calls that do not wait for it."""
        for call in list(self._session.calls.values()):
            if not call.patient and call.on_end is not None:
                call.error = RecoverableError("EMC-1413", "the connection to the node is lost")
                is_collected = call.on_data is None
                self._tell(call)
                if is_collected:
                    self._session.cancel(call)
                else:
                    self._session.drop(call)

    def end(self) -> None:
        """The session is over: whoever waits here finds out now."""
        calls = list(self._session.calls.values())
        self._session.calls.clear()
        for call in calls:
            call.error = call.error or self._channel.lost()
            self._tell(call)
        for event in (self._control, self._idle):
            if event is not None:
                event.set()

    def run(self, handler: Callable[[], None]) -> None:
        """Run an owner's handler; what it lets out is reported and harms nobody else."""
        try:
            handler()
        except Exception as exc:  # noqa: BLE001 -- one call's owner is not the others'
            self._on_error(exc)

    def _tell(self, call: HubCall) -> None:
        """Tell a call's owner what came."""
        is_over = call.error is not None or call.state is _IS_ENDED
        handler = call.on_end if is_over else call.on_data
        if is_over:
            call.on_end = None
            if handler is None and call.end is not None:
                handler = self.on_orphan
        if handler is not None:
            try:
                handler(call)
            except Exception as exc:  # noqa: BLE001 -- one call's owner is not the others'
                self._on_error(exc)


class _Controls(AsyncIterator[bytes]):
    def __init__(self, peer: TunnelPeer) -> None:
        self._peer = peer

    async def __anext__(self) -> bytes:
        message = await self._peer.next_control()
        if message is None:
            raise StopAsyncIteration
        return message
