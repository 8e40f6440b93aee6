"""Everything that can be judged before the start: `emcd check` stops after it, the daemon goes on.

Blocking (reads files, derives keys); opens no socket, writes nothing. Invariant: every fault is
found in one pass.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emcd.config import Config, Fault, KeyFile, list_key_files
from emcd.config.fault import ConfigFaults, in_file
from emcd.errors import ConfigError
from emcd.keys import SigningKey, load_keystore, read_keystore_address, require_private
from emcd.log import register_secret
from emcd.net.http_client import require_anyio
from emcd.proto.network import Deployment, decode_deployment
from emcd.registry import Registry
from emcd.role import RoleSpec
from emcd.services import HealthBoard

PASSWORD_VARIABLE = "EMCD_KEY_PASSWORD"
NO_PASSWORD = "EMC-1108"
OFFERED_BY_DAEMON = (HealthBoard,)


@dataclass(frozen=True)
class Prepared:
    """A configuration that can be started."""

    config: Config
    specs: tuple[RoleSpec, ...]
    deployment: Deployment | None
    keys: Mapping[KeyFile, SigningKey] = field(repr=False)
    notes: tuple[str, ...] = ()


def require_prepared(config: Config, registry: Registry) -> Prepared:
    """Judge a configuration for a start. Raises: ConfigFaults with every fault."""
    prepared, faults = prepare(config, registry)
    if faults:
        raise ConfigFaults(in_file(faults, str(config.file or "")))
    return prepared


def prepare(
    config: Config,
    registry: Registry,
    *,
    passwords_required: bool = True,
    environment: Mapping[str, str] | None = None,
) -> tuple[Prepared, list[Fault]]:
    """Judge a configuration.

    Args:
        passwords_required: False for `emcd check`: a keystore whose password is not at hand is
            a note then, not a fault.

    Returns: what the daemon needs, and every fault; with faults it must not be started.
    """
    environment = os.environ if environment is None else environment
    faults: list[Fault] = []
    notes: list[str] = []
    try:
        require_anyio()
    except ConfigError as exc:
        faults.append(Fault("", exc.detail, exc.code))
    specs = tuple(registry.get(role.kind) for role in config.roles)
    faults += _list_unmet(config, specs)
    deployment = _load_deployment(config, specs, faults)
    keys: dict[KeyFile, SigningKey] = {}
    for where, ref in list_key_files(config.roles):
        if ref in keys:
            continue
        try:
            key = _load_key(ref, environment, passwords_required, notes)
        except ConfigError as exc:
            faults.append(Fault(where, exc.detail, exc.code))
        else:
            keys |= {ref: key} if key else {}
    return Prepared(config, specs, deployment, keys, tuple(notes)), faults


def _list_unmet(config: Config, specs: tuple[RoleSpec, ...]) -> list[Fault]:
    provided = {service for spec in specs for service in spec.provides} | set(OFFERED_BY_DAEMON)
    return [
        Fault(
            f"[[role]] {role.name}",
            f"needs a role that offers {service.__name__}; none of this daemon does",
            "EMC-1031",
        )
        for role, spec in zip(config.roles, specs, strict=True)
        for service in spec.requires
        if service not in provided
    ]


def _load_deployment(config: Config, specs: tuple[RoleSpec, ...], faults: list[Fault]) -> Deployment | None:
    path = config.network.deployment
    try:
        return decode_deployment(path.read_bytes(), str(path))
    except FileNotFoundError:
        if any(spec.needs_network for spec in specs):
            faults.append(Fault("[network].deployment", f"{path} does not exist", "EMC-1006"))
    except OSError as exc:
        faults.append(Fault("[network].deployment", f"{path}: {exc.strerror}", "EMC-1006"))
    except ConfigError as exc:
        faults.append(Fault("[network].deployment", exc.detail, exc.code))
    return None


def _load_key(
    ref: KeyFile, environment: Mapping[str, str], required: bool, notes: list[str]
) -> SigningKey | None:
    address = read_keystore_address(ref.file)
    password = find_password(ref, environment)
    if password is None:
        if required:
            raise ConfigError(NO_PASSWORD, f"no password for {ref.file}")
        notes.append(f"{ref.file} ({address}) was not opened: no password at hand")
        return None
    register_secret(password)
    key = load_keystore(ref.file, password)
    register_secret(key.reveal().hex())
    return key


def find_password(ref: KeyFile, environment: Mapping[str, str]) -> str | None:
    """The password of a keystore from where its config says, or None.

    Raises: ConfigError EMC-1106 (the file is open to everybody), EMC-1108 (it can't be read).
    """
    if ref.password_file is not None:
        return read_password(ref.password_file)
    return environment.get(ref.password_env or PASSWORD_VARIABLE)


def read_password(file: Path) -> str:
    """The first line of a password file. Raises: ConfigError EMC-1106, EMC-1108."""
    try:
        require_private(file)
        return file.read_text("utf-8").split("\n", 1)[0]
    except OSError as exc:
        raise ConfigError(NO_PASSWORD, f"{file}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(NO_PASSWORD, f"{file} is not UTF-8 text") from exc
