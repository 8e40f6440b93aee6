"""What a task is woken with that waits for nothing but being woken.

`trio.lowlevel.reschedule(task)` makes an `outcome.Value(None)` each time, which can be used once and
costs a microsecond with its use. This one can be used for ever:

    trio.lowlevel.reschedule(task, WOKEN)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

import outcome


class _Woken(outcome.Outcome[None]):
    """None, as often as it is asked for."""

    __slots__ = ()

    def unwrap(self) -> None:
        return None

    def send(self, gen: Generator[Any, Any, Any]) -> Any:
        return gen.send(None)

    async def asend(self, agen: AsyncGenerator[Any, Any]) -> Any:
        return await agen.asend(None)


WOKEN = _Woken()
