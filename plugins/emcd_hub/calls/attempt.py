"""One attempt at one node: forward, answer, and a row in the ledger whatever happens.

Invariant: when `run` is left, the call's row is on disk or the ledger has failed.
"""

from __future__ import annotations

from time import perf_counter

import trio

from emcd.errors import EmcdError, RecoverableError, RemoteProtocolError
from emcd.net.http_exchange import ClientGoneError
from emcd.proto.control import ResponseHead, decode_part
from emcd.proto.hashing import keccak
from emcd.proto.records import CallStatus, Receipt
from emcd.proto.tunnel import StatedError
from emcd_hub.api.reply import KeepingReply
from emcd_hub.billing.book import AccountBook
from emcd_hub.calls.answer import Answer, Judged, collect_answer, judge_aside, require_status
from emcd_hub.calls.context import CallContext, NodeFault
from emcd_hub.calls.recorder import Settled
from emcd_hub.calls.stream_relay import StreamRelay, make_relay
from emcd_hub.calls.sweep import CallSweep
from emcd_hub.calls.whole_call import WholeCall
from emcd_hub.metrics import count_node_fault
from emcd_hub.nodes.board import NodeEntry
from emcd_hub.nodes.scheduler import Scheduler

_EMPTY_HASH = keccak(b"")
_LEFT = "the client left"
_FAULT_CHARS = 200


class Attempt:
    """One call at one node, which was taken for it; `run` gives it back."""

    __slots__ = (
        "_at_node",
        "_began_at",
        "_book",
        "_call",
        "_context",
        "_ended_at",
        "_entry",
        "_input_bound",
        "_relay",
        "_scheduler",
        "_sweep",
    )

    def __init__(
        self,
        context: CallContext,
        entry: NodeEntry,
        scheduler: Scheduler,
        book: AccountBook,
        sweep: CallSweep,
        input_bound_tokens: int,
    ) -> None:
        self._context = context
        self._entry = entry
        self._scheduler = scheduler
        self._book = book
        self._input_bound = input_bound_tokens
        self._sweep = sweep
        self._relay: StreamRelay | None = None
        self._call: WholeCall | None = None
        self._at_node = True
        self._began_at = self._ended_at = perf_counter()

    async def run(self) -> None:
        """Answer the client.

        Raises: NodeFault when the node failed and the client has seen nothing of it.
        Cancellation: the client left; the call is cancelled at the node, recorded and charged.
        """
        try:
            if self._context.request.stream:
                await self._stream()
            else:
                await self._whole()
        except (NodeFault, RecoverableError, RemoteProtocolError) as exc:
            await self._fail(exc)
        except (trio.Cancelled, ClientGoneError):
            await self._abandon()
            raise
        finally:
            self._give_back()
            self._call = None  # each holds the other: the collector would have to find every call

    async def _whole(self) -> None:
        whole = self._call = WholeCall(self._context, self._entry.link, self._sweep, self._give_back)
        judged, settled = await whole.run()
        self._report(judged.receipt, None)
        await self._reply(judged, settled)

    async def _stream(self) -> None:
        context = self._context
        answer: Answer | None = None
        with trio.CancelScope(deadline=trio.current_time() + context.limits.head_timeout_s) as scope:
            try:
                async with self._entry.link.call(context.call.meta, context.request.body) as upstream:
                    head = decode_part(await upstream.head(), ResponseHead)
                    require_status(head)
                    self._relay = make_relay(context, self._book, self._input_bound, head)
                    if self._relay is not None:
                        await self._relay.run(upstream, scope, self._sweep)
                        self._give_back()
                        if self._relay.receipt is not None:
                            self._report(self._relay.receipt, self._relay.first_at)
                        return
                    scope.deadline = trio.current_time() + context.limits.call_timeout_s
                    answer = await collect_answer(upstream, context.limits.node_bytes(context.request))
            finally:
                self._give_back()
        if answer is None:
            raise NodeFault("timeout", "the node is silent")
        judged = await judge_aside(context, answer)
        settled = await context.settle(*judged[:5])
        self._report(judged.receipt, None)
        await self._reply(judged, settled)

    async def _reply(self, judged: Judged, settled: Settled) -> None:
        """What the node answered, now that it is on disk."""
        headers = self._headers(judged, settled)
        await self._context.reply.whole(judged.http_status, headers, judged.body)

    def _headers(self, judged: Judged, settled: Settled) -> list[tuple[bytes, bytes]]:
        return self._context.headers(judged.content_type, b"x-emc-credits", settled.charge.total_micro)

    def _give_back(self) -> None:
        """The node is free for the next call while this one is still being recorded."""
        if self._at_node:
            self._at_node = False
            self._ended_at = perf_counter()
            self._scheduler.give_back(self._entry)

    def _report(self, receipt: Receipt, first_at: float | None) -> None:
        """The call is on disk: what it says of the node's speed. A refusal says nothing, and
        what an engine counts of a sound or an image says nothing of tokens a second."""
        if 200 <= receipt.http_status < 300:
            request = self._context.request
            entered, made = self._context.call.find_proven((receipt.input_tokens, receipt.output_tokens))
            tokens = made or entered
            self._scheduler.report_ok(
                self._entry,
                request.model,
                seconds=self._ended_at - self._began_at,
                first_s=None if first_at is None else first_at - self._began_at,
                tokens=0 if request.endpoint.is_media else tokens,
            )

    async def _fail(self, exc: NodeFault | EmcdError) -> None:
        """Record the failure; a client that has seen a part is told, another may get another node."""
        context = self._context
        if context.call.settled:
            raise exc
        kind = exc.kind if isinstance(exc, NodeFault) else exc.code
        detail = exc.detail[:_FAULT_CHARS]
        count_node_fault(kind)
        own = isinstance(exc, RecoverableError) and not isinstance(exc, StatedError)
        self._scheduler.report_fault(self._entry, context.request.model, kind, own=own)
        begun = self._relay is not None and context.reply.begun
        body_hash = self._relay.sent_hash if self._relay is not None else _EMPTY_HASH
        await context.settle(CallStatus.NODE_ERROR, None, body_hash, 0, f"{kind}: {detail}")
        if not begun:
            raise NodeFault(kind, detail)
        assert self._relay is not None
        await self._relay.fail("the node failed in the middle of the stream")

    async def _abandon(self) -> None:
        """The client left: what the node had produced by then is charged, and nothing else.

        A whole answer is delivered all the same where it is kept for a client that asks again.
        """
        context, relay = self._context, self._relay
        if context.call.settled:
            return
        if relay is None:
            judged = None if self._call is None else await self._call.leave()
            if judged is None:
                await context.settle(CallStatus.CANCELLED, None, _EMPTY_HASH, 0, _LEFT)
            elif isinstance(context.reply, KeepingReply) and 200 <= judged.http_status < 300:
                settled = await context.settle(*judged[:5])
                context.reply.keep(judged.http_status, self._headers(judged, settled), judged.body)
            else:
                remark = judged.remark or _LEFT
                await context.settle(
                    CallStatus.CANCELLED, judged.receipt, _EMPTY_HASH, judged.cost_micro, remark
                )
            return
        cost, remark = relay.cost_of_left(), relay.remark or _LEFT
        await context.settle(CallStatus.CANCELLED, relay.receipt, relay.sent_hash, cost, remark)
