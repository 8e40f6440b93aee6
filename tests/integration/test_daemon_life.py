"""The daemon's life in one process: order, crashes, deadlines, the exit code, the ledger's fate."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.daemon import Daemon
from emcd.daemon.status import fetch_status
from emcd.errors import FatalError, RecoverableError
from emcd.ledger import Connection
from emcd.services import HealthBoard, HealthState
from tests.support.daemon_roles import Actor, ActorConfig, Diary, make_prepared


class Outcome:
    """What a daemon's run came to."""

    code: int | None = None


async def live(daemon: Daemon, outcome: Outcome, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    outcome.code = await daemon.run(task_status=task_status)


async def run_until_stopped(daemon: Daemon) -> int:
    """Start, stop at once when ready, return the exit code."""
    outcome = Outcome()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(live, daemon, outcome)
            daemon.stop()
    assert outcome.code is not None
    return outcome.code


async def test_daemon_starts_in_order_and_stops_in_reverse(tmp_path: Path) -> None:
    diary = Diary()
    daemon = Daemon(make_prepared(tmp_path, [ActorConfig(n, diary) for n in "abc"]), signals=False)
    assert await run_until_stopped(daemon) == 0
    assert diary.lines == [
        "a setup", "b setup", "c setup", "a started", "b started", "c started",
        "c drain", "c drained", "c closed", "b drain", "b drained", "b closed", "a drain", "a drained",
        "a closed",
    ]  # fmt: skip
    assert not (tmp_path / "ledger.db-wal").exists()
    assert not (tmp_path / "status.sock").exists()


async def test_daemon_is_ready_only_between_start_and_stop(tmp_path: Path) -> None:
    diary = Diary()
    prepared = make_prepared(tmp_path, [ActorConfig("a", diary), ActorConfig("b", diary, hang_in="drain")])
    daemon = Daemon(prepared, signals=False)
    assert not daemon.board.is_ready()
    async with trio.open_nursery() as nursery:
        await nursery.start(live, daemon, Outcome())
        board = daemon.services.get(HealthBoard)
        assert board.is_ready()
        assert [role.health.state for role in board.list_roles()] == [HealthState.READY] * 2
        daemon.stop()
        assert not board.is_ready()
        while "b drain" not in diary.lines:
            await trio.sleep(0.01)
        assert board.list_roles()[1].health.state is HealthState.DRAINING


async def test_daemon_role_that_crashes_stops_the_others_orderly(tmp_path: Path) -> None:
    diary, crash, outcome = Diary(), trio.Event(), Outcome()
    actors = [ActorConfig("a", diary), ActorConfig("b", diary, crash_in="run", crash=crash)]
    daemon = Daemon(make_prepared(tmp_path, actors), signals=False)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(live, daemon, outcome)
            crash.set()
    assert outcome.code == 1
    assert diary.lines[4:] == ["b closed", "a drain", "a drained", "a closed"]


async def test_daemon_role_that_returns_early_stops_the_daemon(tmp_path: Path) -> None:
    diary, outcome = Diary(), Outcome()
    actors = [ActorConfig("a", diary), ActorConfig("b", diary, return_in="run")]
    with trio.fail_after(10):
        await live(Daemon(make_prepared(tmp_path, actors), signals=False), outcome)
    assert outcome.code == 1
    assert diary.lines[-1] == "a closed"


@pytest.mark.parametrize("how", [{"crash_in": "start"}, {"return_in": "start"}])
async def test_daemon_role_that_does_not_start_stops_those_that_did(
    tmp_path: Path, how: dict[str, str]
) -> None:
    diary, outcome = Diary(), Outcome()
    actors = [ActorConfig("a", diary), ActorConfig("b", diary, **how), ActorConfig("c", diary)]  # type: ignore[arg-type]
    with trio.fail_after(10):
        await live(Daemon(make_prepared(tmp_path, actors), signals=False), outcome)
    assert outcome.code == 1
    assert "c started" not in diary.lines
    assert diary.lines[-3:] == ["a drain", "a drained", "a closed"]


@pytest.mark.parametrize("place", ["build", "setup"])
async def test_daemon_role_that_fails_before_the_start_raises(tmp_path: Path, place: str) -> None:
    diary = Diary()
    actors = [ActorConfig("a", diary), ActorConfig("b", diary, crash_in=place)]
    with pytest.raises(ValueError, match=f"b fails in {place}"):
        await Daemon(make_prepared(tmp_path, actors), signals=False).run()
    assert "a started" not in diary.lines
    assert await run_until_stopped(Daemon(make_prepared(tmp_path, actors[:1]), signals=False)) == 0


async def test_daemon_drain_that_hangs_is_cut_off(tmp_path: Path) -> None:
    diary = Diary()
    actors = [ActorConfig("a", diary), ActorConfig("b", diary, hang_in="drain")]
    daemon = Daemon(make_prepared(tmp_path, actors, drain_s=0.05), signals=False)
    assert await run_until_stopped(daemon) == 0
    assert diary.lines[-5:] == ["b drain", "b closed", "a drain", "a drained", "a closed"]


async def test_daemon_drain_that_fails_is_told_by_the_exit_code(tmp_path: Path) -> None:
    diary = Diary()
    actors = [ActorConfig("a", diary), ActorConfig("b", diary, crash_in="drain")]
    assert await run_until_stopped(Daemon(make_prepared(tmp_path, actors), signals=False)) == 1
    assert diary.lines[-1] == "a closed"


async def test_daemon_grace_deadline_cancels_all(tmp_path: Path) -> None:
    diary = Diary()
    actors = [ActorConfig("a", diary), ActorConfig("b", diary, hang_in="drain")]
    daemon = Daemon(make_prepared(tmp_path, actors, drain_s=60, grace_s=0.05), signals=False)
    assert await run_until_stopped(daemon) == 1
    assert "a drain" not in diary.lines
    assert {"a closed", "b closed"} <= set(diary.lines)


async def test_daemon_second_stop_cancels_all_at_once(tmp_path: Path) -> None:
    diary, outcome = Diary(), Outcome()
    actors = [ActorConfig("a", diary), ActorConfig("b", diary, hang_in="drain")]
    daemon = Daemon(make_prepared(tmp_path, actors, drain_s=60, grace_s=60), signals=False)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(live, daemon, outcome)
            daemon.stop()
            while "b drain" not in diary.lines:
                await trio.sleep(0.01)
            daemon.stop()
    assert outcome.code == 1
    assert "a drain" not in diary.lines


async def test_daemon_stop_during_the_start_starts_no_more(tmp_path: Path) -> None:
    diary, outcome = Diary(), Outcome()
    actors = [ActorConfig("a", diary), ActorConfig("b", diary, hang_in="start"), ActorConfig("c", diary)]
    daemon = Daemon(make_prepared(tmp_path, actors), signals=False)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live, daemon, outcome)
            while "a started" not in diary.lines:
                await trio.sleep(0.01)
            daemon.stop()
    assert outcome.code == 0
    assert diary.lines[-4:] == ["b closed", "a drain", "a drained", "a closed"]


async def test_daemon_signals_stop_it(tmp_path: Path) -> None:
    diary, outcome = Diary(), Outcome()
    daemon = Daemon(make_prepared(tmp_path, [ActorConfig("a", diary)]))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(live, daemon, outcome)
            os.kill(os.getpid(), signal.SIGTERM)
    assert outcome.code == 0


async def test_daemon_second_one_on_the_same_ledger_is_refused(tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path, [ActorConfig("a", Diary())])
    first = Daemon(prepared, signals=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(live, first, Outcome())
        with pytest.raises(FatalError, match="EMC-1201"):
            await Daemon(prepared, signals=False).run()
        first.stop()


async def test_daemon_ledger_that_fails_stops_it(tmp_path: Path) -> None:
    diary, outcome, built = Diary(), Outcome(), list[Actor]()
    prepared = make_prepared(tmp_path, [ActorConfig("a", diary)])

    def burst(con: Connection) -> None:
        con.execute("PRAGMA max_page_count = 1")
        for number in range(5000):
            con.execute("INSERT INTO chain_cursors VALUES ('x', ?, randomblob(32))", (number,))

    def build(config: ActorConfig) -> Actor:
        built.append(Actor(config))
        return built[-1]

    object.__setattr__(prepared.specs[0], "build", build)
    daemon = Daemon(prepared, signals=False)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(live, daemon, outcome)
            assert built[0].ctx is not None
            with pytest.raises(FatalError, match="EMC-1204"):
                await built[0].ctx.ledger.write(burst)
    assert outcome.code == 1
    assert diary.lines[-1] == "a closed"


async def test_daemon_cancelled_from_outside_closes_the_ledger(tmp_path: Path) -> None:
    diary = Diary()
    daemon = Daemon(make_prepared(tmp_path, [ActorConfig("a", diary)]), signals=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(live, daemon, Outcome())
        nursery.cancel_scope.cancel()
    assert diary.lines[-1] == "a closed"
    con = sqlite3.connect(tmp_path / "ledger.db")
    assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    con.close()
    assert await run_until_stopped(Daemon(make_prepared(tmp_path, []), signals=False)) == 0


async def test_daemon_status_socket_tells_roles_and_metrics(tmp_path: Path) -> None:
    daemon = Daemon(make_prepared(tmp_path, [ActorConfig("a", Diary())]), signals=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(live, daemon, Outcome())
        report = json.loads(await fetch_status("unix:status.sock", tmp_path))
        assert report["ready"] is True
        assert report["roles"] == [{"kind": "actor", "name": "a", "state": "ready", "reason": ""}]
        assert report["pid"] == os.getpid()
        assert b"emcd_ledger_commit_seconds" in await fetch_status("unix:status.sock", tmp_path, "metrics")
        assert (tmp_path / "status.sock").stat().st_mode & 0o777 == 0o600
        daemon.stop()
    with pytest.raises(RecoverableError, match="EMC-1032"):
        await fetch_status("unix:status.sock", tmp_path)


async def test_daemon_status_socket_works_in_a_deep_folder(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 6)
    deep.mkdir(parents=True)
    daemon = Daemon(make_prepared(deep, []), signals=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(live, daemon, Outcome())
        assert json.loads(await fetch_status("unix:status.sock", deep))["roles"] == []
        daemon.stop()


async def test_daemon_tells_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(address))
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        await run_until_stopped(Daemon(make_prepared(tmp_path, []), signals=False))
        assert [notified.recv(64), notified.recv(64)] == [b"READY=1", b"STOPPING=1"]


async def test_daemon_status_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        prepared = make_prepared(tmp_path, [], status_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ExceptionGroup) as caught:
            await Daemon(prepared, signals=False).run()
    (fault,) = caught.value.exceptions
    assert isinstance(fault, FatalError)
    assert fault.code == "EMC-1019"


async def test_daemon_status_on_a_loopback_port(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    daemon = Daemon(make_prepared(tmp_path, [], status_listen=listen), signals=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(live, daemon, Outcome())
        assert json.loads(await fetch_status(listen, tmp_path))["ready"] is True
        daemon.stop()
