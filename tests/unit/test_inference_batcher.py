"""Batching with a run that the test holds: no model, no threads' timing."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import trio
import trio.testing

from emcd.errors import RecoverableError
from emcd.inference.batch_queue import BatchLimits
from emcd.inference.batcher import Batcher, EmbedRefusal, QueueLimits
from emcd.inference.session import Vectors


class HeldRun:
    """A run that answers [length, first id] per text; `held` blocks it in its thread."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.error: RecoverableError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, texts: Sequence[Sequence[int]]) -> Vectors:
        self.batches.append([list(text) for text in texts])
        self._token.run_sync_soon(self.entered.set)
        assert self.gate.wait(5)
        if self.error is not None:
            raise self.error
        return np.array([[len(text), text[0]] for text in texts], np.float32)


async def _start(
    nursery: trio.Nursery, run: HeldRun, batch: BatchLimits | None = None, queue: QueueLimits | None = None
) -> Batcher:
    batcher = Batcher(run, batch or BatchLimits(), queue or QueueLimits(), 1)
    nursery.start_soon(batcher.run)
    await trio.testing.wait_all_tasks_blocked()
    return batcher


def _rows(outcome: Vectors | EmbedRefusal) -> list[list[int]]:
    assert not isinstance(outcome, EmbedRefusal)
    return [[int(value) for value in row] for row in outcome]


async def test_submit_mixed_lengths_keeps_order(nursery: trio.Nursery) -> None:
    batcher = await _start(nursery, HeldRun(), BatchLimits(texts=2, tokens=100, run_tokens=2))
    outcome = await batcher.submit([[7] * 30, [8], [9] * 3, [5] * 29])
    assert _rows(outcome) == [[30, 7], [1, 8], [3, 9], [29, 5]]


async def test_submit_while_a_run_goes_on_shares_the_next(nursery: trio.Nursery) -> None:
    run = HeldRun()
    batcher = await _start(nursery, run)
    run.gate.clear()
    results: dict[int, list[list[int]]] = {}

    async def submit(number: int) -> None:
        results[number] = _rows(await batcher.submit([[number, 0]]))

    async with trio.open_nursery() as callers:
        callers.start_soon(submit, 0)
        await run.entered.wait()
        for number in range(1, 6):
            callers.start_soon(submit, number)
        await trio.testing.wait_all_tasks_blocked()
        run.gate.set()
    assert [len(batch) for batch in run.batches] == [1, 5]
    assert results == {number: [[2, number]] for number in range(6)}


async def test_submit_cancelled_caller_leaves_the_batch_to_others(nursery: trio.Nursery) -> None:
    run = HeldRun()
    batcher = await _start(nursery, run)
    run.gate.clear()
    results: list[list[list[int]]] = []
    scopes = [trio.CancelScope(), trio.CancelScope()]

    async def submit(number: int, scope: trio.CancelScope) -> None:
        with scope:
            results.append(_rows(await batcher.submit([[number]])))

    async with trio.open_nursery() as callers:
        callers.start_soon(submit, 1, scopes[0])  # cancelled while it runs
        await run.entered.wait()
        callers.start_soon(submit, 2, scopes[1])  # cancelled while it waits
        callers.start_soon(submit, 3, trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        for scope in scopes:
            scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert batcher.waiting_tokens == 1
        run.gate.set()
    assert results == [[[1, 3]]]
    assert run.batches == [[[1]], [[3]]]


async def test_submit_above_the_queue_bound_is_overload(nursery: trio.Nursery) -> None:
    run = HeldRun()
    batcher = await _start(nursery, run, queue=QueueLimits(waiting_tokens=10))
    assert await batcher.submit([[1] * 11]) is EmbedRefusal.TOO_LARGE
    run.gate.clear()
    async with trio.open_nursery() as callers:
        callers.start_soon(batcher.submit, [[1]])
        await run.entered.wait()
        callers.start_soon(batcher.submit, [[1] * 8])
        await trio.testing.wait_all_tasks_blocked()
        assert await batcher.submit([[1] * 3]) is EmbedRefusal.OVERLOADED
        callers.start_soon(batcher.submit, [[1] * 2])
        await trio.testing.wait_all_tasks_blocked()
        assert batcher.waiting_tokens == 10
        run.gate.set()
    assert batcher.waiting_tokens == 0


async def test_submit_no_run_in_time_is_told_and_forgotten(nursery: trio.Nursery) -> None:
    run = HeldRun()
    batcher = await _start(nursery, run, queue=QueueLimits(wait_s=0.01))
    run.gate.clear()
    assert await batcher.submit([[1]]) is EmbedRefusal.WAITED_TOO_LONG  # it runs, too slowly
    assert await batcher.submit([[2]]) is EmbedRefusal.WAITED_TOO_LONG  # it waits
    run.gate.set()
    assert batcher.waiting_tokens == 0


async def test_submit_failed_run_is_told_to_its_callers_only(nursery: trio.Nursery) -> None:
    run = HeldRun()
    batcher = await _start(nursery, run)
    run.error = RecoverableError("EMC-1605", "no memory")
    with pytest.raises(RecoverableError, match="no memory"):
        await batcher.submit([[1]] * 100)
    assert batcher.waiting_tokens == 0
    run.error = None
    assert _rows(await batcher.submit([[4]])) == [[1, 4]]


async def test_run_cancelled_waits_for_the_running_batch(nursery: trio.Nursery) -> None:
    run = HeldRun()
    batcher = Batcher(run, BatchLimits(), QueueLimits(), 1)
    run.gate.clear()
    async with trio.open_nursery() as inner:
        inner.start_soon(batcher.run)
        inner.start_soon(batcher.submit, [[1]])
        await run.entered.wait()
        inner.cancel_scope.cancel()
        run.gate.set()
    assert len(run.batches) == 1
