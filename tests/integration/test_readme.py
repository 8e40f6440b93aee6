"""What the READMEs say: every `emcd` line parses, every file named is there, every target is listed."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from emcd.cli.main import emcd
from emcd.config import decode
from emcd.registry import Registry

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("plugins/*/README.md"))]
CONFIGS = sorted((ROOT / "conf").glob("*.toml"))
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
NO_SUCH_CERTIFICATE = "EMC-1011"
MADE_LATER = (".devnet/", "my-node", "wallet.json")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def list_blocks(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def list_commands(path: Path) -> list[str]:
    """Every emcd command line of a README or of a configuration's comments, without shell around it."""
    text = path.read_text("utf-8")
    if path.suffix == ".toml":
        text = re.sub(r"\n# ", " ", text)
        return sorted({code for code in INLINE.findall(text) if code.startswith("emcd ")})
    mentioned = {code for code in INLINE.findall(FENCE.sub("", text)) if code.startswith("emcd ")}
    return sorted(mentioned | set(list_shell_lines(path)))


def list_shell_lines(path: Path) -> Iterator[str]:
    """The emcd commands of a README's shell blocks."""
    for block in list_blocks(path.read_text("utf-8"), "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line.split("  #")[0]):
                command = part.strip().removeprefix(".venv/bin/")
                if command.startswith("emcd "):
                    yield command


def resolve(line: str) -> tuple[click.Context, click.Command, list[str]]:
    """The command that a line means, and what it gives that command. Raises: click.UsageError."""
    words = shlex.split(line.replace("...", "").replace("[", "").replace("]", ""))[1:]
    context = click.Context(emcd, info_name="emcd")
    command: click.Command = emcd
    while isinstance(command, click.Group):
        words = _skip_options(command, words)
        if not words:
            break
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        context = click.Context(found, parent=context, info_name=found.name)
        command = found
    return context, command, words


def _skip_options(group: click.Group, words: list[str]) -> list[str]:
    """Take the group's own options away. Raises: AssertionError for one it does not have."""
    takes = {name: param for param in group.params for name in param.opts}
    while words and words[0].startswith("-"):
        name, *words = words
        assert name in takes, f"{group.name} has no option {name}"
        option = takes[name]
        if isinstance(option, click.Option) and not option.is_flag:
            words = words[1:]
    return words


LINES = [(path, line) for path in (*READMES, *CONFIGS) for line in list_commands(path)]


def test_readmes_hold_the_lines_that_are_tried_here() -> None:
    lines = {line for _, line in LINES}

    assert len(lines) > 25
    assert "emcd audit 0" in lines
    assert "emcd credits grant alice 1000" in lines
    assert any(line.startswith("emcd keys new") for line in lines)


@pytest.mark.parametrize(
    ("path", "line"), LINES, ids=lambda item: name_of(item) if isinstance(item, Path) else item
)
def test_readme_command_line_names_a_command_and_its_options(path: Path, line: str) -> None:
    _, command, words = resolve(line)
    names = _names_in_help(line)
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    used = {word.split("=")[0] for word in words if word.startswith("--")}

    assert used <= known, f"{name_of(path)}: {line}"
    assert used <= names, f"--help does not list what {line} uses"


def _names_in_help(line: str) -> set[str]:
    """The options that `emcd COMMAND --help` lists."""
    context, _, _ = resolve(line)
    path = context.command_path.split()[1:]
    result = CliRunner().invoke(emcd, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Usage: ")
    return set(re.findall(r"--[a-z-]+", result.output))


@pytest.mark.parametrize("line", sorted({line for path in READMES for line in list_shell_lines(path)}))
def test_readme_shell_line_is_complete(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument and required option is there; files need not be."""
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, _param, _context: value)
    context, command, words = resolve(line)

    if command is not emcd:
        command.make_context(context.info_name, words, parent=context.parent)


def test_a_wrong_line_would_be_found() -> None:
    with pytest.raises(click.UsageError, match="no command 'aduit'"):
        resolve("emcd aduit 0")
    assert "--wallet-key" not in _names_in_help("emcd node register --wallet-key x")
    with pytest.raises(AssertionError, match="no option --conf"):
        resolve("emcd --conf x audit 0")


@pytest.mark.parametrize("path", [*READMES, ROOT / "tests" / "README.md"], ids=name_of)
def test_files_named_in_a_readme_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:\.\./)?(?:emcd|plugins|conf|tests|unit|support)/[\w./-]+)`", text)
    named += re.findall(r"\bconf/[\w-]+\.toml", text)
    missing = [
        name
        for name in (*links, *named)
        if not name.startswith(MADE_LATER) and not any((base / name).exists() for base in (path.parent, ROOT))
    ]

    assert missing == []


def test_every_plugin_has_a_readme() -> None:
    plugins = [module.parent for module in ROOT.glob("plugins/*/__init__.py")]

    assert len(plugins) >= 5
    assert [plugin.name for plugin in plugins if not (plugin / "README.md").is_file()] == []


def test_make_help_lists_every_target_that_a_readme_names() -> None:
    text = "\n".join(path.read_text("utf-8") for path in (*READMES, ROOT / "tests" / "README.md"))
    wanted = set(re.findall(r"`?make ([a-z]+(?:-[a-z]+)*)\b(?=[`\s;,)])", "\n".join(_code(text))))
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    listed = {line.split()[0] for line in shown.splitlines()}

    assert {"run", "smoke", "install", "test", "help"} <= wanted
    assert wanted <= listed
    assert set(_phony()) == listed


def _code(text: str) -> list[str]:
    """What stands in backticks or in a shell block."""
    return [*list_blocks(text, "sh"), *(f"{code}`" for code in INLINE.findall(FENCE.sub("", text)))]


def _phony() -> list[str]:
    (line,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    return str(line).split()


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_python_and_toml_in_a_readme_are_what_they_say(path: Path) -> None:
    text = path.read_text("utf-8")
    for block in list_blocks(text, "python"):
        ast.parse(block)
    for block in list_blocks(text, "toml"):
        for table in tomllib.loads(block.replace("0xYourHubsAddress", "0x" + "0" * 40))["role"]:
            name = table.pop("name")
            _, faults = decode(Registry().get(table.pop("kind")).config, table)
            assert [fault for fault in faults if fault.code != NO_SUCH_CERTIFICATE] == [], name


def test_readme_shell_calls_use_the_keys_of_devnet_json() -> None:
    """The export lines read what devnet.json has."""
    from emcd_devchain.devnet import prepare

    source = Path(prepare.__file__).read_text("utf-8")
    used = re.findall(r"\['(\w+)'\]", (ROOT / "README.md").read_text("utf-8"))

    assert used == ["api_key"]
    assert all(f'"{name}": ' in source for name in used)
