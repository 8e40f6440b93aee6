"""A few requests at a time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from emcd.chain.parallel import AT_ONCE, ask_each
from emcd.errors import RecoverableError


async def test_ask_each_keeps_the_order_and_its_bound(autojump_clock: trio.testing.MockClock) -> None:
    running, most = 0, 0

    async def ask(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(50 - number)
        running -= 1
        return number * 2

    assert await ask_each(range(40), ask) == [number * 2 for number in range(40)]
    assert most == AT_ONCE
    assert await ask_each([], ask) == []
    assert await ask_each([7], ask) == [14]


async def test_ask_each_first_fault_comes_out_alone_and_stops_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended: list[int] = []

    async def ask(number: int) -> int:
        await trio.sleep(number)
        if number == 2:
            raise RecoverableError("EMC-1502", "down")
        ended.append(number)
        return number

    with pytest.raises(RecoverableError):
        await ask_each(range(6), ask)
    assert ended == [0, 1]
