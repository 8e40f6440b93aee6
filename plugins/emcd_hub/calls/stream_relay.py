"""A streamed completion on its way from the node to the client.

Invariants: every event but the last reaches the client as it comes; the last (`[DONE]`) waits for
the call's row; the usage chunk reaches only who asked for it; a stream that fails ends with an
error event, one that the budget cuts with finish_reason "length", and neither silently.
"""

from __future__ import annotations

import math
from typing import Any

import sha3
import trio

from emcd.accounting.price import affordable_output_tokens_floor, charge_call_ceil
from emcd.accounting.usage import Usage
from emcd.proto.control import CallEnd, decode_part
from emcd.proto.openai import error_body
from emcd.proto.records import CallStatus
from emcd_hub.billing.book import AccountBook
from emcd_hub.calls.answer import EVENT_STREAM, judge_receipt, make_seen
from emcd_hub.calls.context import CallContext, NodeFault
from emcd_hub.calls.sse import EventKind, EventSplitter, classify_event, make_cut
from emcd_hub.nodes.link import OutgoingCall

_MORE_TOKENS = 4096
"""How much further a stream without a bound is reserved for when its reservation is used up."""


class StreamRelay:
    """One stream."""

    def __init__(self, context: CallContext, book: AccountBook, input_bound_tokens: int) -> None:
        self._context = context
        self._book = book
        self._input_bound = input_bound_tokens
        self._splitter = EventSplitter()
        self._size = 0
        self._received: Any = sha3.keccak_256()
        self._sent: Any = sha3.keccak_256()
        self._held = b""
        self._done = False
        self._first = b""
        self._usage: Usage | None = None
        self.produced = 0
        """Events with choices so far: what a stream is charged for that ends without a receipt."""
        self._budget = self._read_budget()

    @property
    def sent_hash(self) -> bytes:
        """Of what the client was sent so far."""
        return bytes(self._sent.digest())

    async def run(self, upstream: OutgoingCall, scope: trio.CancelScope) -> None:
        """Relay the stream and record the call.

        Args:
            scope: cancelled by its deadline when the node is idle for too long.

        Raises: NodeFault; what the tunnel raises; ClientGoneError. In all of these nothing is recorded.
        """
        idle_s = self._context.limits.idle_timeout_s
        async for piece in upstream.chunks():
            scope.deadline = math.inf
            self._size += len(piece)
            if self._size > self._context.limits.answer_bytes:
                raise NodeFault("size", "the node's stream is too large")
            self._received.update(piece)
            out = self._take(piece)
            if self.produced > self._budget and not self._extend():
                await self._cut(out)
                return
            if out:
                await self._send(out)
            scope.deadline = trio.current_time() + idle_s
        end = decode_part(await upstream.end(), CallEnd)
        scope.deadline = math.inf
        await self._finish(end)

    def _take(self, piece: bytes) -> bytes:
        """What of a piece goes to the client now."""
        out = []
        for event in self._splitter.feed(piece):
            if self._done:
                self._held += event
                continue
            kind, usage = classify_event(event)
            if usage is not None:
                self._usage = usage
            if kind is EventKind.DONE:
                self._done = True
                self._held = event
                continue
            if kind is EventKind.USAGE and not self._context.request.wants_usage:
                continue
            if kind is EventKind.CONTENT:
                self.produced += b'"choices"' in event
                self._first = self._first or event
            out.append(event)
        return out[0] if len(out) == 1 else b"".join(out)

    async def _send(self, out: bytes) -> None:
        self._sent.update(out)
        reply = self._context.reply
        if reply.begun:
            await reply.more(out)
            return
        held = self._context.call.reservation.amount_micro
        headers = self._context.headers(EVENT_STREAM, b"x-emc-credits-reserved", held)
        await reply.begin(200, [*headers, (b"cache-control", b"no-cache")], out)

    async def _finish(self, end: CallEnd) -> None:
        context = self._context
        seen = make_seen(context, 200, bytes(self._received.digest()), self._usage, self._size)
        remark = judge_receipt(end.receipt, seen)
        last = self._held + self._splitter.take_rest()
        if not context.reply.begun:
            await self._send(b"")
        self._sent.update(last)
        cost = context.recorder.cost_of(context.call, end.receipt.input_tokens, end.receipt.output_tokens)
        await context.settle(CallStatus.OK, end.receipt, self.sent_hash, cost, remark)
        await context.reply.end(last)

    async def _cut(self, out: bytes) -> None:
        """The account is empty: what came is still sent and charged, and the stream is ended."""
        context = self._context
        usage = Usage(0, self.produced) if context.request.wants_usage else None
        await self._send(out)
        last = make_cut(context.request.endpoint, self._first, usage)
        self._sent.update(last)
        await context.settle(CallStatus.CAPPED, None, self.sent_hash, self.cost_of_produced(), "budget")
        await context.reply.end(last)

    async def fail(self, detail: str) -> None:
        """Tell a client that has seen a part of the stream that no more will come."""
        body = error_body("EMC-1714", f"{detail} (EMC-1714)", type="server_error", code="stream_cut")
        await self._context.reply.end(b"data: " + body + b"\n\n")

    def cost_of_produced(self) -> int:
        """The price of what the hub itself saw, where no receipt tells the tokens."""
        if not self.produced:
            return 0
        context = self._context
        bound = context.limits.output_bound(context.request, self._size)
        return charge_call_ceil(context.call.price, 0, min(self.produced, bound))

    def _read_budget(self) -> float:
        """How many tokens the reservation pays for; without end when it covers the request's bound."""
        context = self._context
        held = context.call.reservation.amount_micro
        price = context.call.price
        budget = affordable_output_tokens_floor(price, held, self._input_bound)
        bound = context.request.output_bound_tokens
        return math.inf if bound is not None and budget >= bound else budget

    def _extend(self) -> bool:
        """Reserve for more tokens. Returns: whether the account had anything left."""
        price = self._context.call.price
        wanted = charge_call_ceil(price, self._input_bound, self.produced + _MORE_TOKENS)
        self._book.extend(self._context.call.reservation, wanted)
        self._budget = self._read_budget()
        return self.produced <= self._budget
