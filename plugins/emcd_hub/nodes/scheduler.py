"""Which node does a call, and who waits for one: the rules of `emcd.scheduling` over the board.

`route_now` is the usual way and waits for nothing; only where all nodes that fit are busy a call
stands in the board's line, for a bounded time. A node comes back taken: whoever got it gives it back
exactly once, and reports how it did. Invariants: a client's choice of nodes, price and quantization
is never departed from; what is suspended or broken gets only calls that name it, and one trial at a
time when it comes back.

What counts against a node: its faults, timeouts, broken streams, and whatever it says itself. A link
that the hub's own tunnel lost does not: the node is out of routing anyhow, and its calls would count
all at once for one event. What a peer says of a full, lost or leaving node or router may be true, and
may be said by who takes calls to do none: it counts in a row, until a call is well done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Sequence

import trio

from emcd.line import LineFull
from emcd.proto.openai import Endpoint, UpstreamRequest
from emcd.proto.params import ModelPrice
from emcd.proto.wish import ANY, Wish
from emcd.scheduling.breaker import BreakerState
from emcd.scheduling.choice import choose
from emcd.scheduling.ring import prefix_key, session_key
from emcd.types import ZERO_ADDRESS, Address
from emcd_hub.api.error import (
    ApiError,
    delisted_model,
    no_node,
    no_price,
    no_quantization,
    overloaded,
    unknown_model,
)
from emcd_hub.nodes.board import NodeBoard, NodeEntry
from emcd_hub.nodes.lane import Lane
from emcd_hub.nodes.model_book import ModelBook
from emcd_hub.nodes.routing_metric import WAITS
from emcd_hub.nodes.rules import RoutingRules
from emcd_hub.nodes.status import ModelInfo

Fits = Callable[[NodeEntry], bool]

RETRY_AFTER_S = 1
LONGEST_RETRY_S = 60
_LEAVING = "EMC-1425"
_FULL = "EMC-1424"
_TUNNELS = frozenset(("EMC-1412", "EMC-1413", _FULL, _LEAVING))
_ROUTERS_OWN = "EMC-23"
_PROMPT_STARTS = {
    Endpoint.CHAT: b'"messages":',
    Endpoint.COMPLETIONS: b'"prompt":',
    Endpoint.RESPONSES: b'"input":',
}


class Scheduler:
    """The routing of one hub."""

    def __init__(
        self,
        *,
        board: NodeBoard,
        book: ModelBook,
        rules: RoutingRules,
        price_now: Callable[[ModelInfo], ModelPrice],
        draw: Callable[[int], int],
        jitter: Callable[[], float],
    ) -> None:
        """
        Args:
            price_now: of a call that starts now.
            draw: `draw(n)` is a random number below n; jitter: one from 0 to 1.
        """
        self._board = board
        self._book = book
        self._rules = rules
        self._price_now = price_now
        self._draw = draw
        self._jitter = jitter
        self.wants_evidence = board.wants_evidence
        """Whether calls of a model at an endpoint ask for what a judge needs. From any thread."""
        WAITS.follow(board)

    async def route(self, request: UpstreamRequest, failed: Sequence[Address] = ()) -> NodeEntry:
        """The node for an attempt, waiting in line where all that fit are busy. It is taken.

        Args:
            failed: nodes that have failed this call already.

        Raises: ApiError EMC-1707, EMC-1708, EMC-1766, EMC-1767, EMC-1794 where none fits, EMC-1709 where none
            has room in time.
        """
        entry = self.route_now(request, failed)
        if entry is not None:
            return entry
        lane = self._lane(request)
        allowed = self._allowed(lane, request.wish)
        fits = self._fits(lane, allowed, failed)
        self._require_hope(lane, request.wish, fits)
        keys: Sequence[Hashable] = [lane.key]
        if request.wish.only:
            keys, fits = request.wish.only, self._serves(request, fits)
        began = trio.current_time()
        kind = (lane.key, allowed, frozenset(failed))
        entry = await self._stand_in_line(request, failed, keys, fits, kind)
        WAITS.count(trio.current_time() - began, served=entry is not None)
        if entry is None:
            raise overloaded("every node that may do this call is busy", self._retry_after_s(keys))
        return entry

    def route_now(self, request: UpstreamRequest, failed: Sequence[Address] = ()) -> NodeEntry | None:
        """The node for an attempt, taken; None where all that fit are busy. Raises: as `route`."""
        board = self._board
        lane = board.find_lane(request.endpoint, request.model)
        if lane is None:
            raise self._nobody(request)
        wish = request.wish
        fits = None if wish is ANY and not failed else self._fits(lane, self._allowed(lane, wish), failed)
        entry = self._find_trial(lane, fits) if board.half_open and not wish.only else None
        if entry is None:
            entry = choose(
                lane,
                only=wish.only,
                fits=fits,
                key=self._key(request) if self._rules.affinity and len(lane.nodes) > 1 else None,
                slowness=self._slowness(request.model),
                draw=self._draw,
            )
        if entry is not None:
            board.take(entry)
        elif wish.only or fits is not None:
            self._require_some(lane, wish, fits)
        return entry

    def give_back(self, entry: NodeEntry) -> None:
        """The node is free again for the next call. Once for each `route`."""
        self._board.give_back(entry)

    def report_ok(
        self, entry: NodeEntry, model: str, *, seconds: float, first_s: float | None, tokens: int
    ) -> None:
        """A call was done and is on disk.

        Args:
            seconds: from its way to the node to its end; first_s: to the first event of a stream.
            tokens: put out, or read where nothing is put out.
        """
        record = entry.record
        if record.breaker.success():
            self._board.restate(entry)
        record.speed(model).add(seconds, first_s, tokens)
        self._book.count_ok(model, seconds, first_s, tokens)

    def report_fault(self, entry: NodeEntry, model: str, kind: str, *, own: bool = False) -> None:
        """The node failed a call.

        Args:
            kind: of the fault, or the code that the tunnel gave or the peer stated.
            own: the hub's own tunnel says so; else it is what the node did or stated.
        """
        self._book.count_fault(model)
        if kind == _LEAVING:
            self._board.set_live(entry, False)  # it finishes what it has, and takes no more on this tunnel
        if own and kind in _TUNNELS:
            return
        soft = kind in (_FULL, _LEAVING) or (
            entry.router != ZERO_ADDRESS and (kind in _TUNNELS or kind.startswith(_ROUTERS_OWN))
        )
        if entry.record.breaker.fault(trio.current_time(), self._jitter(), soft=soft):
            self._board.restate(entry)

    def tick(self, now_ms: int) -> None:
        """Once a second or so: nodes whose pause is over are tried, uptimes go on."""
        self._board.reopen(trio.current_time())
        self._board.line.forget()
        self._book.look(self._board, now_ms)

    async def _stand_in_line(
        self,
        request: UpstreamRequest,
        failed: Sequence[Address],
        keys: Sequence[Hashable],
        fits: Fits | None,
        kind: Hashable,
    ) -> NodeEntry | None:
        """Room that was waited for, taken. None: too late. Raises: as `route_now`; EMC-1709 for a full line."""
        until = trio.current_time() + self._rules.queue_timeout_s
        still_serves = self._serves(request, None)
        while True:
            try:
                left_s = max(0.0, until - trio.current_time())
                entry = await self._board.line.wait(keys, left_s, fits, kind=kind, group=request.model)
            except LineFull:
                WAITS.refused += 1
                raise overloaded("too many calls wait for a node", self._retry_after_s(keys)) from None
            if entry is None or still_serves(entry):
                return entry
            self.give_back(entry)  # it left, or took the model away, before this task ran
            entry = self.route_now(request, failed)
            if entry is not None:
                return entry

    def _lane(self, request: UpstreamRequest) -> Lane:
        lane = self._board.find_lane(request.endpoint, request.model)
        if lane is None:
            raise self._nobody(request)
        return lane

    def _key(self, request: UpstreamRequest) -> int | None:
        session = request.wish.session
        if session:
            return session_key(session)
        start = _PROMPT_STARTS.get(request.endpoint)
        return None if start is None else prefix_key(request.body, start)

    def _slowness(self, model: str) -> Callable[[NodeEntry], float] | None:
        if self._rules.strategy_of(model) == "least_loaded":
            return None

        def slowness(entry: NodeEntry) -> float:
            speed = entry.record.speeds.get(model)
            return 0.0 if speed is None else speed.slowness

        return slowness

    def _find_trial(self, lane: Lane, fits: Fits | None) -> NodeEntry | None:
        """A node that comes back gets the next call that it may do; elsewhere it would never be tried."""
        for entry in self._board.half_open:
            if entry.room > 0 and lane.find(entry.address) is entry and (fits is None or fits(entry)):
                return entry
        return None

    def _fits(self, lane: Lane, allowed: Collection[bytes] | None, failed: Sequence[Address]) -> Fits | None:
        """Which nodes may do it by their manifests and earlier failures; None: all."""
        if allowed is None:
            return (lambda entry: entry.address not in failed) if failed else None
        name = lane.key[1]
        return lambda entry: entry.address not in failed and entry.models[name].model_hash in allowed

    def _allowed(self, lane: Lane, wish: Wish) -> frozenset[bytes] | None:
        """The manifests that fit by price and quantization; None: all.

        Raises: ApiError EMC-1766, EMC-1767 where none fits.
        """
        if not wish.quantization and wish.max_price_micro is None:
            return None
        infos = list(lane.variants.values())
        kind = wish.quantization
        if kind:
            there = sorted({info.quantization for info in infos} - {""})
            infos = [info for info in infos if info.quantization == kind]
            if not infos:
                raise no_quantization(kind, there)
        ceiling = wish.max_price_micro
        if ceiling is not None:
            dearest = {info.model_hash: _dearer_way(self._price_now(info)) for info in infos}
            infos = [info for info in infos if dearest[info.model_hash] <= ceiling]
            if not infos:
                raise no_price(ceiling, min(dearest.values()))
        return frozenset(info.model_hash for info in infos)

    def _serves(self, request: UpstreamRequest, fits: Fits | None) -> Fits:
        """For who waits for nodes by name: whether the node serves the model still."""

        def serves(entry: NodeEntry) -> bool:
            lane = self._board.find_lane(request.endpoint, request.model)
            if lane is None or lane.find(entry.address) is not entry:
                return False
            return fits is None or fits(entry)

        return serves

    def _require_some(self, lane: Lane, wish: Wish, fits: Fits | None) -> None:
        """Raises: ApiError EMC-1708 where no node fits, busy or not."""
        if not any(fits is None or fits(node) for node in _named(lane, wish)):
            raise no_node("none of the nodes that may do this call is online with this model", RETRY_AFTER_S)

    def _require_hope(self, lane: Lane, wish: Wish, fits: Fits | None) -> None:
        """Raises: ApiError EMC-1708 where all that fit are broken for longer than calls wait, or suspended
        and not named."""
        now = trio.current_time()
        soonest = math.inf
        for node in _named(lane, wish):
            if (node.suspended and not wish.only) or (fits is not None and not fits(node)):
                continue
            if node.breaker is not BreakerState.OPEN:
                return
            soonest = min(soonest, node.record.breaker.reopens_at - now)
        if soonest > self._rules.queue_timeout_s:
            wait_s = _whole_seconds(soonest) if soonest < math.inf else LONGEST_RETRY_S
            raise no_node("every node that may do this call has failed of late", wait_s)

    def _nobody(self, request: UpstreamRequest) -> ApiError:
        board, model = self._board, request.model
        if model in board.list_delisted():
            return delisted_model(model)
        if board.knows_model(request.endpoint, model):
            return no_node(f"no node serves {model[:80]!r} at the moment", RETRY_AFTER_S)
        if board.is_empty:  # just started, most likely: what exists is not known
            return no_node("no node is connected", RETRY_AFTER_S)
        return unknown_model(model)

    def _retry_after_s(self, keys: Sequence[Hashable]) -> int:
        """When room for one more is to be expected, by how fast the line moves."""
        estimate = self._board.line.estimate_s(keys)
        return _whole_seconds(self._rules.queue_timeout_s if estimate is None else estimate)


def _named(lane: Lane, wish: Wish) -> list[NodeEntry]:
    """The nodes of the lane that the client may mean."""
    if not wish.only:
        return lane.nodes
    return [node for node in map(lane.find, wish.only) if node is not None]


def _dearer_way(price: ModelPrice) -> int:
    return max(price.input_micro_per_mtok, price.output_micro_per_mtok)


def _whole_seconds(seconds: float) -> int:
    return max(RETRY_AFTER_S, min(LONGEST_RETRY_S, math.ceil(seconds)))
