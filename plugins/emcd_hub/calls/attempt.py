"""One attempt at one node: forward, answer, and a row in the ledger whatever happens.

Invariant: when `run` is left, the call's row is on disk or the ledger has failed.
"""

from __future__ import annotations

import trio

from emcd.errors import EmcdError, RecoverableError, RemoteProtocolError
from emcd.net.http_exchange import ClientGoneError
from emcd.proto.control import ResponseHead, decode_part
from emcd.proto.hashing import keccak
from emcd.proto.records import CallStatus
from emcd_hub.billing.book import AccountBook
from emcd_hub.calls.answer import Answer, collect_answer, deliver_answer, require_status
from emcd_hub.calls.context import CallContext, NodeFault
from emcd_hub.calls.stream_relay import StreamRelay
from emcd_hub.metrics import count_node_fault
from emcd_hub.nodes.board import NodeBoard, NodeEntry

_EMPTY_HASH = keccak(b"")
_FAULT_CHARS = 200


class Attempt:
    """One call at one node."""

    def __init__(
        self,
        context: CallContext,
        entry: NodeEntry,
        board: NodeBoard,
        book: AccountBook,
        input_bound_tokens: int,
    ) -> None:
        self._context = context
        self._entry = entry
        self._board = board
        self._book = book
        self._input_bound = input_bound_tokens
        self._relay: StreamRelay | None = None
        self._at_node = False

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

    async def _whole(self) -> None:
        context = self._context
        answer: Answer | None = None
        with trio.CancelScope(deadline=trio.current_time() + context.limits.call_timeout_s):
            self._take()
            try:
                async with self._entry.link.call(context.call.meta, context.request.body) as upstream:
                    answer = await collect_answer(upstream, context.limits.answer_bytes)
            finally:
                self._give_back()
        if answer is None:
            raise NodeFault("timeout", f"the node did not answer within {context.limits.call_timeout_s} s")
        await deliver_answer(context, answer)

    async def _stream(self) -> None:
        context = self._context
        answer: Answer | None = None
        with trio.CancelScope(deadline=trio.current_time() + context.limits.head_timeout_s) as scope:
            self._take()
            try:
                async with self._entry.link.call(context.call.meta, context.request.body) as upstream:
                    head = decode_part(await upstream.head(), ResponseHead)
                    require_status(head)
                    if head.status == 200 and head.content_type.startswith("text/event-stream"):
                        self._relay = StreamRelay(context, self._book, self._input_bound)
                        await self._relay.run(upstream, scope)
                        return
                    scope.deadline = trio.current_time() + context.limits.call_timeout_s
                    answer = await collect_answer(upstream, context.limits.answer_bytes)
            finally:
                self._give_back()
        if answer is None:
            raise NodeFault("timeout", "the node is silent")
        await deliver_answer(context, answer)

    def _take(self) -> None:
        self._board.take(self._entry)
        self._at_node = True

    def _give_back(self) -> None:
        """The node is free for the next call while this one is still being recorded."""
        if self._at_node:
            self._at_node = False
            self._board.give_back(self._entry)

    async def _fail(self, exc: NodeFault | EmcdError) -> None:
        """Record the failure; a client that has seen a part is told, another may get another node."""
        context = self._context
        if context.call.settled:
            raise exc
        kind = exc.kind if isinstance(exc, NodeFault) else exc.code
        detail = exc.detail[:_FAULT_CHARS]
        count_node_fault(kind)
        begun = self._relay is not None and context.reply.begun
        body_hash = self._relay.sent_hash if self._relay is not None else _EMPTY_HASH
        await context.settle(CallStatus.NODE_ERROR, None, body_hash, 0, f"{kind}: {detail}")
        if not begun:
            raise NodeFault(kind, detail)
        assert self._relay is not None
        await self._relay.fail("the node failed in the middle of the stream")

    async def _abandon(self) -> None:
        """The client left: what the hub has sent on is charged, and nothing else."""
        context, relay = self._context, self._relay
        if context.call.settled:
            return
        cost = 0 if relay is None else relay.cost_of_produced()
        body_hash = _EMPTY_HASH if relay is None else relay.sent_hash
        await context.settle(CallStatus.CANCELLED, None, body_hash, cost, "the client left")
