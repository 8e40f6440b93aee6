"""A call from a client's request to its answer: reserve, route, and try nodes until one does it.

The path is written for calls that go well: no task, no copy and no parsing that is not needed.
Invariants: what a client is told to be complete is on disk; while the client has seen nothing, a
node's failure is another node's turn, a bounded number of times; every attempt has one row, and
its reservation is closed whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from emcd.accounting.price import reservation_ceil
from emcd.proto.openai import Endpoint, UpstreamRequest
from emcd.types import Address
from emcd_hub.api.error import (
    ApiError,
    no_credit,
    no_node,
    node_failed,
    overloaded,
    too_many_calls,
    unknown_model,
)
from emcd_hub.api.reply import Reply
from emcd_hub.billing.book import AccountBook, Refused, Reservation
from emcd_hub.calls.attempt import Attempt
from emcd_hub.calls.context import CallContext, NodeFault
from emcd_hub.calls.limits import CallLimits
from emcd_hub.calls.recorder import CallRecorder, hash_request
from emcd_hub.metrics import IN_FLIGHT
from emcd_hub.nodes.board import NodeBoard, NodeEntry
from emcd_hub.nodes.routing import NoRoute, choose_node
from emcd_hub.nodes.status import ModelInfo

RETRY_AFTER_S = 1
PICKY_POLL_S = 0.05


class Gateway:
    """The calls of one hub."""

    def __init__(
        self,
        *,
        board: NodeBoard,
        book: AccountBook,
        recorder: CallRecorder,
        limits: CallLimits,
        is_open: Callable[[], str],
        draw: Callable[[int], int],
    ) -> None:
        """
        Args:
            is_open: "" while calls are taken, else why not.
            draw: `draw(n)` is a random number below n, for routing.
        """
        self._board = board
        self._book = book
        self._recorder = recorder
        self._limits = limits
        self._is_open = is_open
        self._draw = draw
        self._active = 0
        self._idle = trio.Event()
        IN_FLIGHT.set_function(lambda: self._active)

    @property
    def active(self) -> int:
        """Calls between their arrival and their end."""
        return self._active

    async def wait_idle(self) -> None:
        """Wait until no call is in flight."""
        while self._active:
            self._idle = trio.Event()
            await self._idle.wait()

    async def serve(self, account_id: str, request: UpstreamRequest, reply: Reply) -> None:
        """Do a call for an account.

        Raises: ApiError while nothing was sent to the client; FatalError when the ledger fails.
        Cancellation: the client left; what was produced is recorded and charged.
        """
        closed = self._is_open()
        if closed:
            raise overloaded(closed, RETRY_AFTER_S)
        if self._active >= self._limits.max_calls:
            raise overloaded("the hub is at its limit of calls in flight", RETRY_AFTER_S)
        self._active += 1
        try:
            await self._try_nodes(account_id, request, reply)
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _try_nodes(self, account_id: str, request: UpstreamRequest, reply: Reply) -> None:
        failed: list[Address] = []
        fault = ""
        began_at = trio.current_time()
        hash_of_request = hash_request(request)
        while len(failed) < self._limits.max_attempts:
            try:
                entry = await self._route(request, failed)
            except ApiError:
                if failed:
                    break
                raise
            info = entry.models[request.model]
            input_bound = _input_bound(request, info)
            try:
                held = self._reserve(account_id, request, info, input_bound)
            except ApiError:
                self._board.pass_on(request.endpoint, request.model)  # the room it was woken for
                raise
            try:
                call = self._recorder.open(request, hash_of_request, entry.address, info, held)
                context = CallContext(request, call, reply, self._recorder, self._limits, began_at)
                await Attempt(context, entry, self._board, self._book, input_bound).run()
                return
            except NodeFault as exc:
                failed.append(entry.address)
                fault = exc.detail
            finally:
                self._book.release(held)
        raise node_failed(f"{len(failed)} node(s) failed the call; the last: {fault}")

    def _reserve(
        self, account_id: str, request: UpstreamRequest, info: ModelInfo, input_bound: int
    ) -> Reservation:
        """Hold what the call can cost. A stream may begin with less: it is cut when that is used up."""
        output = request.output_bound_tokens
        if output is None:
            output = self._limits.default_output_tokens * request.choices
        price = self._recorder.price_now(info)
        wanted = reservation_ceil(price, input_bound, output)
        least = wanted
        if request.stream:
            few = min(output, self._limits.least_output_tokens * request.choices)
            least = reservation_ceil(price, input_bound, few)
        held = self._book.reserve(account_id, wanted, least)
        if isinstance(held, Reservation):
            return held
        if held is Refused.TOO_MANY_CALLS:
            raise too_many_calls(RETRY_AFTER_S)
        raise no_credit()

    async def _route(self, request: UpstreamRequest, failed: Sequence[Address]) -> NodeEntry:
        """The node for the next attempt, waiting in line for room where all are busy. Raises: ApiError.

        Who can't take every node of the model looks now and then instead: in the line it would be
        woken for room that it can't use.
        """
        board, endpoint, model = self._board, request.endpoint, request.model
        is_picky = bool(request.only or failed)
        if is_picky or not board.must_queue(endpoint, model):
            choice = self._choose(request, failed)
            if isinstance(choice, NodeEntry):
                return choice
        if board.count_waiting() >= self._limits.max_waiting:
            raise overloaded("too many calls wait for a node", RETRY_AFTER_S)
        with trio.move_on_after(self._limits.queue_timeout_s):
            while True:
                if is_picky:
                    await trio.sleep(PICKY_POLL_S)
                else:
                    await board.wait_room(endpoint, model)
                choice = self._choose(request, failed)
                if isinstance(choice, NodeEntry):
                    return choice
        raise overloaded("every node of the model is busy", RETRY_AFTER_S)

    def _choose(self, request: UpstreamRequest, failed: Sequence[Address]) -> NodeEntry | NoRoute:
        """Raises: ApiError where no node fits, busy or not."""
        candidates = self._board.candidates(request.endpoint, request.model)
        choice = choose_node(candidates, only=request.only, exclude=failed, draw=self._draw)
        if choice is NoRoute.NONE:
            raise self._nobody(request.endpoint, request.model, bool(candidates))
        return choice

    def _nobody(self, endpoint: Endpoint, model: str, others: bool) -> ApiError:
        if others:
            return no_node("none of the chosen nodes is online with this model", RETRY_AFTER_S)
        if self._board.knows_model(endpoint, model):
            return no_node(f"no node serves {model[:80]!r} at the moment", RETRY_AFTER_S)
        if self._board.is_empty:  # just started, most likely: what exists is not known
            return no_node("no node is connected", RETRY_AFTER_S)
        return unknown_model(model)


def _input_bound(request: UpstreamRequest, info: ModelInfo) -> int:
    """The most tokens that can go in: a token a byte, or what the model reads of each text."""
    if info.max_input_tokens is None:
        return request.input_bound_tokens
    return min(request.input_bound_tokens, request.inputs * info.max_input_tokens)
