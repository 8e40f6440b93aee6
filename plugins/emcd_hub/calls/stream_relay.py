"""A streamed answer on its way from the node to the client: events, or the bytes of a sound.

Invariants: every piece but the last reaches the client as it comes; the end (`[DONE]`, a final event, the
end of a sound) waits for the call's row; a stream of events that fails ends with an error event, one that
the budget cuts as its API ends an answer that is too long, and neither silently; a sound that fails is cut
off, so that its client sees no proper end. When a client leaves, or the budget ends, the node is told, and
its receipt over what it had sent by then is waited for, a second at most: so it is paid for what it did.

While all that came was sent on, one running hash serves for both.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import sha3
import trio

from emcd.accounting.price import affordable_output_tokens_floor, charge_call_ceil
from emcd.accounting.usage import Usage
from emcd.errors import EmcdError
from emcd.net.http_exchange import ClientGoneError
from emcd.proto.control import CallEnd, ResponseHead, decode_part
from emcd.proto.openai_media import find_answer_type
from emcd.proto.openai_shape import JSON, Endpoint
from emcd.proto.records import CallStatus, Receipt
from emcd.proto.tunnel import WINDOW_BYTES
from emcd_hub.billing.book import AccountBook
from emcd_hub.calls.answer import NO_USAGE, judge_receipt, make_seen, make_seen_of_left
from emcd_hub.calls.context import CallContext, NodeFault
from emcd_hub.calls.passage import EventPassage, EvidencePassage, Passage, SoundPassage
from emcd_hub.calls.recorder import Settled
from emcd_hub.calls.sweep import CallSweep, ScopeDeadline
from emcd_hub.metrics import count_node_fault
from emcd_hub.nodes.link import OutgoingCall

LAST_WORD_S = 1.0
"""How long a node that was told to stop has for its receipt."""
_EVENTS = "text/event-stream"
_MORE_TOKENS = 256
"""How much further a stream is reserved for when its reservation is used up: see `billing.book`."""


def make_relay(
    context: CallContext, book: AccountBook, input_bound_tokens: int, head: ResponseHead
) -> StreamRelay | None:
    """The relay of an answer that begins with this head; None when it is none that comes in pieces."""
    request = context.request
    kind = find_answer_type(request.endpoint, head.content_type)
    if head.status != 200 or not request.stream:
        return None
    if kind == _EVENTS:
        passage = (
            EvidencePassage(request, context.call.owes_evidence)
            if request.evidence
            else EventPassage(request)
        )
        return StreamRelay(context, book, input_bound_tokens, passage, kind)
    if request.endpoint is Endpoint.SPEECH and kind not in ("", JSON):
        return StreamRelay(context, book, input_bound_tokens, SoundPassage(), kind)
    return None


class StreamRelay:
    """One stream. Attributes:

    receipt: the node's, over all of it, or over what it had sent when the client left or the budget was
        used up.
    remark: what the call's row says of that receipt.
    first_at: when its first piece went to the client, by `perf_counter`.
    """

    def __init__(
        self,
        context: CallContext,
        book: AccountBook,
        input_bound_tokens: int,
        passage: Passage,
        content_type: str,
    ) -> None:
        self._context = context
        self._book = book
        self._input_bound = input_bound_tokens
        self._passage = passage
        self._content_type = content_type.encode()
        self._size = self._told = 0
        """Bytes that came, and those of them that are no evidence."""
        request, limits = context.request, context.limits
        self._has_evidence = request.evidence
        context.call.held = passage.held
        self._most_bytes = limits.node_bytes(request)
        self._most_told = limits.answer_bytes if request.hidden is not None else self._most_bytes
        self._own_count: Usage | None = None
        self._received: Any = sha3.keccak_256()
        self._sent: Any = None
        self.receipt: Receipt | None = None
        self.first_at: float | None = None
        self.remark = ""
        self._budget = self._read_budget()

    @property
    def sent_hash(self) -> bytes:
        """Of what the client was sent so far."""
        return bytes((self._sent or self._received).digest())

    @property
    def produced(self) -> int:
        """What the stream brought so far."""
        return self._passage.produced

    async def run(self, upstream: OutgoingCall, scope: trio.CancelScope, sweep: CallSweep) -> None:
        """Relay the stream and record the call.

        Args:
            scope: cancelled when the node is idle for too long, which `sweep` looks after.

        Raises: NodeFault; what the tunnel raises; ClientGoneError. In all of these nothing is recorded.
        Cancellation: the client left; `receipt` is set if the node gave one in time.
        """
        scope.deadline = math.inf
        watch = ScopeDeadline(scope)
        sweep.watched.add(watch)
        try:
            await self._relay(upstream, watch, sweep)
        except (trio.Cancelled, ClientGoneError):
            if not self._context.call.settled and not scope.cancel_called:
                await self._stop(upstream)
            raise
        finally:
            sweep.watched.discard(watch)

    async def fail(self, detail: str) -> None:
        """Tell a client that has seen a part of the stream that no more will come.

        Raises: RecoverableError EMC-1714 where that can only be told by cutting the connection.
        """
        await self._context.reply.end(self._passage.make_error(detail))

    def cost_of_left(self) -> int:
        """The price of a stream that was left or cut, at most what it holds.

        By the node's receipt, else by what the hub itself counted until then; nothing if the engine failed.
        """
        context, receipt, passage = self._context, self.receipt, self._passage
        if not passage.produced or passage.is_failed:
            return 0
        if receipt is not None:
            entered, made = context.call.find_proven((receipt.input_tokens, receipt.output_tokens))
        else:
            entered, made = self._own_count or passage.own_count
            made = min(made, context.limits.output_bound(context.request, self._told))
        cost = context.recorder.cost_of(context.call, entered, made)
        return min(cost, context.call.reservation.amount_micro)

    async def _relay(self, upstream: OutgoingCall, watch: ScopeDeadline, sweep: CallSweep) -> None:
        idle_s = self._context.limits.idle_timeout_s
        watch.deadline = sweep.after(idle_s)
        async for piece in upstream.chunks():
            watch.deadline = math.inf
            out = self._receive(piece)
            if self._passage.produced > self._budget and not self._extend():
                await self._cut(upstream, out)
                return
            if out:
                upstream.patient = True  # nobody else can go on with it: a lost tunnel is waited for
                await self._send(out)
            watch.deadline = sweep.after(idle_s)
        end = decode_part(await upstream.end(), CallEnd)
        watch.deadline = math.inf
        await self._finish(end.receipt)

    def _receive(self, piece: bytes) -> bytes:
        """Count a piece. Returns: what of it goes to the client now."""
        self._size += len(piece)
        if self._size > self._most_bytes:
            raise NodeFault("size", "the node's stream is too large")
        out = self._passage.take(piece)
        self._told += len(out) if self._has_evidence else len(piece)
        if self._told > self._most_told:
            raise NodeFault("size", "the node's stream is too large")
        if self._sent is None and out is not piece and out != piece:
            self._part()
        self._received.update(piece)
        return out

    def _part(self) -> None:
        """From here on what came and what was sent differ."""
        if self._sent is None:
            self._sent = self._received.copy()

    async def _send(self, out: bytes) -> None:
        if self._sent is not None:
            self._sent.update(out)
        reply = self._context.reply
        if reply.begun:
            await reply.more(out)
            return
        self.first_at = perf_counter()
        held = self._context.call.reservation.amount_micro
        headers = self._context.headers(self._content_type, b"x-emc-credits-reserved", held)
        await reply.begin(200, [*headers, (b"cache-control", b"no-cache")], out, trailers=True)

    async def _finish(self, receipt: Receipt) -> None:
        context = self._context
        received = bytes(self._received.digest())
        last = self._passage.take_rest()
        if self._passage.fault:
            raise NodeFault("stream", self._passage.fault)
        passage = self._passage
        remark = judge_receipt(receipt, make_seen(context, 200, received, passage.usage, self._told))
        context.call.uncounted_tokens = passage.uncounted
        if not context.reply.begun:
            await self._send(b"")
        if self._sent is not None:
            self._sent.update(last)
        status, cost, claim = context.price(receipt)
        self.receipt = receipt
        settled = await context.settle(status, receipt, self.sent_hash, cost, claim or remark)
        await self._end(last, settled)

    async def _cut(self, upstream: OutgoingCall, out: bytes) -> None:
        """The account is empty: what came is still sent and charged, and the stream is ended."""
        context = self._context
        await self._send(out)
        last = self._passage.make_cut()
        await self._stop(upstream)
        self._sent.update(last)
        cost = self.cost_of_left()
        remark = self.remark or "budget"
        settled = await context.settle(CallStatus.CAPPED, self.receipt, self.sent_hash, cost, remark)
        await self._end(last, settled)

    async def _end(self, last: bytes, settled: Settled) -> None:
        credits = b"%d.%06d" % divmod(settled.charge.total_micro, 1_000_000)
        await self._context.reply.end(last, [(b"x-emc-credits", credits)])

    async def _stop(self, upstream: OutgoingCall) -> None:
        """Tell the node to stop, and take what is under way until its receipt, if that comes in time."""
        self._part()
        self._own_count = self._passage.own_count
        stopped_at, stated = self._told, self._passage.usage
        with trio.CancelScope(deadline=trio.current_time() + LAST_WORD_S, shield=True):
            try:
                upstream.stop()
                async for piece in upstream.chunks():
                    self._receive(piece)
                receipt = decode_part(await upstream.end(), CallEnd).receipt
                may = stopped_at + min(self._told - stopped_at, WINDOW_BYTES)  # a token is at least a byte
                if stated is not None:
                    may = max(may, stated.output_tokens)
                received = bytes(self._received.digest())
                seen = make_seen_of_left(self._context, received, self._find_used(receipt), self._told, may)
                self.remark = judge_receipt(receipt, seen)
                self.receipt = receipt
                self._context.call.uncounted_tokens = self._passage.uncounted
            except NodeFault as exc:
                count_node_fault(exc.kind)
            except EmcdError as exc:
                count_node_fault(exc.code)

    def _find_used(self, receipt: Receipt) -> Usage:
        """What the receipt of a stopped stream must say: what both sides count, or the end's statement."""
        counted = self._passage.counted
        if (receipt.input_tokens, receipt.output_tokens) == counted:
            return counted
        self._passage.take_rest()
        return (self._passage.usage or NO_USAGE) if self._passage.is_ended else counted

    def _read_budget(self) -> float:
        """How many tokens the reservation pays for; without end when it covers the request's bound.

        What a sound or an image costs at most is held from the beginning.
        """
        context = self._context
        if context.request.endpoint.is_media:
            return math.inf
        held = context.call.reservation.amount_micro
        price = context.call.price
        budget = affordable_output_tokens_floor(price, held, self._input_bound)
        bound = context.request.output_bound_tokens
        return math.inf if bound is not None and budget >= bound else budget

    def _extend(self) -> bool:
        """Reserve for more tokens. Returns: whether the account had anything left."""
        price = self._context.call.price
        wanted = charge_call_ceil(price, self._input_bound, self._passage.produced + _MORE_TOKENS)
        self._book.extend(self._context.call.reservation, wanted, self._context.recorder.now_ms())
        self._budget = self._read_budget()
        return self._passage.produced <= self._budget
