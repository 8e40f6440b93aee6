"""The registry: lazy, strict about what it loads, the same door for everybody."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from emcd.errors import ConfigError
from emcd.registry import ROLES, Registry, index_points

MODULE = """
from dataclasses import dataclass
from emcd.role import RoleSpec
@dataclass(frozen=True)
class C: pass
SPEC = RoleSpec(kind="sample", config=C, build=lambda config: None)
OLD = RoleSpec(kind="old", config=C, build=lambda config: None, api_version=0)
NOTHING = 7
"""


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    (tmp_path / "sample_role_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    values = {
        "sample": "sample_role_module:SPEC",
        "other": "sample_role_module:SPEC",
        "old": "sample_role_module:OLD",
        "nothing": "sample_role_module:NOTHING",
        "absent": "no_such_module_anywhere:SPEC",
        "nameless": "sample_role_module:NO_SUCH",
    }
    yield [EntryPoint(name, value, ROLES) for name, value in values.items()]
    sys.modules.pop("sample_role_module", None)


def test_list_kinds_imports_nothing(points: list[EntryPoint]) -> None:
    assert Registry(points).list_kinds() == ["absent", "nameless", "nothing", "old", "other", "sample"]
    assert "sample_role_module" not in sys.modules


def test_get_imports_the_role_once(points: list[EntryPoint]) -> None:
    registry = Registry(points)
    assert registry.get("sample") is registry.get("sample")
    assert registry.load_config_type("sample") is registry.get("sample").config


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("unknown", "EMC-1015"),
        ("absent", "EMC-1016"),
        ("nameless", "EMC-1016"),
        ("nothing", "EMC-1016"),
        ("other", "EMC-1016"),  # the spec's own kind is another
        ("old", "EMC-1017"),
    ],
)
def test_get_of_no_usable_role_is_named(points: list[EntryPoint], kind: str, code: str) -> None:
    with pytest.raises(ConfigError, match=f"{code}.*{kind}"):
        Registry(points).get(kind)


def test_two_packages_that_claim_one_name_are_a_fault() -> None:
    twice = [EntryPoint("hub", "a:SPEC", ROLES), EntryPoint("hub", "b:SPEC", ROLES)]
    with pytest.raises(ConfigError, match="EMC-1018"):
        index_points(twice)
    assert list(index_points([twice[0], twice[0]])) == ["hub"]


def test_installed_roles_are_found() -> None:
    assert {"hub", "node", "validator", "settler", "devchain", "traffic"} <= set(Registry().list_kinds())
