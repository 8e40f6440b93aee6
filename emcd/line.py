"""A bounded line of tasks that wait for room at one of several places, first come, first served.

Room is handed over, not announced: `offer` gives it to the oldest who can use it, before anybody else
can take it, so nobody polls, wakes for nothing or is overtaken. Who waits under several keys stands
in each of their lines with the same number. Invariants: while somebody waits who can use it, offered
room goes to nobody else; room that was handed to a task is returned by `wait`, cancelled or not;
memory is bounded by who waits and the keys of the last minutes.

Who waits says of what kind he is: those of one kind can use the same things. Of each kind only the
oldest is asked, so an offer costs the kinds and not the waiters, and nobody is passed over. Kinds
under a key are bounded: one more is refused, as is who comes to a full line. A group (say, the calls
of one model) has a part of the line, so that no group fills it for all.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

WEIGHT = 0.2
"""Of the newest interval between two handings over, in the line's speed."""
KEEP_S = 60.0
"""How long the speed of an empty line is remembered."""
MAX_KINDS = 64
"""Of those who wait under one key."""


class LineFull(Exception):
    """As many wait as may, of all, of the group, or of different kinds."""


class _Waiter(Generic[T]):
    __slots__ = ("fits", "group", "keys", "kind", "number", "task", "thing")

    def __init__(
        self,
        number: int,
        keys: Sequence[Hashable],
        fits: Callable[[T], bool] | None,
        kind: Hashable,
        group: Hashable,
    ) -> None:
        self.number = number
        self.keys = keys
        self.fits = fits
        self.kind = kind
        self.group = group
        self.task = trio.lowlevel.current_task()
        self.thing: T | None = None


class _Queue(Generic[T]):
    """Who waits under one key, oldest first in each kind, and how fast they are served."""

    __slots__ = ("began_at", "interval_s", "kinds", "length", "served_at")

    def __init__(self, now: float) -> None:
        self.kinds: dict[Hashable, OrderedDict[int, _Waiter[T]]] = {}
        self.length = 0
        self.began_at = now
        self.served_at = -math.inf
        self.interval_s: float | None = None

    def enter(self, waiter: _Waiter[T]) -> None:
        found = self.kinds.get(waiter.kind)
        if found is None:
            found = self.kinds[waiter.kind] = OrderedDict()
        found[waiter.number] = waiter
        self.length += 1

    def leave(self, waiter: _Waiter[T]) -> None:
        found = self.kinds.get(waiter.kind)
        if found is not None and found.pop(waiter.number, None) is not None:
            self.length -= 1
            if not found:
                del self.kinds[waiter.kind]

    def find(self, thing: T, before: float) -> _Waiter[T] | None:
        """The oldest who can use the thing, if he came before that number."""
        oldest: _Waiter[T] | None = None
        for waiters in self.kinds.values():
            number = next(iter(waiters))
            if number < before and ((first := waiters[number]).fits is None or first.fits(thing)):
                oldest, before = first, number
        return oldest

    def served(self, now: float) -> None:
        passed = now - max(self.served_at, self.began_at)
        old = self.interval_s
        self.interval_s = passed if old is None else old + WEIGHT * (passed - old)
        self.served_at = now


class Line(Generic[T]):
    """Tasks that wait for room; `T` is where the room is."""

    def __init__(self, bound: int, group_bound: int | None = None) -> None:
        """`group_bound`: how many of one group may wait; None: as many as of all."""
        self._bound = bound
        self._group_bound = bound if group_bound is None else group_bound
        self.waiting = 0
        """How many wait now."""
        self._numbers = 0
        self._queues: dict[Hashable, _Queue[T]] = {}
        self._groups: dict[Hashable, int] = {}

    async def wait(
        self,
        keys: Sequence[Hashable],
        timeout_s: float,
        fits: Callable[[T], bool] | None = None,
        *,
        kind: Hashable = None,
        group: Hashable = None,
    ) -> T | None:
        """Wait until room is offered under one of the keys that fits.

        Args:
            kind: who gives the same kind has a `fits` that says the same of everything; None: by `fits` itself.
            group: whose part of the line is used; None: nobody's.

        Returns: where the room is; it is taken already. None when the time is over.
        Raises: LineFull at once. Cancellation: not cancelled with room in hand.
        """
        kind = fits if kind is None else kind
        self._require_room(keys, kind, group)
        self._numbers += 1
        waiter = _Waiter(self._numbers, keys, fits, kind, group)
        now = trio.current_time()
        for key in keys:
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = _Queue(now)
            elif not queue.length:
                queue.began_at = now
            queue.enter(waiter)
        self.waiting += 1
        if group is not None:
            self._groups[group] = self._groups.get(group, 0) + 1

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._leave(waiter)
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.move_on_after(timeout_s):
            await trio.lowlevel.wait_task_rescheduled(give_up)
        return waiter.thing

    def offer(self, keys: Iterable[Hashable], thing: T, take: Callable[[T], None]) -> bool:
        """Hand room to the oldest of those who wait under the keys and can use it.

        Args:
            take: called before the task runs: from here on the room is its own.

        Returns: whether somebody got it.
        """
        oldest: _Waiter[T] | None = None
        for key in keys:
            queue = self._queues.get(key)
            if queue is not None and queue.length:
                oldest = queue.find(thing, math.inf if oldest is None else oldest.number) or oldest
        if oldest is None:
            return False
        now = trio.current_time()
        for key in oldest.keys:
            self._queues[key].served(now)
        self._leave(oldest)
        oldest.thing = thing
        take(thing)
        trio.lowlevel.reschedule(oldest.task)
        return True

    def estimate_s(self, keys: Iterable[Hashable]) -> float | None:
        """When one who comes now would be served, by the speed of late; None where nobody was yet."""
        found = []
        for key in keys:
            queue = self._queues.get(key)
            if queue is not None and queue.interval_s is not None:
                found.append(queue.interval_s * (queue.length + 1))
        return min(found, default=None)

    def forget(self) -> None:
        """Drop empty lines whose speed is old. To be called now and then."""
        now = trio.current_time()
        for key, queue in list(self._queues.items()):
            if not queue.length and now - max(queue.served_at, queue.began_at) > KEEP_S:
                del self._queues[key]

    def _require_room(self, keys: Sequence[Hashable], kind: Hashable, group: Hashable) -> None:
        """Raises: LineFull."""
        if self.waiting >= self._bound:
            raise LineFull
        if group is not None and self._groups.get(group, 0) >= self._group_bound:
            raise LineFull
        for key in keys:
            queue = self._queues.get(key)
            if queue is not None and len(queue.kinds) >= MAX_KINDS and kind not in queue.kinds:
                raise LineFull

    def _leave(self, waiter: _Waiter[T]) -> None:
        self.waiting -= 1
        group = waiter.group
        if group is not None:
            self._groups[group] -= 1
            if not self._groups[group]:
                del self._groups[group]
        for key in waiter.keys:
            self._queues[key].leave(waiter)
