"""Tells a listener's connections that their sockets have something: one epoll set, edge-triggered.

trio's own wait costs a system call and a handful of objects each time; here a socket is registered
once, for its life, and one task waits for the whole set. That is a tenth of the server's cost of a
call, and it tells at once, while nobody reads, that a client left. Linux only, as the project is.
Invariants: an edge is told once, so whoever is told must read until nothing is left; what is called
must not raise and must not wait.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable

import trio

LEFT = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
READABLE = select.EPOLLIN | LEFT
_BATCH = 128  # sockets between two passes of the scheduler


class ReadyWatch:
    """The sockets of one listener."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._told: dict[int, Callable[[int], None]] = {}

    def add(self, fileno: int, events: int, tell: Callable[[int], None]) -> None:
        """Call `tell` with the events of a socket, from the watch's task. Raises: OSError."""
        if self._epoll.closed:
            raise OSError(errno.EBADF, "the listener is closed")
        self._epoll.register(fileno, events | select.EPOLLET)
        self._told[fileno] = tell

    def remove(self, fileno: int) -> None:
        """Before the socket is closed."""
        if self._told.pop(fileno, None) is not None:
            self._epoll.unregister(fileno)

    async def run(self) -> None:
        """Watch until cancelled; then close the set."""
        told, poll, fileno = self._told, self._epoll.poll, self._epoll.fileno()
        try:
            while True:
                await trio.lowlevel.wait_readable(fileno)
                for ready, events in poll(0, _BATCH):
                    tell = told.get(ready)
                    if tell is not None:
                        tell(events)
        finally:
            trio.lowlevel.notify_closing(fileno)
            self._told.clear()
            self._epoll.close()
