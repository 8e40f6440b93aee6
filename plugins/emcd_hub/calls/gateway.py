"""A call from a client's request to its answer: reserve, route, and try nodes until one does it.

The path is written for calls that go well: no task, no copy and no parsing that is not needed.
Invariants: what a client is told to be complete is on disk; while the client has seen nothing, a
node's failure is another node's turn, a bounded number of times; every attempt has one row, and
its reservation is closed whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import msgspec
import trio

from emcd.accounting.price import reservation_ceil
from emcd.proto.openai import UpstreamRequest
from emcd.proto.params import ModelPrice
from emcd.types import Address
from emcd_hub.api.error import ApiError, closed, node_failed, overloaded
from emcd_hub.api.key_error import barred_call, refused_credit
from emcd_hub.api.reply import Reply
from emcd_hub.billing.admission import admit, find_bar
from emcd_hub.billing.book import WORTH_WAITING, AccountBook, Refused, Reservation
from emcd_hub.billing.credit_line import CreditWait
from emcd_hub.billing.keys import ApiKey
from emcd_hub.calls.attempt import Attempt
from emcd_hub.calls.context import CallContext, NodeFault
from emcd_hub.calls.limits import CallLimits
from emcd_hub.calls.once_writes import OnceWrites
from emcd_hub.calls.recorder import CallRecorder, Settled, hash_request
from emcd_hub.calls.sweep import CallSweep
from emcd_hub.metrics import IN_FLIGHT
from emcd_hub.nodes.board import NodeEntry
from emcd_hub.nodes.scheduler import Scheduler
from emcd_hub.nodes.status import ModelInfo

RETRY_AFTER_S = 1


class Taken(msgspec.Struct, frozen=True, gc=False):
    """A node that was taken for a call, and what the call holds of its account."""

    entry: NodeEntry
    info: ModelInfo
    input_bound_tokens: int
    held: Reservation
    now_ms: int
    price: ModelPrice


class Gateway:
    """The calls of one hub."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        book: AccountBook,
        recorder: CallRecorder,
        limits: CallLimits,
        is_open: Callable[[], str],
        on_evidence: Callable[[UpstreamRequest, Settled], None],
    ) -> None:
        """
        Args:
            is_open: "" while calls are taken, else why not.
            on_evidence: told of calls whose answers name their tokens, when they are on disk.
        """
        self._scheduler = scheduler
        self._book = book
        self._recorder = recorder
        self._limits = limits
        self._is_open = is_open
        self._on_evidence = on_evidence
        self._active = 0
        self._idle = trio.Event()
        self.sweep = CallSweep()
        """Its `run` is the role's task."""
        self.wants_evidence = scheduler.wants_evidence
        """Whether calls of a model at an endpoint ask for what a judge needs. From any thread."""
        IN_FLIGHT.set_function(lambda: self._active)

    @property
    def active(self) -> int:
        """Calls between their arrival and their end."""
        return self._active

    @property
    def once_writes(self) -> OnceWrites:
        """The rows under way of requests with an Idempotency-Key."""
        return self._recorder.once_writes

    async def wait_idle(self) -> None:
        """Wait until no call is in flight."""
        while self._active:
            self._idle = trio.Event()
            await self._idle.wait()

    def require_open(self, key: ApiKey) -> None:
        """What can be said of a call before its body is read. Nothing is counted. Raises: ApiError."""
        reason = self._is_open()
        if reason:
            raise closed(reason, RETRY_AFTER_S)
        now_ms = self._recorder.now_ms()
        if key.limits is not None:
            barred = find_bar(key.limits, key.meter, now_ms)
            if barred is not None:
                raise barred_call(barred, key, "", now_ms)
        refused = self._book.find_bar(key)
        if refused is Refused.INSUFFICIENT and self._recorder.has_free_model(now_ms):
            refused = None
        if refused is not None:
            raise refused_credit(refused, key, 0, now_ms)

    async def serve(self, key: ApiKey, request: UpstreamRequest, reply: Reply) -> None:
        """Do a call for a key's account.

        Raises: ApiError while nothing was sent to the client; FatalError when the ledger fails.
        Cancellation: the client left; what was produced is recorded and charged.
        """
        reason = self._is_open()
        if reason:
            raise closed(reason, RETRY_AFTER_S)
        if self._active >= self._limits.max_calls:
            raise overloaded("the hub is at its limit of calls in flight", RETRY_AFTER_S)
        meter = key.meter
        if key.limits is not None:
            now_ms = self._recorder.now_ms()
            barred = admit(key.limits, meter, request.model, now_ms)
            if barred is not None:
                raise barred_call(barred, key, request.model, now_ms)
        meter.calls += 1
        self._active += 1
        try:
            await self._try_nodes(key, request, reply)
        finally:
            meter.calls -= 1
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _try_nodes(self, key: ApiKey, request: UpstreamRequest, reply: Reply) -> None:
        failed: list[Address] = []
        fault = ""
        began_at = perf_counter()
        hash_of_request = hash_request(request)
        while len(failed) < self._limits.max_attempts:
            try:
                taken = self._take_now(key, request, failed)
                if taken is None:
                    taken = await self._take(key, request, failed)
            except ApiError:
                if failed:
                    break
                raise
            attempt: Attempt | None = None
            entry, held = taken.entry, taken.held
            try:
                call = self._recorder.open(
                    request, hash_of_request, entry.address, entry.router, taken.info, held, taken.price,
                    taken.now_ms,
                )  # fmt: skip
                context = CallContext(
                    request, call, reply, self._recorder, self._limits, began_at, self._on_evidence
                )  # fmt: skip
                attempt = Attempt(
                    context, entry, self._scheduler, self._book, self.sweep, taken.input_bound_tokens
                )
                await attempt.run()
                return
            except NodeFault as exc:
                failed.append(entry.address)
                fault = exc.detail
            finally:
                self._book.release(held)
                if attempt is None:
                    self._scheduler.give_back(entry)
        raise node_failed(f"{len(failed)} node(s) failed the call; the last: {fault}")

    def _take_now(self, key: ApiKey, request: UpstreamRequest, failed: Sequence[Address]) -> Taken | None:
        """The usual way: a node is free, and so is the credit. None: `_take`. Raises: ApiError."""
        entry = self._scheduler.route_now(request, failed)
        if entry is None:
            return None
        taken = self._reserve(key, request, entry, None)
        return taken if isinstance(taken, Taken) else None

    async def _take(self, key: ApiKey, request: UpstreamRequest, failed: Sequence[Address]) -> Taken:
        """A node, and what the call can cost there. Where calls in flight hold the credit, it waits a moment
        for that, and then looks for a node again. Raises: ApiError.
        """
        wait: CreditWait | None = None
        try:
            while True:
                entry = self._scheduler.route_now(request, failed)
                if entry is None:
                    with self._waiting(key):
                        entry = await self._scheduler.route(request, failed)
                taken = self._reserve(key, request, entry, wait)
                if isinstance(taken, Taken):
                    return taken
                if wait is None:
                    wait = CreditWait(self._book, key, self._limits.credit_wait_s)
                with self._waiting(key):
                    await wait.wait(taken)
        finally:
            if wait is not None:
                wait.close()

    @contextmanager
    def _waiting(self, key: ApiKey) -> Iterator[None]:
        """A call that waits is one of its account's: nobody fills the line for all. Raises: ApiError."""
        refused = self._book.begin_wait(key)
        if refused is not None:
            raise refused_credit(refused, key, 0, self._recorder.now_ms())
        try:
            yield
        finally:
            self._book.end_wait(key)

    def _reserve(
        self, key: ApiKey, request: UpstreamRequest, entry: NodeEntry, wait: CreditWait | None
    ) -> Taken | Refused:
        """Hold what the call can cost at a node that was taken for it; else the node is given back.

        A stream may begin with less: it is cut when that is used up.
        Returns: why not, where it is worth waiting. Raises: ApiError.
        """
        info = entry.models[request.model]
        now_ms = self._recorder.now_ms()
        input_bound = _input_bound(request, info)
        output = request.output_bound_tokens
        if output is None:
            output = self._limits.default_output_tokens * request.choices
        price = self._recorder.price_at(info, now_ms)
        wanted = least = reservation_ceil(price, input_bound, output)
        if request.stream:
            few = min(output, self._limits.least_output_tokens * request.choices)
            least = reservation_ceil(price, input_bound, few)
        tokens = input_bound + output
        if wait is None:
            held = self._book.reserve(key, wanted, least, now_ms, tokens)
        else:
            held = self._book.reserve(key, wanted, least, now_ms, tokens, wait.place, wait.is_over)
        if isinstance(held, Reservation):
            return Taken(entry, info, input_bound, held, now_ms, price)
        self._scheduler.give_back(entry)
        if held in WORTH_WAITING and (wait is None or not wait.is_over):
            return held
        raise refused_credit(held, key, tokens, now_ms)


def _input_bound(request: UpstreamRequest, info: ModelInfo) -> int:
    """The most tokens that can go in: a token a byte, or what the model reads of each text."""
    if info.max_input_tokens is None:
        return request.input_bound_tokens
    return min(request.input_bound_tokens, request.inputs * info.max_input_tokens)
