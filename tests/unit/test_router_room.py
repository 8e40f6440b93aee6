"""The room of a node behind a router: capacity, line, deadline."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from emcd.errors import RecoverableError
from emcd_router.room import NodeRoom


def make_room(capacity: int, *, line_length: int = 4, timeout_s: float = 5.0) -> NodeRoom:
    room = NodeRoom(line_length, timeout_s)
    room.set_capacity(capacity)
    return room


async def test_room_of_a_free_node_is_taken_at_once() -> None:
    room = make_room(2)
    await room.enter()
    await room.enter()
    assert room.in_flight == 2


async def test_node_holds_no_more_calls_than_its_share_whatever_it_says() -> None:
    room = NodeRoom(0, 0, most_calls=2)
    room.set_capacity(1000)
    await room.enter()
    await room.enter()
    with pytest.raises(RecoverableError, match="EMC-2301"):
        await room.enter()


def test_bodies_of_a_nodes_calls_fill_its_share_until_they_are_released() -> None:
    room = NodeRoom(0, 0, most_bytes=10)
    with room.hold(6) as release, room.hold(4):
        with pytest.raises(RecoverableError, match="EMC-2301"), room.hold(1):
            pass
        release()
        release()
        with pytest.raises(RecoverableError, match="EMC-2301"), room.hold(7):
            pass
        with room.hold(6):
            pass
    with room.hold(10):
        pass


async def test_who_waits_gets_the_room_that_comes_up_in_their_order() -> None:
    room, entered = make_room(1), []
    await room.enter()

    async def wait(number: int) -> None:
        await room.enter()
        entered.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        assert entered == []
        for number in range(3):
            room.leave()
            await wait_all_tasks_blocked()
            assert entered == list(range(number + 1))
    assert room.in_flight == 1


async def test_newcomer_does_not_pass_who_waits() -> None:
    room, entered = make_room(1), []
    await room.enter()

    async def wait(name: str) -> None:
        await room.enter()
        entered.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "first")
        await wait_all_tasks_blocked()
        room.leave()  # handed to the first, who has not run yet
        nursery.start_soon(wait, "newcomer")
        await wait_all_tasks_blocked()
        assert entered == ["first"]
        room.leave()


async def test_capacity_that_grows_lets_in_who_waits() -> None:
    room = make_room(0)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(room.enter)
        await wait_all_tasks_blocked()
        room.set_capacity(2)
        await wait_all_tasks_blocked()
        assert room.in_flight == 2
        room.set_capacity(3)


async def test_line_that_is_full_refuses_at_once() -> None:
    room = make_room(0, line_length=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.enter)
        await wait_all_tasks_blocked()
        with pytest.raises(RecoverableError, match="EMC-2301"):
            await room.enter()
        nursery.cancel_scope.cancel()
    assert room.in_flight == 0


async def test_deadline_in_the_line_refuses(autojump_clock: MockClock) -> None:
    room = make_room(0, timeout_s=3.0)
    with pytest.raises(RecoverableError, match="EMC-2302"):
        await room.enter()
    room.set_capacity(1)
    assert room.in_flight == 0


async def test_who_is_cancelled_in_the_line_takes_nothing() -> None:
    room = make_room(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.enter)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    room.set_capacity(1)
    await room.enter()
    assert room.in_flight == 1


async def test_idle_is_when_the_last_call_left() -> None:
    room = make_room(2)
    await room.enter()
    await room.enter()
    done = False

    async def wait() -> None:
        nonlocal done
        await room.wait_idle()
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        room.leave()
        await wait_all_tasks_blocked()
        assert not done
        room.leave()
    assert done
