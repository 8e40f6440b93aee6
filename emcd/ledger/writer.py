"""The one thread that writes, and its group commit.

Jobs wait in a queue; the thread takes all that wait, runs each in a savepoint of one transaction,
commits once, and wakes every waiter of the commit in one call into the loop. Invariants: a waiter
hears of success only after the synced commit; a job's exception undoes that job alone; after a
fatal error (disk full, IO, corruption) nothing is written any more. Only this thread touches the
connection.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import outcome
import trio

from emcd.errors import FatalError
from emcd.ledger.connection import as_fatal, find_fatal
from emcd.ledger.turn import Turn
from emcd.metrics import counter, histogram

MAX_BATCH = 1024
"""Jobs in one commit: bounds how much an error at the commit can take with it."""
MAX_BATCH_S = 0.02
"""How long one commit may gather: bounds the wait of its first job."""

_JOBS = counter("emcd_ledger_jobs_total", "Write jobs finished, by result.", ("result",))
_COMMIT_S = histogram("emcd_ledger_commit_seconds", "Time of one group commit, from BEGIN to the sync.")
_BATCH = histogram("emcd_ledger_commit_jobs", "Write jobs in one commit.", buckets=(1, 4, 16, 64, 256, 1024))

BulkFn = Callable[[sqlite3.Connection, Sequence[Any]], None]


class Job:
    """One write: a function of its own, or an item of a bulk function."""

    __slots__ = ("bulk", "fn", "item", "result", "task")

    def __init__(self, task: trio.lowlevel.Task, fn: Callable[..., Any], bulk: bool, item: Any) -> None:
        self.task: trio.lowlevel.Task | None = task  # None once the waiter was cancelled
        self.fn = fn
        self.bulk = bulk
        self.item = item
        self.result: outcome.Outcome[Any] | None = None


class Writer:
    """Runs jobs in its thread; `finished` is called in the loop with the jobs of each commit."""

    def __init__(
        self,
        con: sqlite3.Connection,
        token: trio.lowlevel.TrioToken,
        turn: Turn,
        finished: Callable[[list[Job]], None],
    ) -> None:
        self._con = con
        self._token = token
        self._finished = finished
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self.failure: FatalError | None = None
        self._turn = turn
        self._thread.start()

    def put(self, job: Job) -> None:
        self._queue.put(job)
        self._turn.wants_write()

    def stop(self) -> None:
        """Finish what waits, checkpoint the WAL, close the connection. Blocking; idempotent."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            first = self._queue.get()
            if first is None:
                break
            stopping = self._commit(first)
        with suppress(sqlite3.Error):
            self._con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._con.close()

    def _commit(self, first: Job) -> bool:
        """Run `first` and whatever else waits, commit, wake the waiters. Returns: stop asked for."""
        jobs, stopping = self._take(first)
        done: list[Job] = []
        started = time.monotonic()
        self._turn.begins_statements(started)
        if self.failure is None:
            try:
                self._con.execute("BEGIN IMMEDIATE")
                while jobs:
                    done += jobs
                    self._run_jobs(jobs)
                    full = len(done) >= MAX_BATCH or time.monotonic() - started > MAX_BATCH_S
                    jobs, stopping = ([], stopping) if full or stopping else self._take(None)
                self._turn.begins_sync()
                self._con.execute("COMMIT")
            except (sqlite3.Error, FatalError) as exc:
                self.failure = exc if isinstance(exc, FatalError) else as_fatal(exc, "commit")
                with suppress(sqlite3.Error):
                    self._con.execute("ROLLBACK")
        done = done or jobs
        if self.failure is not None:
            for job in done:
                job.result = outcome.Error(FatalError(self.failure.code, self.failure.detail))
        self._count(done, time.monotonic() - started)
        self._turn.ends()
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._finished, done)
        return stopping

    def _take(self, first: Job | None) -> tuple[list[Job], bool]:
        jobs = [] if first is None else [first]
        with suppress(Empty):
            while len(jobs) < MAX_BATCH:
                job = self._queue.get_nowait()
                if job is None:
                    return jobs, True
                jobs.append(job)
        return jobs, False

    def _run_jobs(self, jobs: list[Job]) -> None:
        bulks: dict[Callable[..., Any], list[Job]] = {}
        for job in jobs:
            if job.bulk:
                bulks.setdefault(job.fn, []).append(job)
        for job in jobs:
            if job.result is not None or job.task is None:
                continue
            if job.bulk:
                self._run_bulk(job.fn, [j for j in bulks[job.fn] if j.task is not None])
            else:
                job.result = self._in_savepoint(job.fn)

    def _run_bulk(self, fn: BulkFn, jobs: list[Job]) -> None:
        result = self._in_savepoint(fn, [job.item for job in jobs])
        for job in jobs:
            if isinstance(result, outcome.Value):
                job.result = outcome.Value(None)  # an outcome unwraps once, so each waiter needs its own
            else:  # one bad item fails alone
                job.result = self._in_savepoint(fn, [job.item]) if len(jobs) > 1 else result

    def _in_savepoint(self, fn: Callable[..., Any], *args: Any) -> outcome.Outcome[Any]:
        con = self._con
        con.execute("SAVEPOINT job")
        result: outcome.Outcome[Any]
        try:
            result = outcome.Value(fn(con, *args))
        except Exception as exc:
            fatal = find_fatal(exc)
            if fatal is not None:
                raise fatal from exc
            result = outcome.Error(exc)
        if not con.in_transaction:
            raise FatalError("EMC-1208", f"{getattr(fn, '__qualname__', fn)} ended the ledger's transaction")
        if isinstance(result, outcome.Error):
            con.execute("ROLLBACK TO job")
        con.execute("RELEASE job")
        return result

    def _count(self, jobs: list[Job], seconds: float) -> None:
        failed = sum(isinstance(job.result, outcome.Error) for job in jobs)
        _JOBS.labels("failed").inc(failed)
        _JOBS.labels("committed").inc(len(jobs) - failed)
        _COMMIT_S.observe(seconds)
        _BATCH.observe(len(jobs))
