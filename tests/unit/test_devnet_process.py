"""The devnet's one process: found again, never mistaken, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emcd.errors import ConfigError, FatalError
from emcd_devchain.devnet import process
from emcd_devchain.devnet.layout import DevnetLayout, read_layout
from emcd_devchain.devnet.process import find_daemon, require_alive, start_daemon, stop_daemon
from tests.support.devnet import Devnet


@pytest.fixture
def layout(tmp_path: Path) -> DevnetLayout:
    return read_layout(Devnet(tmp_path).environment)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when asked."""
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


@pytest.fixture
def deaf() -> Iterator[subprocess.Popen[bytes]]:
    """A process that SIGTERM does not end."""
    code = "import signal,sys,time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        yield child
        child.kill()


def remember(layout: DevnetLayout, pid: int) -> None:
    layout.process.write_text(f"{pid} {process._started_at(pid)}\n")


def test_find_daemon_in_an_empty_folder_is_none(layout: DevnetLayout) -> None:
    assert find_daemon(layout) is None


def test_find_daemon_running_gives_its_pid(layout: DevnetLayout, sleeper: subprocess.Popen[bytes]) -> None:
    remember(layout, sleeper.pid)

    assert find_daemon(layout) == sleeper.pid


def test_find_daemon_pid_used_again_by_somebody_else_is_none(
    layout: DevnetLayout, sleeper: subprocess.Popen[bytes]
) -> None:
    layout.process.write_text(f"{sleeper.pid} 1\n")

    assert find_daemon(layout) is None


@pytest.mark.parametrize(
    "text", ["", "17", "17 18 19", "pid 4", "2147483646 5", "99999999999999999999 5", "- -"]
)
def test_find_daemon_by_a_damaged_pid_file_is_none(layout: DevnetLayout, text: str) -> None:
    layout.process.write_text(text)

    assert find_daemon(layout) is None


def test_find_daemon_of_a_process_that_was_never_there_is_none(layout: DevnetLayout) -> None:
    layout.process.write_text("2147483646 -\n")

    assert find_daemon(layout) is None


def test_find_daemon_zombie_is_none(layout: DevnetLayout, sleeper: subprocess.Popen[bytes]) -> None:
    remember(layout, sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)

    assert find_daemon(layout) is None


def test_started_at_by_ps_tells_processes_apart(sleeper: subprocess.Popen[bytes]) -> None:
    assert process._started_at_by_ps(sleeper.pid) not in ("", "-")
    assert process._started_at_by_ps(sleeper.pid) == process._started_at_by_ps(sleeper.pid)
    assert process._started_at_by_ps(2147483646) == "-"


async def test_stop_daemon_of_nothing_says_so(layout: DevnetLayout) -> None:
    assert await stop_daemon(layout) is False


async def test_stop_daemon_never_signals_a_process_that_is_not_ours(
    layout: DevnetLayout, sleeper: subprocess.Popen[bytes]
) -> None:
    layout.process.write_text(f"{sleeper.pid} 1\n")

    assert await stop_daemon(layout) is False
    assert sleeper.poll() is None


async def test_stop_daemon_asks_and_forgets(layout: DevnetLayout, sleeper: subprocess.Popen[bytes]) -> None:
    remember(layout, sleeper.pid)

    assert await stop_daemon(layout) is True
    assert find_daemon(layout) is None
    assert not layout.process.exists()


async def test_stop_daemon_past_the_grace_kills_and_says_so(
    layout: DevnetLayout, deaf: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STOP_GRACE_S", 0.2)
    remember(layout, deaf.pid)

    with pytest.raises(FatalError) as caught:
        await stop_daemon(layout)

    assert caught.value.code == "EMC-2232"
    while find_daemon(layout) is not None:
        pass


def test_start_daemon_twice_is_refused(layout: DevnetLayout, sleeper: subprocess.Popen[bytes]) -> None:
    remember(layout, sleeper.pid)

    with pytest.raises(ConfigError) as caught:
        start_daemon(layout, Path("conf/devnet.toml"), {})

    assert caught.value.code == "EMC-2231"
    assert str(sleeper.pid) in caught.value.detail


def test_start_daemon_on_a_taken_port_is_refused_before_anything_starts(layout: DevnetLayout) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", layout.validator_ports[1]))
        taken.listen()

        with pytest.raises(ConfigError) as caught:
            start_daemon(layout, Path("conf/devnet.toml"), {})

    assert caught.value.code == "EMC-2237"
    assert str(layout.validator_ports[1]) in caught.value.detail
    assert not layout.process.exists()


def test_start_daemon_that_dies_is_reported_with_the_end_of_its_log(
    layout: DevnetLayout, tmp_path: Path
) -> None:
    child = start_daemon(layout, tmp_path / "none.toml", {})
    child.wait(20)

    with pytest.raises(FatalError, match="EMC-1") as caught:
        require_alive(layout)

    assert caught.value.code == "EMC-2233"
    assert "none.toml" in caught.value.detail


def test_require_alive_of_a_running_process_is_quiet(
    layout: DevnetLayout, sleeper: subprocess.Popen[bytes]
) -> None:
    remember(layout, sleeper.pid)

    require_alive(layout)


def test_require_alive_after_a_kill_of_our_child_is_refused(
    layout: DevnetLayout, sleeper: subprocess.Popen[bytes]
) -> None:
    remember(layout, sleeper.pid)
    sleeper.send_signal(signal.SIGKILL)
    sleeper.wait()

    with pytest.raises(FatalError) as caught:
        require_alive(layout)

    assert caught.value.code == "EMC-2233"
