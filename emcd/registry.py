"""Which roles and commands are installed: the entry-point groups `emcd.roles` and `emcd.commands`.

It knows no role by name, and imports one only when it is enabled, a command only when it is run.
Ours enter by the same door as a third party's. Invariant: two packages that claim one name are a
fault, never a silent choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points

from emcd.errors import ConfigError
from emcd.role import API_VERSION, RoleSpec

ROLES = "emcd.roles"
COMMANDS = "emcd.commands"


class Registry:
    """The installed roles; loads a role's package on first use and keeps its spec."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self._given = None if points is None else list(points)
        self._specs: dict[str, RoleSpec] = {}

    def list_kinds(self) -> list[str]:
        """Every installed kind, sorted; nothing is imported."""
        return sorted(self._points)

    def get(self, kind: str) -> RoleSpec:
        """Import the role and return its spec.

        Raises: ConfigError EMC-1015 (not installed), EMC-1016 (its import fails, or what it
        exports is no RoleSpec of this kind), EMC-1017 (made for another plugin API).
        """
        if kind not in self._specs:
            self._specs[kind] = self._load(kind)
        return self._specs[kind]

    def load_config_type(self, kind: str) -> type:
        """The config class of a kind. Raises: as `get`."""
        return self.get(kind).config

    def _load(self, kind: str) -> RoleSpec:
        point = self._points.get(kind)
        if point is None:
            raise ConfigError("EMC-1015", f"no role {kind!r} is installed")
        spec = load_point(point)
        if not isinstance(spec, RoleSpec) or spec.kind != kind:
            raise ConfigError("EMC-1016", f"{point.value} is no RoleSpec of kind {kind!r}")
        if spec.api_version != API_VERSION:
            raise ConfigError(
                "EMC-1017", f"role {kind!r} is made for API {spec.api_version}; this emcd has {API_VERSION}"
            )
        return spec

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        points = entry_points(group=ROLES) if self._given is None else self._given
        return index_points(points)


def index_points(points: Iterable[EntryPoint]) -> dict[str, EntryPoint]:
    """Entry points by name. Raises: ConfigError EMC-1018 when two packages claim one name."""
    found: dict[str, EntryPoint] = {}
    for point in points:
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise ConfigError("EMC-1018", f"{point.name!r} is both {other.value} and {point.value}")
    return found


def list_commands() -> dict[str, EntryPoint]:
    """Every installed command by its name; nothing is imported."""
    return index_points(entry_points(group=COMMANDS))


def load_point(point: EntryPoint) -> object:
    """Import what an entry point names. Raises: ConfigError EMC-1016 when that fails."""
    try:
        return point.load()
    except (ImportError, AttributeError) as exc:
        raise ConfigError("EMC-1016", f"{point.group} {point.name!r} ({point.value}): {exc}") from exc
