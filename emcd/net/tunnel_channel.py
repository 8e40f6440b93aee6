"""A session on the connections that it has, one after the other.

Owns the numbering of messages, what waits for room, and when things are sent: whatever a session
wants sent in one turn of the loop goes out as one message, from the one task of a `Flusher`, for all
tunnels of a hub. Invariants: one link at a time; what waits to be sent is bounded, since who adds to
it waits in `room`; once `closed` is set nothing waits here any more.
"""

from __future__ import annotations

from collections import deque

import trio

from emcd.errors import EmcdError, RecoverableError
from emcd.net.tunnel_link import Link, TunnelLimits
from emcd.net.wake import WOKEN
from emcd.proto.tunnel import Session
from emcd.proto.tunnel_resume import MessageLog

_BACKLOG_BYTES = 1024 * 1024


class Flusher:
    """Lets channels send, once a turn of the loop each."""

    def __init__(self) -> None:
        self._waiting: list[Channel] = []
        self._parked: trio.lowlevel.Task | None = None

    def add(self, channel: Channel) -> None:
        """Have a channel pump soon."""
        self._waiting.append(channel)
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task, WOKEN)

    async def run(self) -> None:
        """Pump until cancelled."""
        while True:
            if self._waiting:
                await trio.lowlevel.checkpoint()
            else:
                self._parked = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort)
            channels, self._waiting = self._waiting, []
            for channel in channels:
                channel.pump()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED


class Channel:
    """One session's way to its peer."""

    __slots__ = (
        "_again",
        "_flusher",
        "_full_at",
        "_full_since",
        "_is_queued",
        "_limits",
        "_room",
        "closed",
        "fault",
        "link",
        "log",
        "session",
    )

    def __init__(self, session: Session, limits: TunnelLimits, flusher: Flusher) -> None:
        self.session = session
        self.log = MessageLog()
        self.link: Link | None = None
        self.closed = trio.Event()
        self.fault: EmcdError | None = None
        self._limits = limits
        self._flusher = flusher
        self._again: deque[bytes] | None = None
        self._room: trio.Event | None = None
        self._is_queued = False
        self._full_since: float | None = None
        self._full_at = 0

    # The connection.

    def attach(self, link: Link, peer_received: int) -> None:
        """Go on over a new link, from what the peer has.

        Raises: RemoteProtocolError EMC-1416, and nothing has changed.
        """
        again = self.log.resume(peer_received)
        self._again = deque(again) if again else None
        self._full_since = None
        self.link = link
        self._queue()

    def detach(self) -> None:
        """The link is gone; the session waits for another."""
        self.link = None

    def close(self, fault: EmcdError | None) -> None:
        """The session is over; whoever waits here is told. The first fault stays."""
        if not self.closed.is_set():
            self.fault = fault
            self.link = None
            self.closed.set()
            if self._room is not None:
                self._room.set()

    def lost(self) -> RecoverableError:
        """What the owners of calls get when the session is over."""
        return RecoverableError("EMC-1412", "it was closed" if self.fault is None else self.fault.detail)

    def tick(self, now: float) -> None:
        """Ping, acknowledge what came a while ago, and end a link that acknowledges nothing."""
        link = self.link
        if link is None:
            return
        link.tick(now)
        if self.log.has_untold and not link.is_blocked:
            link.send(self.log.ack())
        if not self.log.is_full or self.log.acked != self._full_at:
            self._full_since, self._full_at = None, self.log.acked
        elif self._full_since is None:
            self._full_since = now
        elif now - self._full_since >= self._limits.write_stall_s:
            link.end(RecoverableError("EMC-1412", "the peer acknowledges nothing"))

    # What is sent.

    def flush(self) -> None:
        """Have sent what the session wants sent."""
        if self.session.has_news:
            self._queue()

    def _queue(self) -> None:
        if not self._is_queued and self.link is not None:
            self._is_queued = True
            self._flusher.add(self)

    def pump(self) -> None:
        """Send until the link is blocked or nothing is left. For the flusher."""
        self._is_queued = False
        link, log = self.link, self.log
        if link is None:
            return
        while not (link.is_blocked or link.closed):
            if self._again:
                link.send(log.stamp_again(self._again.popleft()))
            elif log.is_full or not (frames := self.session.take_message()):
                if log.is_ack_due or (self.session.peer_leaving and log.has_untold):
                    link.send(log.ack())
                break
            else:
                link.send(log.stamp(frames))
        if self._room is not None:
            self._room.set()
            self._room = None

    def has_drained(self) -> None:
        """The link is blocked no more."""
        self._queue()

    def received(self, message: bytes) -> bool:
        """Take a message's header. Returns: whether there are frames in it.

        Raises: RemoteProtocolError EMC-1420, EMC-1421.
        """
        log = self.log
        was_full = log.is_full
        has_frames = log.accept(message)
        if was_full or log.is_ack_due or self._room is not None:
            self._queue()
        return has_frames

    async def room(self) -> None:
        """Wait until there is room for more to send. Raises: RecoverableError EMC-1412."""
        while not self.closed.is_set():
            if self.session.outbox_bytes < _BACKLOG_BYTES:
                return
            await self._pumped()
        raise self.lost()

    @property
    def has_room(self) -> bool:
        return not self.closed.is_set() and self.session.outbox_bytes < _BACKLOG_BYTES

    async def send_control(self, message: bytes) -> None:
        """Send a control message (256 KiB at most) once there is room.

        Raises: RecoverableError EMC-1412 when the session is over.
        """
        await self.room()
        self.session.send_control(message)
        self.flush()

    def post_control(self, message: bytes) -> bool:
        """Send a control message if there is room for it now. Returns: whether there was."""
        if not self.has_room:
            return False
        self.session.send_control(message)
        self.flush()
        return True

    async def flushed(self, *, acknowledged: bool = False) -> None:
        """Wait until all was handed to the kernel, or acknowledged by the peer, or it is closed."""
        self.flush()
        while not self.closed.is_set():
            is_sent = self.link is not None and not self.link.is_blocked and not self.session.has_news
            if is_sent and not (acknowledged and self.log.acked < self.log.sent):
                return
            await self._pumped()

    async def _pumped(self) -> None:
        if self._room is None:
            self._room = trio.Event()
        await self._room.wait()
