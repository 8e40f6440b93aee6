"""A few requests at a time, in order, with the first failure as it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from emcd.errors import EmcdError

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 8
"""Requests under way together: enough to hide a distant node's answer time, few enough for its limits."""


async def ask_each(items: Iterable[T], ask: Callable[[T], Awaitable[R]]) -> list[R]:
    """`ask(item)` for each, results in the items' order.

    Raises: the first EmcdError; what is still under way is cancelled.
    """
    waiting = list(enumerate(items))
    if len(waiting) == 1:
        return [await ask(waiting[0][1])]
    results: dict[int, R] = {}
    faults: list[EmcdError] = []
    limiter = trio.CapacityLimiter(AT_ONCE)

    async def one(place: int, item: T) -> None:
        async with limiter:
            try:
                results[place] = await ask(item)
            except EmcdError as exc:
                faults.append(exc)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for place, item in waiting:
            nursery.start_soon(one, place, item)
    if faults:
        raise faults[0]
    return [results[place] for place, _ in waiting]
