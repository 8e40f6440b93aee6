"""setup.cfg tells the truth: packages, data files, entry points, import rules."""

from __future__ import annotations

import ast
import fnmatch
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from emcd import __version__
from emcd.registry import COMMANDS, ROLES
from tests.support.process import ROOT, make_environment

ROOTS = {"emcd": ROOT / "emcd"} | {
    path.name: path for path in sorted((ROOT / "plugins").iterdir()) if path.name.startswith("emcd_")
}
NO_DATA = ("*.py", "*.pyc", "*.md", "compile.mjs", "package.json", "package-lock.json")
"""Documentation, and what only those use who compile the contracts anew."""


@pytest.fixture(scope="module")
def setup() -> ConfigParser:
    parser = ConfigParser(delimiters="=", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(ROOT / "setup.cfg", "utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def list_packages() -> list[str]:
    """Every folder with Python files in it."""
    found = set()
    for name, folder in ROOTS.items():
        for file in folder.rglob("*.py"):
            found.add(".".join([name, *file.parent.relative_to(folder).parts]))
    return sorted(found)


def test_packages_are_those_on_disk(setup: ConfigParser) -> None:
    assert lines(setup["options"]["packages"]) == list_packages()


def test_every_package_has_an_init() -> None:
    folders = {file.parent for folder in ROOTS.values() for file in folder.rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_every_plugin_has_its_package_dir(setup: ConfigParser) -> None:
    expected = [f"{name} = plugins/{name}" for name in ROOTS if name != "emcd"]
    assert lines(setup["options"]["package_dir"]) == expected


def test_every_data_file_is_shipped(setup: ConfigParser) -> None:
    """An editable install finds a forgotten file; a wheel does not."""
    patterns = {package: lines(text) for package, text in setup["options.package_data"].items()}
    packages = set(list_packages())
    forgotten = []
    for name, folder in ROOTS.items():
        for file in sorted(folder.rglob("*")):
            if not file.is_file() or any(fnmatch.fnmatch(file.name, p) for p in NO_DATA):
                continue
            parts = [name, *file.parent.relative_to(folder).parts]
            while ".".join(parts) not in packages:
                parts.pop()
            inside = str(file.relative_to(folder.joinpath(*parts[1:])))
            if not any(fnmatch.fnmatch(inside, p) for p in patterns.get(".".join(parts), [])):
                forgotten.append(str(file.relative_to(ROOT)))
    assert forgotten == []


@pytest.mark.parametrize("group", [ROLES, COMMANDS, "console_scripts"])
def test_every_entry_point_names_something(setup: ConfigParser, group: str) -> None:
    missing = []
    for line in lines(setup["options.entry_points"][group]):
        module, _, name = line.split(" = ")[1].partition(":")
        top, *rest = module.split(".")
        file = ROOTS[top].joinpath(*rest).with_suffix(".py")
        if not file.is_file() or name not in list_names(file):
            missing.append(line)
    assert missing == []


def list_names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_version_is_one(setup: ConfigParser) -> None:
    assert setup["metadata"]["version"] == __version__


def test_every_requirement_is_in_the_lock(setup: ConfigParser) -> None:
    locked = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    }
    wanted = {line.split(">=")[0].lower() for line in lines(setup["options"]["install_requires"])}
    assert sorted(wanted - locked) == []


def test_import_rules_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", "setup.cfg", "--no-cache"],
        cwd=ROOT, env=make_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


def list_modules() -> set[str]:
    """emcd's own modules one level deep, and every role."""
    inside = (path for path in (ROOT / "emcd").iterdir() if path.suffix == ".py" or list(path.rglob("*.py")))
    core = {f"emcd.{path.stem}" for path in inside if path.stem != "__init__"}
    return core | (set(ROOTS) - {"emcd"})


@pytest.mark.parametrize(
    ("contract", "allowed"),
    [
        ("sqlite", {"emcd.ledger", "emcd_devchain"}),
        ("web3", {"emcd.chain"}),
        ("onnx", {"emcd.inference"}),
        ("net", {"emcd.net"}),
    ],
)
def test_import_rule_covers_every_module(setup: ConfigParser, contract: str, allowed: set[str]) -> None:
    covered = set(lines(setup[f"importlinter:contract:{contract}"]["source_modules"]))
    assert covered == list_modules() - allowed


def test_layers_cover_every_module(setup: ConfigParser) -> None:
    layers = setup["importlinter:contract:layers"]["layers"]
    named = {name.strip(" ()") for line in lines(layers) for name in line.split("|")}
    assert list_modules() - named == set()


def test_wheel_works_outside_the_tree(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("emcd", "plugins"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    here = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *here, "-w", tmp_path, source], check=True, timeout=300)
    (wheel,) = tmp_path.glob("emcd-*.whl")
    subprocess.run([*pip, "install", *here, "--target", tmp_path / "target", wheel], check=True, timeout=300)
    environment = make_environment() | {"PYTHONPATH": str(tmp_path / "target")}
    program = (
        "import emcd\n"
        "from importlib.metadata import distribution\n"
        "from emcd.errors import load_catalogue\n"
        "from emcd.registry import Registry, list_commands, load_point\n"
        "assert len(load_catalogue()) > 50\n"
        f"assert {str(tmp_path)!r} in emcd.__file__, emcd.__file__\n"
        "for kind in Registry(distribution('emcd').entry_points.select(group='emcd.roles')).list_kinds():\n"
        "    Registry().get(kind)\n"
        "for point in list_commands().values():\n"
        "    load_point(point)\n"
        "print('whole')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "whole\n", done.stderr
