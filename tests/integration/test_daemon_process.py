"""The daemon as a process, with a third party's role: start, status, double start, signals, kill -9."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import ROOT, DaemonProcess, make_environment, run_emcd

CONFIG = """
[daemon]
data_dir = "data"
log_format = "json"

[[role]]
kind = "pulse"
interval_s = 0.01
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example role, installed as a package of its own."""
    source = tmp_path_factory.mktemp("source") / "example_role"
    shutil.copytree(ROOT / "tests" / "support" / "example_role", source)
    target = tmp_path_factory.mktemp("target")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--no-index", "--target", str(target), str(source)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return target


class Home:
    """A folder with a configuration, and commands in it."""

    def __init__(self, folder: Path, installed: Path) -> None:
        self.folder = folder
        self.environment = make_environment(installed)
        (folder / "emcd.toml").write_text(CONFIG)
        self.daemons: list[DaemonProcess] = []

    def start(self, *arguments: str) -> DaemonProcess:
        daemon = DaemonProcess(arguments, self.folder, self.environment)
        self.daemons.append(daemon)
        return daemon

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_emcd(*arguments, cwd=self.folder, environment=self.environment)

    def count_beats(self) -> int:
        return int(json.loads(self.run("pulse", "count", "--json").stdout)["beats"])


@pytest.fixture
def home(tmp_path: Path, installed: Path) -> Iterator[Home]:
    made = Home(tmp_path, installed)
    yield made
    for daemon in made.daemons:
        daemon.kill()


def test_third_partys_role_runs_and_stops_with_code_zero(home: Home) -> None:
    checked = home.run("check", "emcd.toml", "--json")
    assert (checked.returncode, json.loads(checked.stdout)["ok"]) == (0, True), checked.stderr
    daemon = home.start()
    daemon.wait_ready()
    status = home.run("status", "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["roles"][0]["state"] == "ready"
    assert "pulse" in home.run("status").stdout
    assert "emcd_loop_lag_seconds" in home.run("status", "--metrics").stdout
    assert "pulse" in home.run("--help").stdout
    assert home.count_beats() > 0
    assert daemon.stop() == 0
    assert home.run("status").returncode == 1
    shown = json.loads(home.run("ledger", "show", "pulse_beats", "--limit", "1", "--json").stdout)
    assert shown[0]["instance"] == "pulse"


def test_second_daemon_on_the_same_ledger_is_refused(home: Home) -> None:
    home.start().wait_ready()
    second = home.run("--config", "emcd.toml")
    assert second.returncode == 1
    assert second.stderr.startswith("EMC-1201: ")


def test_killed_daemon_starts_again_and_lost_nothing(home: Home) -> None:
    counts = [0]
    for _ in range(3):
        daemon = home.start("--role", "pulse")
        daemon.wait_ready()
        while home.count_beats() == counts[-1]:
            pass
        counts.append(home.count_beats())
        assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
        assert home.count_beats() >= counts[-1]
    assert counts == sorted(counts)
    tables = home.run("ledger", "tables")
    assert tables.returncode == 0 and "pulse_beats" in tables.stdout


def test_interrupt_stops_with_code_zero(home: Home) -> None:
    daemon = home.start()
    daemon.wait_ready()
    assert daemon.stop(signal.SIGINT) == 0
    events = [line["event"] for line in daemon.list_log()]
    assert events[-1] == "stopped"
    assert "signal" in events


def test_faulty_config_is_refused_with_every_fault(home: Home) -> None:
    (home.folder / "emcd.toml").write_text(CONFIG + 'intervall = 1\n[[role]]\nkind = "puls"\n')
    started = home.run()
    assert started.returncode == 1
    assert started.stderr.startswith("1. EMC-10")
    assert "did you mean 'pulse'" in started.stderr and "did you mean 'interval_s'" in started.stderr


def test_example_readme_config_is_good(home: Home) -> None:
    readme = (ROOT / "tests" / "support" / "example_role" / "README.md").read_text()
    (home.folder / "readme.toml").write_text(readme.split("```toml\n")[1].split("```")[0])
    checked = home.run("check", "readme.toml")
    assert checked.returncode == 0, checked.stdout
