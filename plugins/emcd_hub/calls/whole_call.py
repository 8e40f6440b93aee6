"""A call whose answer is sent in one piece, by callbacks instead of a task that waits three times.

The client's task sleeps once, from the request to the row on disk: the node's tunnel judges the
answer and hands its row to the ledger (`_on_end`), the commit wakes the task (`_on_commit`). So a
call costs two switches of tasks less, and no timer: `CallSweep` looks at its deadline.

Invariants: the task is woken exactly once; once the row was handed over nothing but the commit, or
the ledger's deadline, ends the wait: a client that leaves then is charged like one that stays; what
goes wrong in a callback is raised in the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import trio
from trio.lowlevel import Abort, Task

from emcd.errors import EmcdError
from emcd.net.wake import WOKEN
from emcd.proto.tunnel_hub import HubCall
from emcd_hub.calls.answer import LARGE_BYTES, Answer, Judged, judge_answer, judge_aside, read_answer
from emcd_hub.calls.context import CallContext, NodeFault
from emcd_hub.calls.recorder import Settled
from emcd_hub.calls.sweep import CallSweep
from emcd_hub.nodes.link import NodeLink

LEAVE_S = 1.0
"""How long a node may take to say what it did of a call whose client left."""


class WholeCall(msgspec.Struct, eq=False):
    """One attempt at one node."""

    _context: CallContext
    _link: NodeLink
    _sweep: CallSweep
    _node_done: Callable[[], None]
    """Called when the node is free for the next call, before this one is recorded."""
    _upstream: HubCall | None = None
    _task: Task | None = None
    _answer: Answer | None = None
    _judged: Judged | None = None
    _settled: Settled | None = None
    _error: Exception | None = None
    _left: trio.Event | None = None
    _last_at: float = math.inf
    deadline: float = math.inf

    async def run(self) -> tuple[Judged, Settled]:
        """Returns when the call is on disk: what the client gets, and what it was charged.

        Raises: NodeFault, RecoverableError, RemoteProtocolError while nothing was recorded; FatalError
            when the ledger fails.
        Cancellation: the client left; `leave` says what the node did. Not any more once the row is
            being written.
        """
        context, limits = self._context, self._context.limits
        self._task = trio.lowlevel.current_task()
        self._upstream = self._link.submit(
            context.call.meta,
            context.request.body,
            self._on_end,
            max_bytes=limits.node_bytes(context.request),
        )
        self._last_at = self._sweep.after(limits.call_timeout_s)
        self.deadline = min(self._last_at, self._sweep.after(limits.answer_head_timeout_s))
        self._sweep.watched.add(self)
        try:
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        finally:
            self._sweep.watched.discard(self)
        if self._error is not None:
            raise self._error
        if self._answer is not None:
            self._judged = await judge_aside(context, self._answer)
        assert self._judged is not None
        if self._settled is None:  # the ledger's queue is full: wait for room in it
            self._settled = await context.settle(*self._judged[:5])
        return self._judged, self._settled

    async def leave(self) -> Judged | None:
        """The client left: stop the node, and take what it did, if it says so in time."""
        upstream = self._upstream
        if upstream is None:
            return None
        if self._judged is None and self._error is None:
            self._left = trio.Event()
            self._link.cancel(upstream)
            with trio.CancelScope(deadline=trio.current_time() + LEAVE_S, shield=True):
                await self._left.wait()
            if self._answer is not None:
                try:
                    self._judged = await judge_aside(self._context, self._answer)
                except (NodeFault, EmcdError) as exc:
                    self._error = exc
        if self._judged is None and self._error is None:
            self._link.drop(upstream)
        return self._judged

    def expire(self) -> None:
        """The node, or the ledger, took too long."""
        if self._task is None:
            return
        if self._settled is not None:
            self._wake(self._context.no_commit())
            return
        assert self._upstream is not None
        if self._upstream.head is not None and self._sweep.now < self._last_at:
            self.deadline = self._last_at  # the answer has begun: its end has a deadline of its own
            return
        self._link.drop(self._upstream)
        limits = self._context.limits
        seconds = min(limits.call_timeout_s, limits.answer_head_timeout_s)
        self._wake(NodeFault("timeout", f"the node did not answer within {seconds} s"))

    def _abort(self, _: Any) -> Abort:
        if self._settled is not None:
            return Abort.FAILED
        self._task = None
        return Abort.SUCCEEDED

    def _on_end(self, upstream: HubCall) -> None:
        """The node's last word (in the task that reads its tunnel)."""
        self._node_done()
        try:
            if upstream.error is not None:
                raise upstream.error
            assert upstream.head is not None
            assert upstream.end is not None
            answer = read_answer(upstream.head, upstream.body(), upstream.end)
            if len(answer.body) >= LARGE_BYTES:
                self._answer = answer
                self._wake(None)
            else:
                judged = judge_answer(self._context, answer)
                self._judged = judged
                if self._task is not None:
                    self._record(judged)
        except Exception as exc:  # noqa: BLE001 -- whatever it is, the task that waits for the call raises it
            self._wake(exc)
        if self._left is not None:
            self._left.set()

    def _record(self, judged: Judged) -> None:
        context = self._context
        recorder = context.recorder
        if not recorder.has_room:
            self._wake(None)
            return
        settled = recorder.prepare(context.call, *judged[:5])
        recorder.submit(settled, self._on_commit)
        self._settled = settled
        self.deadline = self._sweep.after(context.limits.record_timeout_s)

    def _on_commit(self, error: Exception | None, _: None) -> None:
        """The row is on disk, or will never be (in the loop)."""
        assert self._settled is not None
        self._context.close(self._settled, error)
        self._wake(error)

    def _wake(self, error: Exception | None) -> None:
        self._error = error
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, WOKEN)
