"""The devnet's one daemon process: started, found again, stopped.

The pid file holds the pid and the process's start time, so that a pid used again by somebody
else is never taken for ours.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import trio

from emcd.errors import ConfigError, FatalError
from emcd_devchain.devnet.layout import HOST, DevnetLayout

STOP_GRACE_S = 40.0


def start_daemon(layout: DevnetLayout, config: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `emcd --config conf/devnet.toml` in the background, its log in emcd.log.

    Raises: ConfigError EMC-2231 when this devnet is running already, EMC-2237 when a port is taken.
    """
    running = find_daemon(layout)
    if running is not None:
        raise ConfigError("EMC-2231", f"process {running} runs the devnet in {layout.folder}")
    _require_free(layout.ports)
    environment = {**os.environ, **variables}
    with layout.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "emcd", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    layout.process.write_text(f"{process.pid} {_started_at(process.pid)}\n")
    return process


def find_daemon(layout: DevnetLayout) -> int | None:
    """The pid of the running daemon, or None."""
    try:
        pid_text, started = layout.process.read_text().split()
        pid = int(pid_text)
    except (FileNotFoundError, ValueError):
        return None
    return pid if _started_at(pid) == started and started != "-" else None


async def stop_daemon(layout: DevnetLayout) -> bool:
    """Ask the daemon to drain and end; False when none runs. Kills it past the grace.

    Raises: FatalError EMC-2232 when it had to be killed.
    """
    pid = find_daemon(layout)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    with trio.move_on_after(STOP_GRACE_S):
        while find_daemon(layout) is not None:
            _reap(pid)
            await trio.sleep(0.1)
        layout.process.unlink(missing_ok=True)
        return True
    os.kill(pid, signal.SIGKILL)
    _reap(pid)
    raise FatalError("EMC-2232", f"process {pid} did not end within {STOP_GRACE_S:.0f} s and was killed")


def require_alive(layout: DevnetLayout) -> None:
    """Raises: FatalError EMC-2233 with the end of the log when the daemon is gone."""
    pid = find_daemon(layout)
    if pid is not None:
        _reap(pid)
        if find_daemon(layout) is not None:
            return
    tail = layout.log.read_text("utf-8", "replace").splitlines()[-15:] if layout.log.exists() else []
    raise FatalError("EMC-2233", f"see {layout.log}; it ends with:\n" + "\n".join(tail))


def _require_free(ports: Iterable[int]) -> None:
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as exc:
                raise ConfigError("EMC-2237", f"{HOST}:{port}: {exc.strerror}") from exc


def _reap(pid: int) -> None:
    """Collect the daemon's exit status if it is our child, or it would stay a zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def _started_at(pid: int) -> str:
    """The start time of a process in clock ticks; "-" when there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return "-"
        return _started_at_by_ps(pid)
    return "-" if fields[0] == "Z" else fields[19]


def _started_at_by_ps(pid: int) -> str:
    """The same where there is no /proc (macOS)."""
    shown = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    return "_".join(shown[1:]) if shown and not shown[0].startswith("Z") else "-"
