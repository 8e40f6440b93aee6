"""Letting the ledger's threads have the interpreter beside a loop that is never idle.

Every SQLite call gives up the interpreter lock. A thread that wants it back from a busy loop waits
5 ms by design, and for seconds in practice, since each system call of the loop restarts that wait:
commits of up to 14 s were measured, and of 2 ms with this. So between two passes a loop that would
go on at once stands aside: for the statements of a commit, at most `WAY_S`; for a commit's sync and
for reads, which hardly need the interpreter, a moment every `PATIENCE_S`.
"""

from __future__ import annotations

import threading
import time

import trio

PATIENCE_S = 0.001
"""How long work may take before the loop makes way for it."""
WAY_S = 0.002
"""How long the loop makes way for statements at most: some 1,000 of them."""
MOMENT_S = 0.00005
"""Long enough for a waiting thread to take the interpreter."""


class Turn(trio.abc.Instrument):
    """Who wants the interpreter; the loop asks between two passes."""

    def __init__(self) -> None:
        self.due = 0.0
        """Before this time no commit begins: nobody need make way for it."""
        self._writing_since = 0.0
        self._syncing = False
        self._calm = threading.Event()  # clear while statements wait or run
        self._reads = 0
        self._moment_at = 0.0

    def wants_write(self) -> None:
        """A job was queued (from the loop)."""
        if not self._writing_since:
            self._writing_since = max(time.monotonic(), self.due)
            self._calm.clear()

    def begins_statements(self, now: float) -> None:
        """A commit begins (from the writer)."""
        self._writing_since = now
        self._calm.clear()

    def begins_sync(self) -> None:
        """Its statements are done (from the writer)."""
        self._syncing = True
        self._calm.set()

    def ends(self, due: float) -> None:
        """It is over, and the next one begins at `due` or later (from the writer)."""
        self.due = due
        self._syncing = False
        self._writing_since = 0.0
        self._calm.set()

    def begins_read(self) -> None:
        """A read began (from the loop)."""
        self._reads += 1

    def ends_read(self) -> None:
        """A read ended (from the loop)."""
        self._reads -= 1

    def before_io_wait(self, timeout: float) -> None:
        """Trio is about to look for IO; with a timeout the threads have their turn anyway."""
        if timeout > 0 or not (self._writing_since or self._reads):
            return
        now = time.monotonic()
        if self._writing_since and not self._syncing:
            if now - self._writing_since > PATIENCE_S:
                self._calm.wait(WAY_S)
        elif now - self._moment_at > PATIENCE_S:
            self._moment_at = now
            time.sleep(MOMENT_S)
