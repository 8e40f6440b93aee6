"""Doorbells between the roles of one daemon.

Owns topics and their subscribers. An event says that something changed, never what is true: the
fact stands in the ledger, and whoever was too slow reads it there. Invariants: `publish` never
waits and never fails; a subscriber that lags loses its oldest events and can see that it did.
Only the loop's thread may publish.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from trio.lowlevel import ParkingLot, checkpoint

E = TypeVar("E")

DEFAULT_CAPACITY = 64
"""Enough for a burst of one round's changes; more would only be staler news."""


@dataclass(frozen=True)
class Topic(Generic[E]):
    """A named kind of event; the topics that several roles share stand in `emcd.events`."""

    name: str


class Subscription(Generic[E]):
    """One subscriber's view of a topic: an endless async iterator."""

    def __init__(self, capacity: int) -> None:
        self._events: deque[E] = deque(maxlen=capacity)
        self._waiting = ParkingLot()
        self.dropped = 0
        """Events lost to slowness so far."""

    def __aiter__(self) -> Subscription[E]:
        return self

    async def __anext__(self) -> E:
        """The oldest event not yet seen. Cancellation: no event is lost."""
        if self._events:
            await checkpoint()
        while not self._events:
            await self._waiting.park()
        return self._events.popleft()

    def drain_nowait(self) -> list[E]:
        """Every event waiting now: a doorbell needs one answer, however often it rang."""
        events = list(self._events)
        self._events.clear()
        return events

    def _put(self, event: E) -> None:
        if len(self._events) == self._events.maxlen:
            self.dropped += 1
        self._events.append(event)
        self._waiting.unpark()


class Bus:
    """All topics of one daemon."""

    def __init__(self) -> None:
        self._subscribers: dict[Topic[Any], list[Subscription[Any]]] = {}

    def publish(self, topic: Topic[E], event: E) -> None:
        """Ring the topic's subscribers. Never waits; without subscribers nothing happens."""
        for subscription in self._subscribers.get(topic, ()):
            subscription._put(event)

    @contextmanager
    def subscribe(self, topic: Topic[E], capacity: int = DEFAULT_CAPACITY) -> Iterator[Subscription[E]]:
        """Hear a topic from now until the block ends."""
        subscription: Subscription[E] = Subscription(capacity)
        self._subscribers.setdefault(topic, []).append(subscription)
        try:
            yield subscription
        finally:
            self._subscribers[topic].remove(subscription)
