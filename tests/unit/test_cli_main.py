"""The command line's frame: help without imports, errors on stderr, exit codes, suggestions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from emcd.cli import main as main_module
from emcd.cli.main import main
from emcd.cli.summary import find_summary
from emcd.errors import FatalError, RecoverableError
from emcd.registry import COMMANDS, list_commands
from tests.support.process import ROOT, make_environment

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMCD_CONFIG", raising=False)
    monkeypatch.setenv("EMCD_DATA_DIR", str(tmp_path / "data"))

    def invoke(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return invoke


def test_help_lists_every_command_with_its_sentence(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in list_commands():
        assert f"\n  {name} " in out, name
    assert "Judge a configuration file" in out


def test_help_imports_no_role_and_nothing_heavy() -> None:
    program = (
        "import sys\nfrom emcd.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'web3', 'onnxruntime', 'eth_account', 'numpy', 'sqlite3', 'asks', 'emcd.daemon'}\n"
        "roles = [n for n in sys.modules if n.startswith('emcd_') and '.' in n]\n"
        "print('IMPORTED', sorted(heavy & set(sys.modules)) + roles)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=make_environment(), check=True
    )
    assert done.stdout.splitlines()[-1] == "IMPORTED []"


def test_no_arguments_and_no_config_prints_help(run: Run) -> None:
    code, out, _ = run()
    assert code == 2
    assert "Usage:" in out


def test_version_is_printed(run: Run) -> None:
    assert run("--version")[:2] == (0, "emcd, version 0.1.0\n")


def test_unknown_command_suggests_the_right_one(run: Run) -> None:
    code, _, err = run("chek")
    assert code == 2
    assert "did you mean 'check'?" in err


def test_unknown_role_is_a_numbered_fault(run: Run) -> None:
    code, _, err = run("--role", "hubb")
    assert code == 1
    assert err.startswith("EMC-1012: ") and "did you mean 'hub'" in err


def test_error_as_json_names_every_fault(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[daemon]\nlog_level = 'x'\ndrain_s = -1")
    code, out, err = run("--config", "bad.toml", "ledger", "tables", "--json")
    error = json.loads(err)["error"]
    assert (code, out) == (1, "")
    assert [fault["where"] for fault in error["faults"]] == ["[daemon].log_level", "[daemon].drain_s"]
    assert error["remedy"]


def test_config_of_the_command_line_reaches_the_daemon(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []

    def record(file: Path | None, roles: tuple[str, ...]) -> int:
        called.append((file, roles))
        return 7

    monkeypatch.setattr(main_module, "_run_daemon", record)
    assert run("--config", "x.toml", "--role", "a", "--role", "b")[0] == 7
    assert called == [(Path("x.toml"), ("a", "b"))]


def test_faults_in_a_group_are_printed_and_bugs_are_raised(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = ExceptionGroup("inner", [FatalError("EMC-1019", "port"), RecoverableError("EMC-1032", "none")])

    def fail(exc: Exception) -> None:
        monkeypatch.setattr(main_module, "_run_daemon", Raiser(ExceptionGroup("outer", [exc])))

    fail(inner)
    code, _, err = run("--config", "x.toml")
    assert (code, [line[:8] for line in err.splitlines()]) == (1, ["EMC-1019", "EMC-1032"])
    fail(ValueError("a bug"))
    with pytest.raises(ExceptionGroup, match="outer"):
        main(["--config", "x.toml"])


class Raiser:
    """A function that fails with what it was given."""

    def __init__(self, exc: Exception) -> None:
        self.exc = exc

    def __call__(self, *_args: object) -> int:
        raise self.exc


def test_summary_of_what_is_not_there_says_so() -> None:
    assert find_summary(EntryPoint("x", "no_such_package.cli:x", COMMANDS)) == "(not installed)"
    assert find_summary(EntryPoint("x", "emcd.cli.check:nothing", COMMANDS)) == ""


@pytest.mark.parametrize("name", sorted(list_commands()))
def test_every_command_has_help_worth_reading(run: Run, name: str) -> None:
    code, out, err = run(name, "--help")
    assert code == 0, err
    assert len(out.split("Options:")[0]) > len(f"Usage: emcd {name} [OPTIONS]") + 20


def test_every_command_can_print_json() -> None:
    """Every leaf command has --json; groups pass it on to theirs."""
    import click

    from emcd.registry import load_point

    missing = []
    for name, point in list_commands().items():
        waiting = [(name, load_point(point))]
        while waiting:
            path, command = waiting.pop()
            if isinstance(command, click.Group):
                waiting += [(f"{path} {sub}", child) for sub, child in command.commands.items()]
            elif not any("--json" in option.opts for option in command.params):  # type: ignore[attr-defined]
                missing.append(path)
    assert missing == []


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "emcd", "--version"],
        capture_output=True, text=True, cwd=ROOT, env=make_environment(), check=True,
    )  # fmt: skip
    assert done.stdout.startswith("emcd, version")
