"""The ledger as roles see it: `await write(fn)`, `await read(fn)`.

Owns the file's life: lock, migrate, open, drain, checkpoint, close. Invariants: what `write`
returned is on disk; the queue of writes is bounded, and a full one makes writers wait.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import outcome
import trio

from emcd.errors import FatalError, LocalProtocolError
from emcd.ledger import core_schema
from emcd.ledger.connection import open_writer
from emcd.ledger.lock import LedgerLock
from emcd.ledger.migration import Migrated, Migration, copy_to, migrate
from emcd.ledger.reader import ReaderPool
from emcd.ledger.turn import Turn
from emcd.ledger.writer import Job, Writer

T = TypeVar("T")
Item = TypeVar("Item")

QUEUE_LIMIT = 4096
"""Writes that wait: a few commits' worth; a longer queue would only hide that the disk is behind."""
READ_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 60.0


class Ledger:
    """One open ledger file. Made by `open_ledger`."""

    def __init__(self, path: Path, con: sqlite3.Connection, migrated: Migrated) -> None:
        self.path = path
        self.migrated = migrated
        self._pending = 0
        self._closed = False
        self._room = trio.lowlevel.ParkingLot()
        self._failed = trio.Event()
        self._turn = Turn()
        self._writer = Writer(con, trio.lowlevel.current_trio_token(), self._turn, self._finish)
        self._readers = ReaderPool(path, self._turn)
        trio.lowlevel.add_instrument(self._turn)

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn` in the writer thread and return its result after the synced commit.

        `fn` runs in a savepoint: what it raises undoes it alone and is raised here. It must not
        begin, commit or roll back, nor touch anything but the connection and its arguments.

        Raises: FatalError EMC-1204 (disk full), EMC-1205 (IO), EMC-1206 (corrupt), EMC-1208.
        Cancellation: the job may still commit; so every write carries an idempotency key.
        """
        return await self._submit(fn, False, None)  # type: ignore[no-any-return]

    async def write_bulk(self, fn: Callable[[sqlite3.Connection, Sequence[Item]], None], item: Item) -> None:
        """Like `write`, for hot paths: items of one `fn` that wait together are passed in one call.

        `fn` must be the same function object each time and should write all items by one statement.
        When a call with several items raises, every item is tried alone, so one bad item fails alone.
        The order among different functions of one commit is not promised.
        """
        await self._submit(fn, True, item)

    def submit_bulk(
        self,
        fn: Callable[[sqlite3.Connection, Sequence[Item]], None],
        item: Item,
        ended: Callable[[Exception | None, None], None],
    ) -> None:
        """`write_bulk` without a task that waits: `ended` is called in the loop, after the synced commit.

        It waits for no room either: ask `has_room` before.

        Args:
            ended: gets what `write_bulk` would raise, or None. It must not wait, nor raise.

        Raises: LocalProtocolError EMC-1209.
        """
        if self._closed:
            raise LocalProtocolError("EMC-1209", "a write after the ledger was closed")
        self._pending += 1
        self._writer.put(Job(ended, fn, True, item))

    @property
    def has_room(self) -> bool:
        """Whether `write_bulk` would not have to wait for room in the queue now."""
        return self._pending < QUEUE_LIMIT

    async def wait_room(self) -> None:
        """Wait until `has_room`."""
        while self._pending >= QUEUE_LIMIT:
            await self._room.park()

    async def read(self, fn: Callable[[sqlite3.Connection], T], *, timeout_s: float = READ_TIMEOUT_S) -> T:
        """Run `fn` on a read-only snapshot in a thread.

        Raises: RecoverableError EMC-1207 when it takes longer than `timeout_s`.
        Cancellation: at once; the query is interrupted behind it.
        """
        return await self._readers.read(fn, timeout_s)

    async def backup(self, target: Path) -> None:
        """Write a consistent copy of the ledger to a new file while the daemon runs."""
        con = sqlite3.connect(self.path, check_same_thread=False)
        try:
            await trio.to_thread.run_sync(copy_to, con, target)
        finally:
            con.close()

    async def wait_failed(self) -> FatalError:
        """Return the fatal error when one strikes; the daemon waits here and stops."""
        await self._failed.wait()
        assert self._writer.failure is not None
        return self._writer.failure

    async def _submit(self, fn: Callable[..., Any], bulk: bool, item: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.wait_room()
        if self._closed:
            raise LocalProtocolError("EMC-1209", "a write after the ledger was closed")
        task = trio.lowlevel.current_task()

        def wake(error: Exception | None, value: Any) -> None:
            trio.lowlevel.reschedule(task, outcome.Value(value) if error is None else outcome.Error(error))

        job = Job(wake, fn, bulk, item)

        def abort(_: Callable[[], Any]) -> trio.lowlevel.Abort:
            job.ended = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._pending += 1
        self._writer.put(job)
        return await trio.lowlevel.wait_task_rescheduled(abort)

    def _finish(self, jobs: list[Job]) -> None:
        self._pending -= len(jobs)
        self._room.unpark(count=len(jobs))
        for job in jobs:
            if job.ended is not None:
                job.ended(job.error, job.value)
        if self._writer.failure is not None:
            self._failed.set()

    async def _close(self) -> None:
        self._closed = True
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT_S):
            await trio.to_thread.run_sync(self._readers.close)
            await trio.to_thread.run_sync(self._writer.stop)
        trio.lowlevel.remove_instrument(self._turn)


@asynccontextmanager
async def open_ledger(
    path: Path, components: Mapping[str, Sequence[Migration]] | None = None
) -> AsyncIterator[Ledger]:
    """Lock, migrate and open a ledger file; at the end drain, checkpoint, close and unlock it.

    Args:
        components: the migrations of each enabled role's kind; the ledger adds its own.

    Raises: FatalError EMC-1201 (in use), EMC-1202 (newer than the program), EMC-1203 (a migration
        is at fault), EMC-1205, EMC-1206.
    Cancellation: what was written stays; the file is closed properly within a deadline.
    """
    lock, con, migrated = await trio.to_thread.run_sync(partial(_prepare, path, dict(components or {})))
    try:
        ledger = Ledger(path, con, migrated)
        try:
            yield ledger
        finally:
            await ledger._close()
    finally:
        lock.release()


def _prepare(
    path: Path, components: dict[str, Sequence[Migration]]
) -> tuple[LedgerLock, sqlite3.Connection, Migrated]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = LedgerLock(path)
    except OSError as exc:
        raise FatalError("EMC-1205", f"{path}: {exc.strerror}") from exc
    try:
        con = open_writer(path)
        path.chmod(0o600)
        try:
            return lock, con, migrate(con, path, {"core": core_schema.MIGRATIONS, **components})
        except BaseException:
            con.close()
            raise
    except BaseException:
        lock.release()
        raise
