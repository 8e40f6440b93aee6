"""The ledger's group commit: durability, isolation of jobs, cancellation, failure."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from emcd.errors import FatalError, LocalProtocolError
from emcd.ledger import Connection, IntegrityError, Ledger, Migration, open_ledger
from emcd.ledger import database as database_module
from emcd.testing import temporary_ledger

NOTES = {
    "note": [
        Migration(
            1,
            "notes",
            "CREATE TABLE note_text (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE) STRICT",
        )
    ]
}


@pytest.fixture
async def notes(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with temporary_ledger(tmp_path, NOTES) as opened:
        yield opened


def insert(con: Connection, body: str) -> int:
    return int(con.execute("INSERT INTO note_text (body) VALUES (?)", (body,)).lastrowid or 0)


def insert_many(con: Connection, bodies: Sequence[str]) -> None:
    marks = ",".join(["(?)"] * len(bodies))
    con.execute(f"INSERT INTO note_text (body) VALUES {marks}", list(bodies))


def list_bodies(con: Connection) -> list[str]:
    return [row["body"] for row in con.execute("SELECT body FROM note_text ORDER BY id")]


async def test_write_returned_is_visible_to_another_connection(notes: Ledger) -> None:
    assert await notes.write(lambda con: insert(con, "a")) == 1
    with sqlite3.connect(notes.path) as other:
        assert other.execute("SELECT body FROM note_text").fetchall() == [("a",)]
    other.close()


async def test_write_raising_undoes_that_job_alone(notes: Ledger) -> None:
    async def fail() -> None:
        def half(con: Connection) -> None:
            insert(con, "half")
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await notes.write(half)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.write, lambda con: insert(con, "before"))
        nursery.start_soon(fail)
        nursery.start_soon(notes.write, lambda con: insert(con, "after"))
    assert sorted(await notes.read(list_bodies)) == ["after", "before"]


async def test_write_constraint_broken_raises_integrity_error(notes: Ledger) -> None:
    await notes.write(lambda con: insert(con, "a"))
    with pytest.raises(IntegrityError):
        await notes.write(lambda con: insert(con, "a"))
    assert await notes.write(lambda con: insert(con, "b")) == 2


async def test_writes_that_wait_together_share_one_commit(notes: Ledger) -> None:
    changes: list[int] = []
    gate = threading.Event()

    def hold(con: Connection) -> None:
        gate.wait(5)

    def note(con: Connection, body: str) -> None:
        insert(con, body)
        changes.append(con.execute("SELECT count(*) FROM note_text").fetchone()[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.write, hold)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(50):
            nursery.start_soon(notes.write, lambda con, n=number: note(con, str(n)))
        await trio.testing.wait_all_tasks_blocked()
        with sqlite3.connect(notes.path) as other:
            assert other.execute("SELECT count(*) FROM note_text").fetchone() == (0,)
        other.close()
        gate.set()
    assert changes == list(range(1, 51))


async def test_write_cancelled_before_it_started_leaves_nothing(notes: Ledger) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await notes.write(lambda con: insert(con, "never"))
    assert notes._pending == 0
    assert await notes.read(list_bodies) == []


async def test_write_cancelled_in_the_queue_is_skipped_and_wakes_nobody(notes: Ledger) -> None:
    gate = threading.Event()
    scope = trio.CancelScope()

    async def write_cancelled() -> None:
        with scope:
            await notes.write(lambda con: insert(con, "cancelled"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.write, lambda con: gate.wait(5))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(write_cancelled)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert scope.cancelled_caught
        gate.set()
    assert await notes.write(lambda con: insert(con, "next")) == 1
    assert await notes.read(list_bodies) == ["next"]


async def test_write_cancelled_while_it_runs_still_commits(notes: Ledger) -> None:
    gate, running = threading.Event(), threading.Event()

    def slow(con: Connection) -> None:
        running.set()
        gate.wait(5)
        insert(con, "slow")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.write, slow)
        await trio.to_thread.run_sync(running.wait)
        nursery.cancel_scope.cancel()
    gate.set()
    await notes.write(lambda con: insert(con, "next"))
    assert await notes.read(list_bodies) == ["slow", "next"]


async def test_write_function_that_commits_is_fatal(notes: Ledger) -> None:
    with pytest.raises(FatalError, match="EMC-1208"):
        await notes.write(lambda con: con.commit())
    with pytest.raises(FatalError, match="EMC-1208"):
        await notes.write(lambda con: insert(con, "late"))
    assert (await notes.wait_failed()).code == "EMC-1208"


async def test_write_disk_full_fails_every_waiter_and_stays_failed(notes: Ledger) -> None:
    def fill(con: Connection) -> None:
        con.execute("PRAGMA max_page_count = 1")
        for number in range(5000):
            insert(con, f"{number:0500}")

    codes: list[str] = []

    async def write_one(number: int) -> None:
        with pytest.raises(FatalError) as caught:
            await notes.write(fill if number == 3 else lambda con: insert(con, f"small {number}"))
        codes.append(caught.value.code)

    gate = threading.Event()

    async def hold() -> None:
        with pytest.raises(FatalError):
            await notes.write(lambda con: gate.wait(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(5):
            nursery.start_soon(write_one, number)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert codes == ["EMC-1204"] * 5
    assert (await notes.wait_failed()).code == "EMC-1204"
    assert await notes.read(list_bodies) == []


async def test_write_after_close_is_refused(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, NOTES) as opened:
        pass
    with pytest.raises(LocalProtocolError, match="EMC-1209"):
        await opened.write(lambda con: insert(con, "late"))


async def test_close_finishes_what_waits(tmp_path: Path) -> None:
    gate = threading.Event()
    async with trio.open_nursery() as nursery:
        async with temporary_ledger(tmp_path, NOTES) as opened:
            nursery.start_soon(opened.write, lambda con: gate.wait(5))
            nursery.start_soon(opened.write, lambda con: insert(con, "waiting"))
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
    async with temporary_ledger(tmp_path, NOTES) as again:
        assert await again.read(list_bodies) == ["waiting"]
    assert not (tmp_path / "ledger.db-wal").exists()


async def test_write_full_queue_makes_writers_wait(notes: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "QUEUE_LIMIT", 2)
    gate = threading.Event()
    ran: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.write, lambda con: gate.wait(5))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(6):
            nursery.start_soon(notes.write, lambda con, n=number: ran.append(n))
        await trio.testing.wait_all_tasks_blocked()
        assert notes._pending == 2
        gate.set()
    assert sorted(ran) == list(range(6))


async def test_write_bulk_items_that_wait_together_come_in_one_call(notes: Ledger) -> None:
    calls: list[int] = []

    def counted(con: Connection, bodies: Sequence[str]) -> None:
        calls.append(len(bodies))
        insert_many(con, bodies)

    gate = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.write, lambda con: gate.wait(5))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(20):
            nursery.start_soon(notes.write_bulk, counted, f"{number}")
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert calls == [20]
    assert len(await notes.read(list_bodies)) == 20


async def test_write_bulk_bad_item_fails_alone(notes: Ledger) -> None:
    await notes.write(lambda con: insert(con, "taken"))
    gate = threading.Event()
    failed: list[str] = []

    async def put(body: str) -> None:
        try:
            await notes.write_bulk(insert_many, body)
        except IntegrityError:
            failed.append(body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.write, lambda con: gate.wait(5))
        await trio.testing.wait_all_tasks_blocked()
        for body in ("x", "taken", "y"):
            nursery.start_soon(put, body)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert failed == ["taken"]
    assert sorted(await notes.read(list_bodies)) == ["taken", "x", "y"]


async def test_submit_bulk_tells_each_item_its_own_end_after_the_commit(notes: Ledger) -> None:
    ends: dict[str, Exception | None] = {}
    on_disk: list[str] = []
    over = trio.Event()

    def ended(body: str, error: Exception | None, _: None) -> None:
        ends[body] = error
        with sqlite3.connect(notes.path) as other:
            on_disk[:] = [row[0] for row in other.execute("SELECT body FROM note_text ORDER BY id")]
        other.close()
        if len(ends) == 3:
            over.set()

    await notes.write(lambda con: insert(con, "twice"))
    for body in ("a", "twice", "b"):
        notes.submit_bulk(insert_many, body, partial(ended, body))
    with trio.fail_after(5):
        await over.wait()
    assert (ends["a"], ends["b"]) == (None, None)
    assert isinstance(ends["twice"], IntegrityError)
    assert sorted(on_disk) == ["a", "b", "twice"]


async def test_submit_bulk_room_is_what_the_queue_leaves(
    notes: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "QUEUE_LIMIT", 2)
    ends: list[Exception | None] = []
    over = trio.Event()

    def ended(error: Exception | None, _: None) -> None:
        ends.append(error)
        if len(ends) == 2:
            over.set()

    had_room = [notes.has_room]
    for body in ("a", "b"):
        notes.submit_bulk(insert_many, body, ended)
    had_room.append(notes.has_room)
    with trio.fail_after(5):
        await over.wait()
    had_room.append(notes.has_room)
    assert had_room == [True, False, True]
    assert ends == [None, None]


async def test_submit_bulk_after_close_is_refused(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, NOTES) as ledger:
        pass
    with pytest.raises(LocalProtocolError) as caught:
        ledger.submit_bulk(insert_many, "a", lambda error, _: None)
    assert caught.value.code == "EMC-1209"


async def test_commit_gathers_after_a_large_one_and_not_after_a_lone_one(notes: Ledger) -> None:
    async def write(body: str) -> None:
        await notes.write_bulk(insert_many, body)

    await write("lone")
    assert notes._turn.due == 0
    async with trio.open_nursery() as nursery:
        gate = threading.Event()
        nursery.start_soon(notes.write, lambda con: gate.wait(5))
        for number in range(8):
            nursery.start_soon(write, str(number))
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert notes._turn.due > 0
    await write("after")
    assert notes._turn.due == 0
    assert len(await notes.read(list_bodies)) == 10


async def test_write_beside_a_busy_loop_is_not_starved(notes: Ledger) -> None:
    async def spin() -> None:
        while True:
            sum(range(2000))
            await trio.lowlevel.checkpoint()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spin)
            for number in range(20):
                await notes.write(partial(insert, body=str(number)))
                assert len(await notes.read(list_bodies)) == number + 1
            nursery.cancel_scope.cancel()


async def test_open_second_time_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path):
        with pytest.raises(FatalError, match=r"EMC-1201.*process \d+"):
            async with open_ledger(tmp_path / "ledger.db"):
                raise AssertionError("a second daemon got in")
    async with temporary_ledger(tmp_path):
        pass


async def test_open_no_database_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"this is no database at all, but long enough to be one" * 40)
    with pytest.raises(FatalError, match="EMC-1206"):
        async with temporary_ledger(tmp_path):
            raise AssertionError("opened garbage")


async def test_ledger_file_is_private(notes: Ledger) -> None:
    assert notes.path.stat().st_mode & 0o777 == 0o600


async def test_writer_connection_is_durable_and_strict(notes: Ledger) -> None:
    def list_pragmas(con: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [con.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    full = 2
    assert await notes.write(list_pragmas) == ["wal", full, 1]
