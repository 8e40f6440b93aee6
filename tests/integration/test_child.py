"""Work in a process of its own: what comes back, what goes wrong, and that nothing stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import trio

from emcd import child
from emcd.child import NICENESS, run_in_child
from emcd.errors import FatalError, RecoverableError, RemoteProtocolError
from tests.support import child_work


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False


async def wait_for_file(path: Path) -> int:
    with trio.fail_after(20):
        while not path.exists() or not path.read_text():
            await trio.sleep(0.02)
    return int(path.read_text())


async def test_child_returns_what_the_function_returns() -> None:
    assert await run_in_child(child_work.add, 2, 3, timeout_s=30) == 5


async def test_child_is_another_process_of_lower_priority() -> None:
    pid, priority = await run_in_child(child_work.describe, timeout_s=30)

    assert pid != os.getpid()
    assert priority == os.getpriority(os.PRIO_PROCESS, 0) + NICENESS


async def test_child_reports_progress_before_its_answer() -> None:
    told: list[tuple[int, int]] = []

    answer = await run_in_child(
        child_work.count, 15, timeout_s=30, on_progress=lambda done, total: told.append((done, total))
    )

    assert answer == bytes(300_000)
    assert told[0] == (1, 15)
    assert 1 < len(told) < 5


async def test_child_error_is_raised_with_its_code() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        await run_in_child(child_work.refuse, timeout_s=30)

    assert (caught.value.code, caught.value.detail) == ("EMC-1901", "it is damaged")


async def test_child_with_a_bug_is_a_fault_with_its_traceback() -> None:
    with pytest.raises(FatalError) as caught:
        await run_in_child(child_work.stumble, timeout_s=30)

    assert caught.value.code == "EMC-1035"
    assert "ValueError: a bug" in caught.value.detail


async def test_child_that_dies_is_recoverable() -> None:
    with pytest.raises(RecoverableError) as caught:
        await run_in_child(child_work.die, timeout_s=30)

    assert caught.value.code == "EMC-1034"
    assert "9" in caught.value.detail


async def test_child_that_answers_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_FRAME_BYTES", 1000)

    with pytest.raises(FatalError) as caught:
        await run_in_child(child_work.answer_hugely, 5000, timeout_s=30)

    assert caught.value.code == "EMC-1035"


async def test_child_past_its_deadline_is_killed(tmp_path: Path) -> None:
    with pytest.raises(RecoverableError) as caught:
        await run_in_child(child_work.sleep_and_write, tmp_path / "pid", timeout_s=1.5)

    assert caught.value.code == "EMC-1034"
    assert not is_alive(await wait_for_file(tmp_path / "pid"))


async def test_child_is_killed_with_its_caller(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_in_child(child_work.sleep_and_write, tmp_path / "pid", timeout_s=60))
        pid = await wait_for_file(tmp_path / "pid")
        assert is_alive(pid)
        nursery.cancel_scope.cancel()

    assert not is_alive(pid)


async def test_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import trio
        from pathlib import Path
        from emcd.child import run_in_child
        from tests.support import child_work
        trio.run(lambda: run_in_child(child_work.sleep_and_write, Path({str(tmp_path / "pid")!r}), timeout_s=60))
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    pid = await wait_for_file(tmp_path / "pid")
    parent.kill()
    parent.wait()

    until = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < until:
        await trio.sleep(0.02)
    assert not is_alive(pid)
