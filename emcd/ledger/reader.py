"""Reading from the ledger: a few read-only connections, a thread each, a time limit on every read.

Invariant: a read sees one snapshot; a read that is too slow or whose caller was cancelled is
interrupted inside SQLite, and its connection goes back to the pool.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import trio

from emcd.errors import RecoverableError
from emcd.ledger.connection import find_fatal, open_reader
from emcd.ledger.turn import Turn

T = TypeVar("T")

POOL_SIZE = 4
"""Reads at once: SQLite reads scale with cores, and more threads than that only queue inside."""
_CHECK_EVERY = 2_000
"""SQLite virtual-machine steps between two looks at the time limit: well under a millisecond."""


class _Watch:
    """The progress handler of one read: non-zero interrupts it."""

    __slots__ = ("cancelled", "deadline")

    def __init__(self, timeout_s: float) -> None:
        self.deadline = time.monotonic() + timeout_s
        self.cancelled = False

    def __call__(self) -> int:
        return 1 if self.cancelled or time.monotonic() > self.deadline else 0


class ReaderPool:
    """Read-only connections to one file."""

    def __init__(self, path: Path, turn: Turn, size: int = POOL_SIZE) -> None:
        self._size = size
        self._turn = turn
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        for _ in range(size):
            self._idle.put(open_reader(path))
        self._limiter = trio.CapacityLimiter(size)

    async def read(self, fn: Callable[[sqlite3.Connection], T], timeout_s: float) -> T:
        """Run `fn` in a thread. Raises: RecoverableError EMC-1207 past the time limit."""
        watch = _Watch(timeout_s)
        self._turn.begins_read()
        try:
            return await trio.to_thread.run_sync(
                self._run, fn, watch, limiter=self._limiter, abandon_on_cancel=True
            )
        except BaseException:
            watch.cancelled = True
            raise
        finally:
            self._turn.ends_read()

    def _run(self, fn: Callable[[sqlite3.Connection], T], watch: _Watch) -> T:
        # The limiter holds one token per connection until this thread ends, so one is idle.
        con = self._idle.get(timeout=60)
        try:
            con.set_progress_handler(watch, _CHECK_EVERY)
            con.execute("BEGIN")
            return fn(con)
        except sqlite3.Error as exc:
            code = getattr(exc, "sqlite_errorcode", None)
            fatal = find_fatal(exc)
            if fatal is not None and code != sqlite3.SQLITE_READONLY:  # that one is the query's own fault
                raise fatal from exc
            if code == sqlite3.SQLITE_INTERRUPT:
                raise RecoverableError(
                    "EMC-1207", f"{getattr(fn, '__qualname__', fn)} read too long"
                ) from exc
            raise
        finally:
            con.set_progress_handler(None, 0)
            if con.in_transaction:
                con.execute("ROLLBACK")
            self._idle.put(con)

    def close(self) -> None:
        """Close every connection; waits for reads that are still being interrupted. Blocking."""
        for _ in range(self._size):
            self._idle.get(timeout=60).close()
