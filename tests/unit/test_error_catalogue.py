"""Every error number used has one row, every row is used, and every row helps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from emcd.errors import ConfigError, EmcdError, FatalError, load_catalogue

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"EMC-\d{4}")


def list_sources() -> list[Path]:
    return [path for folder in ("emcd", "plugins") for path in sorted((ROOT / folder).rglob("*.py"))]


def list_used(path: Path) -> Iterator[str]:
    """Codes in strings that the program uses: every one but docstrings and other bare strings."""
    tree = ast.parse(path.read_text("utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield from CODE.findall(node.value)


def list_mentioned(path: Path) -> Iterator[str]:
    """Every code anywhere in a file."""
    yield from CODE.findall(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def used() -> dict[str, Path]:
    return {code: path for path in list_sources() for code in list_used(path)}


def test_every_code_used_has_a_row(used: dict[str, Path]) -> None:
    missing = {
        code: str(path.relative_to(ROOT)) for code, path in used.items() if code not in load_catalogue()
    }
    assert missing == {}


def test_every_row_is_used(used: dict[str, Path]) -> None:
    assert sorted(set(load_catalogue()) - set(used)) == []


def test_every_code_mentioned_in_a_text_exists(used: dict[str, Path]) -> None:
    """A docstring or message that promises a code must not promise one that nobody raises."""
    stale = {
        (code, str(path.relative_to(ROOT)))
        for path in list_sources()
        for code in list_mentioned(path)
        if code not in used
    }
    assert stale == set()


def test_every_row_helps() -> None:
    for code, row in load_catalogue().items():
        assert len(row.summary) > 10, code
        assert len(row.remedy) > 5, code


def test_every_file_keeps_to_its_range() -> None:
    for path in sorted((ROOT / "emcd" / "catalogue").glob("*.toml")):
        area = path.name.split("-", 1)[0]
        assert area.isdigit(), path.name
        outside = [code for code in CODE.findall(path.read_text()) if not code.startswith(f"EMC-{area}")]
        assert outside == [], path.name


def test_error_text_names_code_thing_and_remedy() -> None:
    error = ConfigError("EMC-1014", "here")
    assert str(error) == f"EMC-1014: here ({load_catalogue()['EMC-1014'].remedy})"
    assert str(FatalError("EMC-0000", "nameless")) == "EMC-0000: nameless"
    assert issubclass(FatalError, EmcdError)
