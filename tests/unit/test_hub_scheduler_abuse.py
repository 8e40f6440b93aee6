"""The hub's scheduler against peers that choose what they say, and clients that take all there is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from emcd.scheduling.breaker import BreakerState
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS, Address
from emcd_hub.api.error import ApiError
from emcd_hub.nodes.board import NodeEntry
from tests.unit.test_hub_scheduler import NOW_MS, PLAIN, World, wishing


@pytest.mark.parametrize("kind", ["EMC-1412", "EMC-1413", "EMC-1424", "EMC-1425", "EMC-2301", "EMC-2302"])
@pytest.mark.parametrize("router", [ZERO_ADDRESS, make_key("router").address])
async def test_node_that_chooses_its_code_is_left_alone_all_the_same(kind: str, router: Address) -> None:
    world = World()
    a, good = world.add("a", 400, router=router), world.add("good", 4)
    asked = lost = 0
    while a.breaker is BreakerState.CLOSED and asked < 50:
        asked += 1
        entry = world.scheduler.route_now(PLAIN)
        if entry is not a:
            break
        lost += 1
        world.scheduler.give_back(entry)
        world.scheduler.report_fault(entry, "m", kind)
    assert lost <= 5
    assert a.breaker is BreakerState.OPEN or kind == "EMC-1425"
    assert world.scheduler.route_now(PLAIN) is good


async def test_full_node_or_router_counts_only_in_a_row() -> None:
    world = World()
    a, routed = world.add("a", 4), world.add("r", 4, router=make_key("router").address)
    for entry, kind in ((a, "EMC-1424"), (routed, "EMC-1424"), (routed, "EMC-2301")):
        for number in range(100):
            world.scheduler.report_fault(entry, "m", kind)
            if number % 4 == 3:
                world.scheduler.report_ok(entry, "m", seconds=1.0, first_s=None, tokens=1)
        assert entry.breaker is BreakerState.CLOSED
    for number in range(100):
        world.scheduler.report_fault(a, "m", "EMC-2301")
        if number % 4 == 3:
            world.scheduler.report_ok(a, "m", seconds=1.0, first_s=None, tokens=1)
    assert a.breaker is BreakerState.OPEN, "behind no router nobody but the node has said so"


async def test_trial_that_is_answered_full_opens_again(mock_clock: MockClock) -> None:
    world = World()
    a = world.add("a", 4)
    world.break_node(a)
    mock_clock.jump(1.0)
    world.scheduler.tick(NOW_MS)
    assert world.scheduler.route_now(PLAIN) is a
    world.scheduler.report_fault(a, "m", "EMC-1424")
    assert a.breaker is BreakerState.OPEN


@pytest.mark.parametrize("suspended", [False, True])
async def test_broken_node_gets_no_call_that_names_it_before_its_trial(
    mock_clock: MockClock, suspended: bool
) -> None:
    mock_clock.autojump_threshold = 0
    world = World(queue_timeout_s=0.5)
    a, _ = world.add("a", 8), world.add("b", 8)
    pin = wishing(only=(a.address,))
    if suspended:
        world.board.suspend({a.address})
    world.break_node(a)
    assert world.scheduler.route_now(pin) is None
    with pytest.raises(ApiError) as caught:
        await world.scheduler.route(pin)
    assert (caught.value.code, caught.value.retry_after_s) == ("EMC-1708", 1)
    mock_clock.jump(1.0)
    world.scheduler.tick(NOW_MS)
    assert world.scheduler.route_now(pin) is a
    assert world.scheduler.route_now(pin) is None, "one trial, who asks by name or not"
    world.scheduler.give_back(a)
    if not suspended:
        assert world.scheduler.route_now(PLAIN) is a
        assert world.scheduler.route_now(pin) is None


async def test_who_names_a_broken_node_waits_for_its_trial(mock_clock: MockClock) -> None:
    world = World(queue_timeout_s=5.0)
    a, _ = world.add("a", 8), world.add("b", 8)
    world.break_node(a)
    got: list[NodeEntry] = []

    async def ask() -> None:
        got.append(await world.scheduler.route(wishing(only=(a.address,))))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert got == []
        mock_clock.jump(1.0)
        world.scheduler.tick(NOW_MS)
    assert got == [a]


async def test_calls_that_wait_for_one_model_leave_room_for_those_of_another(mock_clock: MockClock) -> None:
    world = World(queue_timeout_s=5.0, max_waiting=16)
    a, other = world.add("a"), world.add("other", serves="other")
    world.board.take(a)
    world.board.take(other)
    refused: list[str] = []
    got: list[NodeEntry] = []

    async def ask(request: Any) -> None:
        try:
            got.append(await world.scheduler.route(request))
        except ApiError as exc:
            refused.append(exc.code)

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(ask, wishing(only=(a.address,)) if number % 2 else PLAIN)
        await wait_all_tasks_blocked()
        assert (world.board.line.waiting, refused) == (4, ["EMC-1709"] * 12)
        nursery.start_soon(ask, msgspec.structs.replace(PLAIN, model="other"))
        await wait_all_tasks_blocked()
        world.scheduler.give_back(other)
        await wait_all_tasks_blocked()
        assert got == [other]
        nursery.cancel_scope.cancel()


async def test_room_is_offered_to_a_kind_of_wish_and_not_to_each_call(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(queue_timeout_s=60.0, max_waiting=4096)
    cheap, busy = world.add("cheap", 1, "int4"), world.add("busy", 1, "fp8")
    world.board.take(cheap)
    world.board.take(busy)
    looked = 0
    fits_of = world.scheduler._fits

    def counting(*args: Any) -> Any:
        fits = fits_of(*args)
        assert fits is not None

        def fits_and_counts(entry: NodeEntry) -> bool:
            nonlocal looked
            looked += 1
            return fits(entry)

        return fits_and_counts

    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(world.scheduler, "_fits", counting)
        for _ in range(500):
            nursery.start_soon(world.scheduler.route, wishing(quantization="int4"))
        for _ in range(500):
            nursery.start_soon(world.scheduler.route, wishing(max_price_micro=99, quantization="int4"))
        await wait_all_tasks_blocked()
        assert world.board.line.waiting == 1000
        looked = 0
        world.scheduler.give_back(busy)
        assert looked <= 2
        nursery.cancel_scope.cancel()
