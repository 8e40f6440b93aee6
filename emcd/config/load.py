"""Reading a configuration file: TOML, variables, strict decoding, role selection.

Pure but for reading that one file. Invariant: every fault of the file is in the one exception.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from emcd.config.decode import decode
from emcd.config.environment import replace_variables
from emcd.config.fault import (
    BAD_VALUE,
    MISSING_KEY,
    SYNTAX,
    UNKNOWN_KEY,
    ConfigFaults,
    Fault,
    did_you_mean,
    in_file,
)
from emcd.config.model import (
    NAME_PATTERN,
    ChainConfig,
    Config,
    DaemonConfig,
    NetworkConfig,
    RoleEntry,
    RoleKinds,
    default_data_dir,
)
from emcd.errors import ConfigError

T = TypeVar("T")

UNKNOWN_ROLE = "EMC-1012"
DUPLICATE_NAME = "EMC-1013"
NO_ROLE = "EMC-1014"
_SECTIONS = {"daemon": DaemonConfig, "network": NetworkConfig, "chain": ChainConfig}
SEARCHED = (Path("emcd.toml"), Path("/etc/emcd/emcd.toml"))


def find_config_file(explicit: Path | None) -> Path | None:
    """The file given, or EMCD_CONFIG, or ./emcd.toml, or /etc/emcd/emcd.toml; None without any."""
    if explicit is not None:
        return explicit
    named = os.environ.get("EMCD_CONFIG")
    if named:
        return Path(named)
    return next((path for path in SEARCHED if path.is_file()), None)


def load_config(
    file: Path | None,
    kinds: RoleKinds,
    *,
    select: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read and judge a configuration.

    Args:
        file: None for the defaults alone.
        select: kinds of roles to enable; empty for all of the file. A selected kind without a
            table gets its defaults.

    Raises: ConfigFaults with every fault.
    """
    document = _read(file) if file is not None else {}
    return load_document(document, kinds, file=file, select=select, environment=environment)


def load_daemon_config(file: Path | None, environment: Mapping[str, str] | None = None) -> DaemonConfig:
    """The [daemon] table alone, for commands that talk to a daemon or open its files; roles are not judged.

    Raises: ConfigFaults.
    """
    document = _read(file) if file is not None else {}
    folder = Path(file).resolve().parent if file else Path.cwd()
    table, faults = replace_variables(
        document.get("daemon", {}), "[daemon]", os.environ if environment is None else environment
    )
    daemon, wrong = decode(DaemonConfig, table, "[daemon]", base=folder)
    if daemon is None or faults or wrong:
        raise ConfigFaults(in_file(faults + wrong, str(file or "")))
    return daemon


def load_document(
    document: dict[str, Any],
    kinds: RoleKinds,
    *,
    file: Path | None = None,
    select: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Like `load_config`, for a document that is already parsed."""
    variables = os.environ if environment is None else environment
    reading = _Reading(kinds, Path(file).resolve().parent if file else Path.cwd(), variables)
    config = reading.read(document, file, select)
    if reading.faults or config is None:
        raise ConfigFaults(in_file(reading.faults, str(file) if file else ""))
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigFaults([Fault("", f"is no TOML: {exc}", SYNTAX, str(file))]) from exc
    except OSError as exc:
        raise ConfigFaults([Fault("", f"can't be read: {exc.strerror}", SYNTAX, str(file))]) from exc


class _Reading:
    """One pass over a document; gathers faults."""

    def __init__(self, kinds: RoleKinds, folder: Path, variables: Mapping[str, str]) -> None:
        self._kinds = kinds
        self._folder = folder
        self._variables = variables
        self.faults: list[Fault] = []

    def read(self, document: dict[str, Any], file: Path | None, select: Sequence[str]) -> Config | None:
        known = [*_SECTIONS, "role"]
        for key in document:
            if key not in known:
                self.faults.append(Fault(key, f"unknown table{did_you_mean(key, known)}", UNKNOWN_KEY))
        daemon = self._decode(DaemonConfig, document.get("daemon", {}), "[daemon]", self._folder)
        data_dir = daemon.data_dir if daemon else default_data_dir()
        network = self._decode(NetworkConfig, document.get("network", {}), "[network]", data_dir)
        chain = self._decode(ChainConfig, document.get("chain", {}), "[chain]", data_dir)
        roles = self._roles(document.get("role", []), select, data_dir)
        if daemon is None or network is None or chain is None:
            return None
        return Config(file, daemon, network, chain, tuple(roles))

    def _decode(self, cls: type[T], table: object, where: str, base: Path) -> T | None:
        replaced, unset = replace_variables(table, where, self._variables)
        value, faults = decode(cls, replaced, where, base=base)
        blank = {fault.where for fault in unset}  # what is said of these would be said of ""
        self.faults += [*unset, *(fault for fault in faults if fault.where not in blank)]
        return None if unset else value

    def _roles(self, tables: object, select: Sequence[str], data_dir: Path) -> list[RoleEntry]:
        if not isinstance(tables, list):
            self.faults.append(Fault("role", "write [[role]] in double brackets: there may be several"))
            tables = []
        kinds = self._kinds.list_kinds()
        entries: list[RoleEntry] = []
        names: Counter[str] = Counter()
        for number, table in enumerate(tables, 1):
            kind, name = self._head(table, number, kinds)
            if kind is None:
                continue
            names[name] += 1
            if not select or kind in select:  # only enabled kinds are imported
                entries += self._entry(kind, name, table, data_dir)
        for kind in dict.fromkeys(select):
            if kind not in kinds:
                hint = did_you_mean(kind, kinds)
                self.faults.append(Fault("--role", f"no role {kind!r} is installed{hint}", UNKNOWN_ROLE))
            elif not any(isinstance(table, dict) and table.get("kind") == kind for table in tables):
                entries += self._entry(kind, kind, {"kind": kind}, data_dir)
        self.faults += [
            Fault(f"[[role]] {name}", f"{count} roles have this name", DUPLICATE_NAME)
            for name, count in names.items()
            if count > 1
        ]
        if not tables and not select:
            self.faults.append(Fault("", "no role is enabled: add a [[role]] table or --role KIND", NO_ROLE))
        return entries

    def _head(self, table: object, number: int, kinds: list[str]) -> tuple[str | None, str]:
        where = f"[[role]] {number}"
        if not isinstance(table, dict):
            self.faults.append(Fault(where, "expected a table"))
            return None, ""
        kind = table.get("kind")
        if kind is None:
            self.faults.append(Fault(f"{where}.kind", f"is required: one of {', '.join(kinds)}", MISSING_KEY))
            return None, ""
        if kind not in kinds:
            hint = did_you_mean(str(kind), kinds) or f"; installed: {', '.join(kinds)}"
            self.faults.append(Fault(f"{where}.kind", f"no role {kind!r} is installed{hint}", UNKNOWN_ROLE))
            return None, ""
        name, unset = replace_variables(table.get("name", kind), f"{where}.name", self._variables)
        if unset:
            self.faults += unset
            return str(kind), f"{kind}-{number}"
        if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
            message = "a name is 1 to 40 lower-case letters, digits and hyphens, beginning with a letter"
            self.faults.append(Fault(f"{where}.name", message, BAD_VALUE))
            return str(kind), f"{kind}-{number}"
        return str(kind), name

    def _entry(self, kind: str, name: str, table: dict[str, Any], data_dir: Path) -> list[RoleEntry]:
        own = {key: value for key, value in table.items() if key not in ("kind", "name")}
        where = f"[[role]] {name}"
        try:
            config_type = self._kinds.load_config_type(kind)
        except ConfigError as exc:
            self.faults.append(Fault(where, exc.detail, exc.code))
            return []
        config = self._decode(config_type, own, where, data_dir)
        return [] if config is None else [RoleEntry(kind, name, config)]
