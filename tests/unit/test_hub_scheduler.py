"""The hub's scheduler: wishes, waiting, breakers, what is told of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from emcd.accounting.suspension import Conduct
from emcd.clock import ManualClock
from emcd.ledger import open_ledger
from emcd.proto.messages import NodeStatus
from emcd.proto.openai import Endpoint, read_request
from emcd.proto.params import ModelPrice, NetworkParams
from emcd.proto.wish import Wish
from emcd.scheduling.breaker import BreakerState
from emcd.scheduling.daybook import DAY_MS, SLOT_MS
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS, Address
from emcd_hub.api.error import ApiError
from emcd_hub.nodes.board import NodeBoard, NodeEntry
from emcd_hub.nodes.model_book import MAX_KEPT, ModelBook
from emcd_hub.nodes.model_keeper import ModelKeeper
from emcd_hub.nodes.model_row import load_slots
from emcd_hub.nodes.rules import RoutingRules
from emcd_hub.nodes.scheduler import Scheduler
from emcd_hub.nodes.status import ModelInfo
from emcd_hub.nodes.suspension import SuspensionWatch, suspended_in
from emcd_hub.schema import MIGRATIONS

CHAT = Endpoint.CHAT
NOW_MS = 1_700_000_000_000 // SLOT_MS * SLOT_MS
PLAIN = read_request(
    CHAT, msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x"}]})
)
LONG = read_request(
    CHAT, msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "word " * 400}]})
)


def model(kind: str = "", name: str = "m") -> ModelInfo:
    return ModelInfo((name + kind).encode().ljust(32), name, frozenset({CHAT}), None, kind)


def wishing(**wish: Any) -> Any:
    return msgspec.structs.replace(PLAIN, wish=Wish(**wish))


class Link:
    def __init__(self, name: str) -> None:
        self.address = make_key(name).address


class World:
    """A scheduler over a board of made-up nodes."""

    def __init__(self, prices: dict[str, int] | None = None, max_waiting: int = 99, **rules: Any) -> None:
        self.board = NodeBoard(10**9, max_waiting)
        self.book = ModelBook(NOW_MS)
        self.prices = prices or {}
        self.scheduler = Scheduler(
            board=self.board,
            book=self.book,
            rules=RoutingRules(**rules),
            price_now=self.price,
            draw=lambda n: 0,
            jitter=lambda: 0.0,
        )

    def price(self, info: ModelInfo) -> ModelPrice:
        micro = self.prices.get(info.quantization, 10)
        return ModelPrice(micro, micro // 2, 1)

    def add(
        self, name: str, capacity: int = 1, kind: str = "", serves: str = "m", router: Address = ZERO_ADDRESS
    ) -> NodeEntry:
        entry = self.board.join(cast("Any", Link(name)), router)
        status = NodeStatus(entry.address, entry.address, 1, NOW_MS, (), capacity, 0, "", "")
        self.board.apply_status(entry, status, [model(kind, serves)], NOW_MS)
        return entry

    def break_node(self, entry: NodeEntry) -> None:
        for _ in range(5):
            self.scheduler.report_fault(entry, "m", "status")

    def refusal(self, request: Any, failed: Sequence[Address] = ()) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.scheduler.route_now(request, failed)
        return caught.value


async def test_model_that_nobody_serves_is_refused_by_what_is_known_of_it() -> None:
    world = World()
    assert world.refusal(PLAIN).code == "EMC-1708"
    entry = world.add("a")
    assert world.refusal(msgspec.structs.replace(PLAIN, model="other")).code == "EMC-1707"
    world.board.leave(entry)
    assert world.refusal(PLAIN).code == "EMC-1708"


async def test_node_named_that_is_not_there_or_has_failed_is_refused() -> None:
    world = World()
    a = world.add("a")
    assert world.refusal(wishing(only=(make_key("b").address,))).code == "EMC-1708"
    assert world.refusal(wishing(only=(a.address,)), [a.address]).code == "EMC-1708"
    assert world.refusal(PLAIN, [a.address]).code == "EMC-1708"


async def test_price_ceiling_picks_the_cheap_and_refuses_where_all_are_dearer() -> None:
    world = World(prices={"fp16": 100, "int4": 20})
    world.add("dear", 9, "fp16")
    cheap = world.add("cheap", 1, "int4")
    assert world.scheduler.route_now(wishing(max_price_micro=20)) is cheap
    assert world.scheduler.route_now(wishing(max_price_micro=99)) is None, "the dear one is not an answer"
    refused = world.refusal(wishing(max_price_micro=19))
    assert (refused.code, refused.status) == ("EMC-1766", 404)
    assert "0.000020" in refused.detail


async def test_quantization_is_heeded_and_refused_with_what_there_is() -> None:
    world = World()
    world.add("a", 9, "fp16")
    b = world.add("b", 1, "int4")
    assert world.scheduler.route_now(wishing(quantization="int4")) is b
    refused = world.refusal(wishing(quantization="fp8"))
    assert (refused.code, refused.status) == ("EMC-1767", 404)
    assert "fp16, int4" in refused.detail
    assert world.refusal(wishing(quantization="fp16", max_price_micro=1)).code == "EMC-1766"


async def test_session_stays_on_its_node_and_affinity_can_be_turned_off() -> None:
    world = World()
    for number in range(6):
        world.add(f"n{number}", 8)
    for request in (wishing(session="s"), LONG):
        first = world.scheduler.route_now(request)
        assert first is not None
        assert {world.scheduler.route_now(request) for _ in range(3)} == {first}
    plain = World(affinity=False)
    for number in range(6):
        plain.add(f"n{number}", 8)
    assert len({plain.scheduler.route_now(LONG) for _ in range(6)}) == 6
    short = World()
    for number in range(6):
        short.add(f"n{number}", 8)
    assert len({short.scheduler.route_now(PLAIN) for _ in range(6)}) == 6


async def test_fast_node_is_preferred_where_the_rule_says_so() -> None:
    world = World(by_model={"m": "speed"})
    slow, quick = world.add("slow", 8), world.add("quick", 8)
    for entry, seconds in ((slow, 9.0), (quick, 1.0)):
        world.scheduler.report_ok(entry, "m", seconds=seconds, first_s=None, tokens=100)
    taken = [world.scheduler.route_now(PLAIN) for _ in range(6)]
    assert taken == [quick] * 6


async def test_call_waits_until_a_node_is_given_back(mock_clock: MockClock) -> None:
    world = World(queue_timeout_s=5.0)
    entry = world.scheduler.route_now(PLAIN) if world.add("a") else None
    assert entry is not None
    got: list[NodeEntry] = []

    async def ask() -> None:
        got.append(await world.scheduler.route(PLAIN))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        world.scheduler.give_back(entry)
        assert world.scheduler.route_now(PLAIN) is None, "a newcomer does not overtake"
    assert got == [entry]


async def test_room_at_a_node_that_leaves_before_the_call_runs_is_not_used(mock_clock: MockClock) -> None:
    world = World(queue_timeout_s=5.0)
    a, b = world.add("a"), world.add("b")
    for _ in range(2):
        world.scheduler.route_now(PLAIN)
    got: list[NodeEntry] = []

    async def ask() -> None:
        got.append(await world.scheduler.route(PLAIN))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        world.scheduler.give_back(a)
        world.board.leave(a)
        await wait_all_tasks_blocked()
        assert got == []
        assert a.in_flight == 0
        world.scheduler.give_back(b)
    assert got == [b]


async def test_retry_after_is_by_the_lines_own_speed(mock_clock: MockClock) -> None:
    world = World(queue_timeout_s=8.0, max_waiting=16)
    entry = world.add("a")
    assert world.scheduler.route_now(PLAIN) is entry
    refusals: list[ApiError] = []

    async def ask() -> None:
        try:
            await world.scheduler.route(PLAIN)
        except ApiError as exc:
            refusals.append(exc)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        await ask()
        assert (refusals[0].code, refusals[0].retry_after_s) == ("EMC-1709", 8)
        for _ in range(2):
            mock_clock.jump(3)
            await wait_all_tasks_blocked()
            world.scheduler.give_back(entry)
            await wait_all_tasks_blocked()
        mock_clock.jump(8)
        await wait_all_tasks_blocked()
    assert [(r.code, r.retry_after_s) for r in refusals[1:]] == [("EMC-1709", 3), ("EMC-1709", 3)]
    assert world.board.line.waiting == 0


async def test_pinned_call_waits_for_its_node_and_not_for_another(mock_clock: MockClock) -> None:
    world = World(queue_timeout_s=5.0)
    a, b = world.add("a"), world.add("b")
    pin = wishing(only=(a.address,))
    assert world.scheduler.route_now(pin) is a
    assert world.scheduler.route_now(PLAIN) is b
    got: list[NodeEntry] = []

    async def ask() -> None:
        got.append(await world.scheduler.route(pin))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        world.scheduler.give_back(b)
        await wait_all_tasks_blocked()
        assert got == []
        world.scheduler.give_back(a)
    assert got == [a]


async def test_broken_node_is_left_alone_tried_once_and_comes_back(mock_clock: MockClock) -> None:
    world = World(affinity=False)
    a, b = world.add("a", 9), world.add("b", 2)
    world.break_node(a)
    taken = [world.scheduler.route_now(PLAIN) for _ in range(3)]
    assert taken == [b, b, None]
    mock_clock.jump(1.0)
    world.scheduler.tick(NOW_MS)
    assert a.breaker is BreakerState.HALF_OPEN
    world.scheduler.give_back(b)
    assert [world.scheduler.route_now(PLAIN) for _ in range(2)] == [a, b], "one trial, however much room"
    world.scheduler.report_ok(a, "m", seconds=1.0, first_s=None, tokens=1)
    assert world.scheduler.route_now(PLAIN) is a


async def test_trial_that_fails_opens_again_for_twice_as_long(mock_clock: MockClock) -> None:
    world = World()
    a = world.add("a", 4)
    world.break_node(a)
    mock_clock.jump(1.0)
    world.scheduler.tick(NOW_MS)
    assert world.scheduler.route_now(PLAIN) is a
    world.scheduler.report_fault(a, "m", "timeout")
    world.scheduler.give_back(a)
    mock_clock.jump(1.9)
    world.scheduler.tick(NOW_MS)
    assert a.room == 0
    mock_clock.jump(0.1)
    world.scheduler.tick(NOW_MS)
    assert a.breaker is BreakerState.HALF_OPEN


async def test_trial_that_says_nothing_makes_room_for_the_next(mock_clock: MockClock) -> None:
    world = World()
    a = world.add("a", 4)
    world.break_node(a)
    mock_clock.jump(1.0)
    world.scheduler.tick(NOW_MS)
    for _ in range(3):
        assert world.scheduler.route_now(PLAIN) is a
        assert world.scheduler.route_now(PLAIN) is None
        world.scheduler.give_back(a)


async def test_who_waits_for_a_broken_node_gets_the_trial(mock_clock: MockClock) -> None:
    world = World(queue_timeout_s=5.0)
    a = world.add("a", 4)
    world.break_node(a)
    got: list[NodeEntry] = []

    async def ask() -> None:
        got.append(await world.scheduler.route(PLAIN))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        mock_clock.jump(1.0)
        world.scheduler.tick(NOW_MS)
        await wait_all_tasks_blocked()
        assert got == [a]
        world.scheduler.report_ok(a, "m", seconds=1.0, first_s=None, tokens=1)
    assert got == [a, a, a]


async def test_nodes_that_stay_broken_or_suspended_are_refused_at_once(mock_clock: MockClock) -> None:
    world = World(queue_timeout_s=3.0)
    a = world.add("a", 4)
    world.break_node(a)
    for _ in range(3):
        mock_clock.jump(60)
        world.scheduler.tick(NOW_MS)
        world.scheduler.report_fault(a, "m", "status")
    assert world.scheduler.route_now(PLAIN) is None
    with pytest.raises(ApiError) as caught:
        await world.scheduler.route(PLAIN)
    assert (caught.value.code, caught.value.retry_after_s) == ("EMC-1708", 8)
    b = world.add("b", 4)
    world.board.suspend({a.address, b.address})
    with pytest.raises(ApiError) as caught:
        await world.scheduler.route(PLAIN)
    assert caught.value.code == "EMC-1708"
    assert world.scheduler.route_now(wishing(only=(b.address,))) is b
    assert world.scheduler.route_now(wishing(only=(a.address,))) is None


@pytest.mark.parametrize("kind", ["EMC-1412", "EMC-1413", "EMC-1424", "EMC-1425"])
async def test_what_the_hubs_own_tunnel_says_opens_no_breaker(kind: str) -> None:
    world = World()
    a = world.add("a", 4)
    for _ in range(50):
        world.scheduler.report_fault(a, "m", kind, own=True)
    assert a.breaker is BreakerState.CLOSED


@pytest.mark.parametrize("own", [False, True])
async def test_node_that_leaves_gets_no_more_calls_on_that_tunnel(own: bool) -> None:
    world = World()
    a, b = world.add("a", 9), world.add("b", 1)
    world.scheduler.report_fault(a, "m", "EMC-1425", own=own)
    assert [world.scheduler.route_now(PLAIN) for _ in range(2)] == [b, None]
    again = world.add("a", 9)
    assert world.scheduler.route_now(PLAIN) is again


async def test_numbers_of_a_model_are_those_of_finished_calls() -> None:
    world = World()
    a = world.add("a", 4)
    world.scheduler.tick(NOW_MS)
    for number in range(100):
        world.scheduler.report_ok(a, "m", seconds=1.1, first_s=0.1 + number / 1e6, tokens=11)
    world.scheduler.report_fault(a, "m", "status")
    for second in range(1, 11):
        world.scheduler.tick(NOW_MS + 1000 * second)
    world.board.leave(a)
    for second in range(11, 41):
        world.scheduler.tick(NOW_MS + 1000 * second)
    numbers = world.book.numbers("m")
    assert numbers is not None
    assert numbers.first_token_p50_ms == pytest.approx(100, rel=0.07)
    assert numbers.tokens_per_s_p50 == pytest.approx(10, rel=0.07)
    assert (numbers.calls, numbers.faults, numbers.uptime) == (101, 1, 0.25)
    assert world.book.numbers("never seen") is None


async def test_models_are_kept_over_a_restart_and_forgotten_after_a_day(tmp_path: Path) -> None:
    world = World()
    a = world.add("a", 4)
    clock = ManualClock(NOW_MS)
    async with open_ledger(tmp_path / "ledger.db", {"hub": MIGRATIONS}) as ledger:
        keeper = ModelKeeper(models=world.book, ledger=ledger, clock=clock)
        for second in range(11):
            world.scheduler.tick(NOW_MS + 1000 * second)
        await keeper.flush()
        world.scheduler.report_ok(a, "m", seconds=1.0, first_s=None, tokens=1)
        clock.at_ms = NOW_MS + 11_000
        world.scheduler.tick(clock.now_ms())
        await keeper.flush()
        await keeper.flush()
        now_ms = clock.now_ms()
        again = ModelBook(now_ms, await ledger.read(lambda con: load_slots(con, now_ms)))
        numbers = again.numbers("m")
        assert numbers is not None
        assert (numbers.calls, numbers.uptime, numbers.since_ms) == (1, 1.0, NOW_MS)
        later_ms = now_ms + 2 * DAY_MS
        again.look(NodeBoard(1), later_ms)
        assert again.list_names() == []
        clock.at_ms = later_ms
        world.scheduler.tick(later_ms)
        world.scheduler.tick(later_ms + 1000)
        await keeper.flush()
        rows = await ledger.read(lambda con: con.execute("SELECT slot FROM hub_model_slots").fetchall())
        assert [row[0] for row in rows] == [later_ms // SLOT_MS]


async def test_names_of_models_are_bounded_and_what_is_served_goes_first() -> None:
    world = World()
    crowd = world.board.join(cast("Any", Link("crowd")))
    status = NodeStatus(crowd.address, crowd.address, 1, NOW_MS, (), 1, 0, "", "")
    for number in range(MAX_KEPT // 64 + 5):
        infos = [model(name=f"junk {number} {i}") for i in range(64)]
        world.board.apply_status(crowd, status, infos, NOW_MS)
        world.scheduler.tick(NOW_MS + 2000 * number)
        world.scheduler.tick(NOW_MS + 2000 * number + 1000)
    world.add("honest")
    world.scheduler.tick(NOW_MS + 1_000_000)
    assert len(world.book.list_names()) == MAX_KEPT
    assert "m" in world.book.list_names()


async def test_suspensions_are_those_of_the_newest_closed_round(tmp_path: Path) -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    params = NetworkParams(genesis_time_s=1_700_000_000 // 7200 * 7200)
    clock = ManualClock(params.round_start_ms(12))
    async with open_ledger(tmp_path / "ledger.db", {"hub": MIGRATIONS}) as ledger:
        watch = SuspensionWatch(board=world.board, ledger=ledger, clock=clock, params=params)
        await watch.refresh()
        assert (a.suspended, b.suspended) == (False, False)

        async def close(index: int, conducts: dict[Address, Conduct]) -> None:
            blob = msgspec.msgpack.encode(conducts)
            row = (index, bytes(32), index - 1, *[bytes(32)] * 3, b"", blob, 0, b"", 0)
            await ledger.write(
                lambda con: con.execute(f"INSERT INTO hub_bundles VALUES ({'?, ' * 10}?)", row) and None
            )
            await watch.refresh()

        await close(9, {a.address: Conduct((), 1, 99), b.address: Conduct((9,))})
        assert (a.suspended, b.suspended) == (True, False)
        await close(10, {b.address: Conduct((), 1, 13)})
        assert (a.suspended, b.suspended) == (False, True)
        clock.at_ms = params.round_start_ms(13)
        await watch.refresh()
        assert (a.suspended, b.suspended) == (False, False)


def test_suspension_holds_below_its_round() -> None:
    nodes = {make_key(str(i)).address: Conduct((), 1, i) for i in range(4)}
    assert suspended_in(nodes, 2) == {make_key("3").address}
    assert suspended_in({}, 0) == set()
