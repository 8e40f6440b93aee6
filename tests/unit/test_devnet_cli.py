"""`emcd devnet` where nothing runs: status, stop, reset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from emcd.errors import ConfigError
from emcd_devchain import cli as cli_module
from emcd_devchain.cli import devnet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMCD_DEVNET_DIR", str(tmp_path / "net"))
    monkeypatch.delenv("EMCD_HUB_PORT", raising=False)
    return tmp_path / "net"


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(devnet, arguments, input=answer)


def code_of(result: Result) -> str:
    assert isinstance(result.exception, ConfigError), result.output
    return result.exception.code


def test_status_of_nothing_says_so_and_fails(folder: Path) -> None:
    plain, as_json = run("status"), run("status", "--json")

    assert (plain.exit_code, plain.output) == (1, "not running\n")
    assert as_json.exit_code == 1
    assert json.loads(as_json.output) == {
        "running": False,
        "pid": None,
        "devnet": str(folder / "devnet.json"),
        "hub_url": "http://127.0.0.1:8420",
    }


def test_stop_of_nothing_is_no_failure(folder: Path) -> None:
    assert (run("stop").exit_code, run("stop").output) == (0, "nothing was running\n")
    assert json.loads(run("stop", "--json").output) == {"stopped": False}


def test_reset_without_a_devnet_touches_nothing(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")

    assert code_of(run("reset", "--yes")) == "EMC-2235"
    assert (folder / "mine.txt").exists()


def test_reset_of_a_running_devnet_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "devnet.json").write_text("{}")
    monkeypatch.setattr(cli_module, "find_daemon", lambda _: 17)

    assert code_of(run("reset", "--yes")) == "EMC-2231"
    assert folder.exists()


@pytest.mark.parametrize("answer", ["", "n\n"])
def test_reset_without_a_yes_removes_nothing(folder: Path, answer: str) -> None:
    folder.mkdir()
    (folder / "devnet.json").write_text("{}")

    assert run("reset", answer=answer).exit_code == 1
    assert folder.exists()


def test_reset_removes_the_folder_and_says_which(folder: Path) -> None:
    folder.mkdir()
    (folder / "devnet.json").write_text("{}")

    assert json.loads(run("reset", "--yes", "--json").output) == {"removed": str(folder)}
    assert not folder.exists()


@pytest.mark.parametrize("command", ["run", "smoke", "stop", "status", "reset"])
def test_port_that_is_none_is_refused_by_every_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("EMCD_HUB_PORT", "eighty")

    assert code_of(run(command)) == "EMC-2230"


@pytest.mark.parametrize("command", ["run", "smoke"])
def test_config_that_is_not_there_is_refused(folder: Path, command: str) -> None:
    result = run(command, "--config", "nowhere.toml")

    assert result.exit_code == 2
    assert "nowhere.toml" in result.output
    assert not folder.exists()
