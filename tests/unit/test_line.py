"""The line: who gets room, and what is left behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from emcd.line import KEEP_S, MAX_KINDS, Line, LineFull

Taken = list[str]


async def stand(line: Line[str], got: list[Any], name: str, keys: list[str], **rest: Any) -> None:
    got.append((name, await line.wait(keys, rest.pop("timeout_s", 60), **rest)))


async def test_line_refuses_more_than_its_bound_at_once() -> None:
    line: Line[str] = Line(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stand, line, [], "a", ["k"])
        await wait_all_tasks_blocked()
        with pytest.raises(LineFull):
            await line.wait(["k"], 60)
        nursery.cancel_scope.cancel()
    assert line.waiting == 0


async def test_line_refuses_more_of_a_group_than_its_part() -> None:
    line: Line[str] = Line(9, 2)
    async with trio.open_nursery() as nursery:
        for name, group in (("a", "g"), ("b", "g"), ("c", "h")):
            nursery.start_soon(partial(stand, line, [], name, [name], group=group))
            await wait_all_tasks_blocked()
        with pytest.raises(LineFull):
            await line.wait(["d"], 0, group="g")
        assert line.offer(["a"], "n", lambda thing: None)
        nursery.start_soon(partial(stand, line, [], "d", ["d"], group="g"))
        await wait_all_tasks_blocked()
        assert line.waiting == 3
        nursery.cancel_scope.cancel()
    assert line._groups == {}


async def test_line_asks_once_for_all_of_one_kind_and_serves_the_oldest_that_fits() -> None:
    line: Line[str] = Line(999)
    got: list[Any] = []
    asked: list[str] = []

    def fits(kind: str) -> Any:
        def asked_and_fits(thing: str) -> bool:
            asked.append(kind)
            return kind in thing

        return asked_and_fits

    async with trio.open_nursery() as nursery:
        for number in range(300):
            kind = "abc"[number % 3]
            nursery.start_soon(partial(stand, line, got, str(number), ["k"], fits=fits(kind), kind=kind))
            await wait_all_tasks_blocked()
        assert not line.offer(["k"], "x", lambda thing: None)
        assert sorted(asked) == ["a", "b", "c"]
        for thing in ("c", "bc", "abc", "abc"):
            assert line.offer(["k"], thing, lambda thing: None)
            await wait_all_tasks_blocked()
        assert [name for name, _ in got] == ["2", "1", "0", "3"]
        nursery.cancel_scope.cancel()
    assert all(not queue.kinds and not queue.length for queue in line._queues.values())


async def test_line_bounds_the_kinds_under_a_key() -> None:
    line: Line[str] = Line(999)
    async with trio.open_nursery() as nursery:
        for number in range(MAX_KINDS):
            nursery.start_soon(partial(stand, line, [], str(number), ["k"], fits=bool, kind=number))
        await wait_all_tasks_blocked()
        with pytest.raises(LineFull):
            await line.wait(["other", "k"], 0, bool, kind="new")
        assert line.waiting == MAX_KINDS
        nursery.start_soon(partial(stand, line, [], "again", ["k"], fits=bool, kind=0))
        nursery.start_soon(partial(stand, line, [], "elsewhere", ["other"], fits=bool, kind="new"))
        await wait_all_tasks_blocked()
        assert line.waiting == MAX_KINDS + 2
        nursery.cancel_scope.cancel()


async def test_line_offers_to_nobody_where_nobody_fits() -> None:
    line: Line[str] = Line(9)
    taken: Taken = []
    assert not line.offer(["k"], "n", taken.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(stand, line, [], "a", ["k"], fits=lambda thing: thing == "other"))
        await wait_all_tasks_blocked()
        assert not line.offer(["k"], "n", taken.append)
        assert not line.offer(["elsewhere"], "other", taken.append)
        nursery.cancel_scope.cancel()
    assert taken == []


async def test_line_serves_the_oldest_over_all_keys() -> None:
    line: Line[str] = Line(9)
    got: list[Any] = []
    taken: Taken = []
    async with trio.open_nursery() as nursery:
        for name, keys in (("a", ["x"]), ("b", ["y", "x"]), ("c", ["y"])):
            nursery.start_soon(stand, line, got, name, keys)
            await wait_all_tasks_blocked()
        for number in range(3):
            assert line.offer(["y", "x"], str(number), taken.append)
            await wait_all_tasks_blocked()
        assert not line.offer(["y", "x"], "3", taken.append)
    assert got == [("a", "0"), ("b", "1"), ("c", "2")]
    assert taken == ["0", "1", "2"]


async def test_line_gives_a_task_that_was_served_its_room_though_it_is_cancelled() -> None:
    line: Line[str] = Line(9)
    got: list[Any] = []
    taken: Taken = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stand, line, got, "a", ["k"])
            await wait_all_tasks_blocked()
            assert line.offer(["k"], "n", taken.append)
            scope.cancel()
    assert taken == ["n"]
    assert got == [("a", "n")]


async def test_line_forgets_who_is_cancelled_or_late(mock_clock: MockClock) -> None:
    line: Line[str] = Line(9)
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(stand, line, got, "late", ["k"], timeout_s=5))
        await wait_all_tasks_blocked()
        mock_clock.jump(5)
    assert got == [("late", None)]
    assert not line.offer(["k"], "n", lambda thing: None)
    assert line.waiting == 0
    mock_clock.jump(KEEP_S + 6)
    line.forget()
    assert line._queues == {}


async def test_line_estimates_by_its_own_speed(mock_clock: MockClock) -> None:
    line: Line[str] = Line(99)
    assert line.estimate_s(["k"]) is None
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(stand, line, [], str(number), ["k"])
        await wait_all_tasks_blocked()
        for _ in range(4):
            mock_clock.jump(2)
            assert line.offer(["k"], "n", lambda thing: None)
            await wait_all_tasks_blocked()
        assert line.estimate_s(["k"]) == pytest.approx(2 * 7)
        assert line.estimate_s(["other"]) is None
        nursery.cancel_scope.cancel()
    assert line.estimate_s(["k"]) == pytest.approx(2)


async def test_line_holds_its_promises_under_any_order(mock_clock: MockClock) -> None:
    """A thousand who wait, leave and are served: nobody twice, nothing lost, oldest first per key."""
    line: Line[int] = Line(10_000)
    got: list[tuple[int, int | None]] = []
    taken: list[int] = []

    async def one(number: int) -> None:
        got.append((number, await line.wait([f"k{number % 3}"], 1 + number % 7)))

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(one, number)
            if number % 50 == 0:
                await wait_all_tasks_blocked()
                mock_clock.jump(0.5)
                await wait_all_tasks_blocked()
            if number % 3 == 0:
                line.offer([f"k{number % 2}"], number, taken.append)
        await wait_all_tasks_blocked()
        mock_clock.jump(10)
    things = [thing for _, thing in got if thing is not None]
    assert sorted(things) == sorted(taken)
    assert len(set(things)) == len(things)
    assert len(got) == 1000
    assert line.waiting == 0
