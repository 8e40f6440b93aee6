"""The scheduler under any order of calls, nodes that come and go, faults and suspensions."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from emcd.proto.messages import NodeStatus
from emcd.proto.openai import Endpoint, UpstreamRequest, read_request
from emcd.proto.params import ModelPrice
from emcd.proto.wish import ANY, Wish
from emcd.scheduling.breaker import BreakerState
from emcd.types import Address
from emcd_hub.api.error import ApiError
from emcd_hub.nodes.board import NodeBoard, NodeEntry
from emcd_hub.nodes.model_book import ModelBook
from emcd_hub.nodes.rules import RoutingRules
from emcd_hub.nodes.scheduler import Scheduler
from emcd_hub.nodes.status import ModelInfo

NODES = [Address(f"0x{number:040x}") for number in range(1, 5)]
KINDS = ["", "int4"]
BODY = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x"}]})
PLAIN = read_request(Endpoint.CHAT, BODY)

WISHES = st.one_of(
    st.just(ANY),
    st.builds(
        Wish,
        only=st.lists(st.sampled_from(NODES), max_size=2, unique=True).map(tuple),
        quantization=st.sampled_from(KINDS),
        session=st.sampled_from(["", "a", "b"]),
    ),
)
BREAKERS = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)
NODE = st.integers(0, len(NODES) - 1)
OPS = st.one_of(
    st.tuples(st.just("ask"), WISHES, st.lists(st.sampled_from(NODES), max_size=2)),
    st.tuples(st.just("join"), NODE, st.integers(0, 3), st.sampled_from(KINDS)),
    st.tuples(st.just("leave"), NODE),
    st.tuples(st.just("live"), NODE, st.booleans()),
    st.tuples(st.just("break"), NODE),
    st.tuples(st.just("suspend"), st.sets(st.sampled_from(NODES), max_size=2)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from(["ok", "fault", "left", "lost"])),
    st.tuples(st.just("pass"), st.sampled_from([0.4, 2.0, 11.0])),
)


class Link:
    def __init__(self, address: Address) -> None:
        self.address = address


class Model:
    """A scheduler and the calls that it was asked for."""

    def __init__(self, clock: MockClock, nursery: trio.Nursery) -> None:
        self.clock = clock
        self.nursery = nursery
        self.board = NodeBoard(10**12, 24)
        self.scheduler = Scheduler(
            board=self.board,
            book=ModelBook(0),
            rules=RoutingRules(queue_timeout_s=10.0),
            price_now=lambda info: ModelPrice(),
            draw=lambda n: 0,
            jitter=lambda: 0.5,
        )
        self.running: list[NodeEntry] = []
        self.waiting: dict[int, tuple[Wish, list[Address]]] = {}
        self.asked = 0
        self.just_suspended: set[Address] = set()

    async def ask(self, wish: Wish, failed: list[Address]) -> None:
        self.asked += 1
        number = self.asked
        request: UpstreamRequest = msgspec.structs.replace(PLAIN, wish=wish)
        self.waiting[number] = wish, failed
        try:
            entry = await self.scheduler.route(request, failed)
        except ApiError as exc:
            assert exc.code in ("EMC-1707", "EMC-1708", "EMC-1709", "EMC-1766", "EMC-1767")
            return
        finally:
            del self.waiting[number]
        assert not wish.only or entry.address in wish.only
        assert entry.address not in failed
        assert not wish.quantization or entry.models["m"].quantization == wish.quantization
        assert wish.only or not entry.suspended or entry.address in self.just_suspended
        self.running.append(entry)

    def apply(self, op: tuple[Any, ...]) -> None:
        name, *rest = op
        board, scheduler = self.board, self.scheduler
        if name == "ask":
            self.nursery.start_soon(self.ask, *rest)
        elif name == "join":
            number, capacity, kind = rest
            entry = board.join(cast("Any", Link(NODES[number])))
            info = ModelInfo(kind.encode().ljust(32), "m", frozenset({Endpoint.CHAT}), None, kind)
            status = NodeStatus(entry.address, entry.address, 1, 0, (), capacity, 0, "", "")
            board.apply_status(entry, status, [info], 0)
        elif name in ("leave", "live"):
            found = board.find(NODES[rest[0]])
            if found is not None:
                board.leave(found) if name == "leave" else board.set_live(found, rest[1])
        elif name == "break":
            found = board.find(NODES[rest[0]])
            for _ in range(5 if found is not None else 0):
                scheduler.report_fault(cast("NodeEntry", found), "m", "status")
        elif name == "suspend":
            board.suspend(rest[0])
            self.just_suspended |= rest[0]
        elif name == "end" and self.running:
            entry = self.running.pop(rest[0] % len(self.running))
            scheduler.give_back(entry)
            if rest[1] == "ok":
                scheduler.report_ok(entry, "m", seconds=1.0, first_s=None, tokens=3)
            elif rest[1] != "left":
                lost = rest[1] == "lost"
                scheduler.report_fault(entry, "m", "EMC-1412" if lost else "status", own=lost)
        elif name == "pass":
            self.clock.jump(rest[0])
            scheduler.tick(0)

    def check(self) -> None:
        board = self.board
        for entry in board.list_entries():
            assert entry.in_flight == sum(other is entry for other in self.running)
            able = entry.live and not entry.suspended
            state = entry.breaker
            if able and state is BreakerState.CLOSED:
                assert entry.room == entry.capacity - entry.in_flight
            elif able and state is BreakerState.HALF_OPEN:
                assert entry.room <= 1
            else:
                assert entry.room <= 0
            assert (entry in board.half_open) == (state is BreakerState.HALF_OPEN)
            assert entry.spare <= (entry.capacity, 1, 0)[BREAKERS.index(state)]
            for wish, failed in self.waiting.values():
                room = entry.spare if wish.only else entry.room
                kind = entry.models["m"].quantization
                fits = (
                    (not wish.only or entry.address in wish.only)
                    and entry.address not in failed
                    and (not wish.quantization or wish.quantization == kind)
                )
                assert not (fits and room > 0), "nobody waits beside room that it may use"
        assert board.line.waiting == len(self.waiting)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2), st.sampled_from(KINDS)), min_size=4, max_size=4),
    st.lists(st.lists(OPS, min_size=1, max_size=3), min_size=10, max_size=60),
)
def test_scheduler_keeps_its_promises_in_any_order(
    nodes: list[tuple[int, str]], turns: list[list[tuple[Any, ...]]]
) -> None:
    """What happens in one turn happens before any task runs."""
    clock = MockClock()

    async def play() -> None:
        async with trio.open_nursery() as nursery:
            model = Model(clock, nursery)
            for number, (capacity, kind) in enumerate(nodes):
                model.apply(("join", number, capacity, kind))
            for turn in turns:
                model.just_suspended = set()
                for op in turn:
                    model.apply(op)
                await wait_all_tasks_blocked()
                model.check()
            clock.jump(11.0)
            await wait_all_tasks_blocked()
            assert model.waiting == {}
            while model.running:
                model.apply(("end", 0, "ok"))
            assert all(entry.in_flight == 0 for entry in model.board.list_entries())

    trio.run(play, clock=clock)
