"""emcd as a real process: start it, wait until it is ready, stop it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 30.0


def make_environment(*first: Path, **extra: str) -> dict[str, str]:
    """The environment of a child process that imports emcd from the tree, after `first`."""
    path = os.pathsep.join(str(p) for p in (*first, ROOT, ROOT / "plugins"))
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**keep, "PYTHONPATH": path, "PYTHONWARNINGS": "default", **extra}


def run_emcd(
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float = 30,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "emcd", *arguments],
        cwd=cwd,
        env=dict(environment or make_environment()),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class DaemonProcess:
    """A running daemon; its log is in `log`."""

    def __init__(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = cwd / f"daemon-{time.monotonic_ns()}.log"
        self._cwd = cwd
        self._environment = dict(environment or make_environment())
        with self.log.open("w") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "emcd", *arguments],
                cwd=cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def wait_ready(self) -> float:
        """Wait for the log line "ready". Returns: seconds it took from now."""
        started = time.monotonic()
        while time.monotonic() - started < START_TIMEOUT_S:
            if any(line.get("event") == "ready" for line in self.list_log()):
                return time.monotonic() - started
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"not ready, exit code {self._process.poll()}:\n{self.log.read_text()}")

    def list_log(self) -> list[dict[str, Any]]:
        """The JSON lines written so far."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20) -> int:
        """Send a signal and wait. Returns: the exit code."""
        self._process.send_signal(number)
        return self._process.wait(timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is still there."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it whatever it does; safe to call again."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
