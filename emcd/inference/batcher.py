"""Dynamic batching: texts that arrive while a run is going on share the next one.

Owns the tasks that run batches in threads. Nothing waits for a batch to fill: an idle runner
starts at once. Invariants: the queue is bounded in tokens, which bounds the wait too; a caller
that is cancelled takes only its own waiting texts away; a run that fails is told to the callers
whose texts were in it, and the next run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import trio

from emcd.errors import RecoverableError
from emcd.inference.batch_queue import BatchLimits, BatchQueue, PendingCall, WaitingText
from emcd.inference.session import Vectors

RunBatch = Callable[[Sequence[Sequence[int]]], Vectors]


class EmbedRefusal(Enum):
    """Why texts were not embedded."""

    TOO_LARGE = "more tokens than the queue ever holds"
    OVERLOADED = "too many tokens wait already"
    WAITED_TOO_LONG = "no run got to it in time"


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait (in tokens, without padding), and for how long."""

    waiting_tokens: int = 131_072
    wait_s: float = 30.0


@dataclass(eq=False)
class _Call(PendingCall):
    vectors: list[Vectors | None] = field(default_factory=list)
    missing: int = 0
    error: RecoverableError | None = None
    done: trio.Event = field(default_factory=trio.Event)


class Batcher:
    """Gathers token ids from many tasks and runs them in batches."""

    def __init__(
        self, run_batch: RunBatch, batch: BatchLimits, queue: QueueLimits, parallel_runs: int
    ) -> None:
        self._run_batch = run_batch
        self._queue = BatchQueue(batch)
        self._limits = queue
        self._limiter = trio.CapacityLimiter(parallel_runs)
        self._idle = trio.lowlevel.ParkingLot()

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a run: the load."""
        return self._queue.waiting_tokens

    async def run(self) -> None:
        """Run batches until cancelled; a batch that is running is waited for (at most one run's time)."""
        async with trio.open_nursery() as nursery:
            for _ in range(int(self._limiter.total_tokens)):
                nursery.start_soon(self._run_batches)

    async def submit(self, texts: Sequence[Sequence[int]]) -> Vectors | EmbedRefusal:
        """Vectors of token ids, float32 [len(texts), dimension]; at least one text.

        Raises: RecoverableError EMC-1605 when a run with one of these texts failed.
        Cancellation: waiting texts are dropped; a running batch goes on for the others.
        """
        tokens = sum(map(len, texts))
        if tokens > self._limits.waiting_tokens:
            return EmbedRefusal.TOO_LARGE
        if tokens + self._queue.waiting_tokens > self._limits.waiting_tokens:
            return EmbedRefusal.OVERLOADED
        call = _Call(texts, vectors=[None] * len(texts), missing=len(texts))
        self._queue.add(call)
        self._idle.unpark_all()
        try:
            with trio.move_on_after(self._limits.wait_s):
                await call.done.wait()
        finally:
            self._queue.drop(call)
        if call.error is not None:
            raise RecoverableError(call.error.code, call.error.detail)
        if call.missing:
            return EmbedRefusal.WAITED_TOO_LONG
        return np.stack([vector for vector in call.vectors if vector is not None])

    async def _run_batches(self) -> None:
        while True:
            batch = self._queue.take()
            if not batch:
                await self._idle.park()
                continue
            token_ids = [text.call.texts[text.position] for text in batch]
            try:
                vectors = await trio.to_thread.run_sync(self._run_batch, token_ids, limiter=self._limiter)
            except RecoverableError as exc:
                self._fail(batch, exc)
            else:
                _deliver(batch, vectors)

    def _fail(self, batch: list[WaitingText], error: RecoverableError) -> None:
        for call in {text.call for text in batch}:
            assert isinstance(call, _Call)
            self._queue.drop(call)
            call.error = error
            call.done.set()


def _deliver(batch: list[WaitingText], vectors: Vectors) -> None:
    for text, vector in zip(batch, vectors, strict=True):
        call = text.call
        assert isinstance(call, _Call)
        call.vectors[text.position] = vector
        call.missing -= 1
        if not call.missing:
            call.done.set()
