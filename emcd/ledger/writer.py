"""The one thread that writes, and its group commit.

Jobs wait in a queue; the thread takes all that wait, runs each in a savepoint of one transaction,
commits once, and wakes every waiter of the commit in one call into the loop. A commit costs 0.1 ms
of CPU however few rows are in it, so while there is much to write one begins no sooner than
`GATHER_S` after the one before; a lone write never waits. Invariants: a waiter hears of success only
after the synced commit; a job's exception undoes that job alone; after a fatal error (disk full, IO,
corruption) nothing is written any more. Only this thread touches the connection.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import msgspec
import trio

from emcd.errors import FatalError
from emcd.ledger.connection import as_fatal, find_fatal
from emcd.ledger.turn import Turn
from emcd.metrics import counter, histogram

MAX_BATCH = 1024
"""Jobs in one commit: bounds how much an error at the commit can take with it."""
MAX_BATCH_S = 0.02
"""How long one commit may gather: bounds the wait of its first job."""
GATHER_S = 0.002
GATHER_FROM = 4
"""Jobs in a commit from which on the next one gathers."""

_JOBS = counter("emcd_ledger_jobs_total", "Write jobs finished, by result.", ("result",))
_COMMIT_S = histogram("emcd_ledger_commit_seconds", "Time of one group commit, from BEGIN to the sync.")
_BATCH = histogram("emcd_ledger_commit_jobs", "Write jobs in one commit.", buckets=(1, 4, 16, 64, 256, 1024))

BulkFn = Callable[[sqlite3.Connection, Sequence[Any]], None]
Ended = Callable[[Exception | None, Any], None]


class Job(msgspec.Struct, eq=False):
    """One write: a function of its own, or an item of a bulk function.

    `ended` is called in the loop with the error or None, and the function's result; None once the
    waiter was cancelled: then the job is not begun any more.
    """

    ended: Ended | None
    fn: Callable[..., Any]
    bulk: bool
    item: Any
    done: bool = False
    error: Exception | None = None
    value: Any = None


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
        self._queue: deque[Job] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._asleep = False  # whether the thread is to be rung for; one ring too many does no harm
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self.failure: FatalError | None = None
        self._turn = turn
        self._thread.start()

    def put(self, job: Job) -> None:
        self._queue.append(job)
        self._turn.wants_write()
        if self._asleep:
            self._asleep = False
            self._bell.put(None)

    def stop(self) -> None:
        """Finish what waits, checkpoint the WAL, close the connection. Blocking; idempotent."""
        self._stopping = True
        self._bell.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            early_s = self._turn.due - time.monotonic()
            if early_s > 0:
                time.sleep(early_s)
            self._commit()
        with suppress(sqlite3.Error):
            self._con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._con.close()

    def _wait(self) -> bool:
        """Wait for a job. Returns: False when there is none and none will come."""
        while not self._queue:
            if self._stopping:
                return False
            self._asleep = True
            if not self._queue:  # a job that came before the line above rang for nobody
                self._bell.get()
        return True

    def _commit(self) -> None:
        """Run all that waits, commit, wake the waiters."""
        jobs = self._take()
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
                    jobs = [] if full else self._take()
                self._turn.begins_sync()
                self._con.execute("COMMIT")
            except (sqlite3.Error, FatalError) as exc:
                self.failure = exc if isinstance(exc, FatalError) else as_fatal(exc, "commit")
                with suppress(sqlite3.Error):
                    self._con.execute("ROLLBACK")
        done = done or jobs
        if self.failure is not None:
            for job in done:
                job.error = FatalError(self.failure.code, self.failure.detail)
        self._count(done, time.monotonic() - started)
        self._turn.ends(started + GATHER_S if len(done) >= GATHER_FROM else 0.0)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._finished, done)

    def _take(self) -> list[Job]:
        queue = self._queue
        return [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]

    def _run_jobs(self, jobs: list[Job]) -> None:
        fn = jobs[0].fn
        if all(job.bulk and job.fn is fn for job in jobs):  # under load nearly every commit is one of calls
            self._run_bulk(fn, [job for job in jobs if job.ended is not None])
            return
        bulks: dict[Callable[..., Any], list[Job]] = {}
        for job in jobs:
            if job.bulk:
                bulks.setdefault(job.fn, []).append(job)
        for job in jobs:
            if job.done or job.ended is None:
                continue
            if job.bulk:
                self._run_bulk(job.fn, [j for j in bulks[job.fn] if j.ended is not None])
            else:
                job.done = True
                job.error, job.value = self._in_savepoint(job.fn)

    def _run_bulk(self, fn: BulkFn, jobs: list[Job]) -> None:
        if not jobs:
            return
        error, _ = self._in_savepoint(fn, [job.item for job in jobs])
        for job in jobs:
            job.done = True
        if error is not None:
            for job in jobs:  # one bad item fails alone
                job.error = self._in_savepoint(fn, [job.item])[0] if len(jobs) > 1 else error

    def _in_savepoint(self, fn: Callable[..., Any], *args: Any) -> tuple[Exception | None, Any]:
        """What it raised, and what it returned."""
        con = self._con
        con.execute("SAVEPOINT job")
        error: Exception | None = None
        value: Any = None
        try:
            value = fn(con, *args)
        except Exception as exc:
            fatal = find_fatal(exc)
            if fatal is not None:
                raise fatal from exc
            error = exc
        if not con.in_transaction:
            raise FatalError("EMC-1208", f"{getattr(fn, '__qualname__', fn)} ended the ledger's transaction")
        if error is not None:
            con.execute("ROLLBACK TO job")
        con.execute("RELEASE job")
        return error, value

    def _count(self, jobs: list[Job], seconds: float) -> None:
        failed = sum([job.error is not None for job in jobs])
        _JOBS.labels("failed").inc(failed)
        _JOBS.labels("committed").inc(len(jobs) - failed)
        _COMMIT_S.observe(seconds)
        _BATCH.observe(len(jobs))
