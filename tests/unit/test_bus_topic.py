"""Doorbells: bounded, in order, never in the publisher's way."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from emcd.bus import Bus, Topic

NUMBERS: Topic[int] = Topic("numbers")


async def test_publish_without_subscribers_does_nothing() -> None:
    Bus().publish(NUMBERS, 1)


async def test_subscriber_gets_events_in_order_from_then_on() -> None:
    bus = Bus()
    bus.publish(NUMBERS, 0)
    with bus.subscribe(NUMBERS) as events:
        for number in (1, 2, 3):
            bus.publish(NUMBERS, number)
        assert [await anext(events) for _ in range(3)] == [1, 2, 3]


async def test_subscriber_waits_for_the_next_event() -> None:
    bus = Bus()
    heard: list[int] = []

    async def hear(events: object) -> None:
        async for number in events:  # type: ignore[attr-defined]
            heard.append(number)

    with bus.subscribe(NUMBERS) as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear, events)
            await trio.testing.wait_all_tasks_blocked()
            bus.publish(NUMBERS, 5)
            await trio.testing.wait_all_tasks_blocked()
            assert heard == [5]
            nursery.cancel_scope.cancel()


async def test_slow_subscriber_loses_its_oldest_and_knows() -> None:
    bus = Bus()
    with bus.subscribe(NUMBERS, capacity=3) as slow, bus.subscribe(NUMBERS) as quick:
        for number in range(10):
            bus.publish(NUMBERS, number)
        assert slow.dropped == 7
        assert slow.drain_nowait() == [7, 8, 9]
        assert quick.dropped == 0
        assert quick.drain_nowait() == list(range(10))


async def test_cancelled_wait_loses_no_event() -> None:
    bus = Bus()
    with bus.subscribe(NUMBERS) as events:
        with trio.move_on_after(0):
            await anext(events)
        bus.publish(NUMBERS, 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(events)
        assert events.drain_nowait() == [1]


async def test_left_block_hears_nothing_and_is_forgotten() -> None:
    bus = Bus()
    with pytest.raises(ValueError, match="leave"), bus.subscribe(NUMBERS) as events:
        raise ValueError("leave")
    bus.publish(NUMBERS, 1)
    assert events.drain_nowait() == []


async def test_topics_of_one_name_and_another_do_not_mix() -> None:
    bus = Bus()
    with bus.subscribe(Topic[int]("other")) as other, bus.subscribe(Topic[int]("numbers")) as same:
        bus.publish(NUMBERS, 1)
        assert other.drain_nowait() == []
        assert same.drain_nowait() == [1]


async def test_two_waiters_of_one_subscription_get_one_event_each() -> None:
    bus = Bus()
    got: list[int] = []

    async def take(events: object) -> None:
        got.append(await anext(events))  # type: ignore[call-overload]

    with bus.subscribe(NUMBERS) as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, events)
            nursery.start_soon(take, events)
            await trio.testing.wait_all_tasks_blocked()
            bus.publish(NUMBERS, 1)
            bus.publish(NUMBERS, 2)
    assert sorted(got) == [1, 2]
