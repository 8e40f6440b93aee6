"""The top of the configuration: [daemon], [network], [chain], and one [[role]] table per role.

Invariant: every relative path is relative to `data_dir`; `data_dir` itself to the file's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

from emcd.config.fault import Fault
from emcd.config.value import BAD_ADDRESS, KeyFile, is_loopback, setting

_GWEI = 10**9
NAME_PATTERN = r"[a-z][a-z0-9-]{0,39}"


def default_data_dir() -> Path:
    """EMCD_DATA_DIR, or emcd's folder in the user's data folder."""
    explicit = os.environ.get("EMCD_DATA_DIR")
    if explicit:
        return Path(explicit).absolute()
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "emcd"


@dataclass(frozen=True)
class DaemonConfig:
    """[daemon]: what all roles of this process share."""

    data_dir: Path = setting(factory=default_data_dir, doc="Ledger, keys, models and copies live here.")
    log_format: Literal["auto", "json", "console"] = setting(
        "auto", doc="auto: coloured on a terminal, JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    status_listen: str = setting(
        "unix:status.sock", doc='Where `emcd status` asks: "unix:PATH", "127.0.0.1:PORT", or "" for nowhere.'
    )
    drain_s: float = setting(20.0, minimum=0, maximum=3600, doc="How long one role may take to drain.")
    grace_s: float = setting(60.0, minimum=0, maximum=3600, doc="How long the whole daemon may take to stop.")

    def check(self) -> list[Fault]:
        text = self.status_listen
        if not text or text.startswith("unix:"):
            return []
        host, _, port = text.rpartition(":")
        if not port.isdigit() or not is_loopback(host.strip("[]")):
            message = f'{text!r} is neither "unix:PATH" nor a loopback host:port'
            return [Fault("status_listen", message, BAD_ADDRESS)]
        return []


@dataclass(frozen=True)
class NetworkConfig:
    """[network]: which network this is."""

    deployment: Path = setting(
        Path("deployment.json"), doc="Chain id, contracts and parameters of the network."
    )


@dataclass(frozen=True)
class ChainConfig:
    """[chain]: how the chain is reached, and what may be paid for gas."""

    rpc_urls: tuple[str, ...] = setting((), doc="JSON-RPC addresses, tried in order.")
    agree: int = setting(
        1,
        minimum=1,
        maximum=16,
        doc="How many of the addresses must give the same blocks, logs and states before they are believed; "
        "2 is wise with addresses of different operators.",
    )
    confirmations: int = setting(2, minimum=1, maximum=1000, doc="How deep a block must lie to count.")
    timeout_s: float = setting(10.0, minimum=0.1, maximum=300, doc="How long one request may take.")
    poll_s: float = setting(1.0, minimum=0.05, maximum=300, doc="How often a new block is looked for.")
    max_fee_per_gas_wei: int = setting(
        500 * _GWEI, minimum=1, doc="The most that is paid per gas, base fee and tip together (500 gwei)."
    )
    max_tip_per_gas_wei: int = setting(
        50 * _GWEI, minimum=0, doc="The most of it that goes to the block's maker (50 gwei)."
    )
    least_tip_per_gas_wei: int = setting(
        _GWEI, minimum=0, doc="The least that is offered to the block's maker (1 gwei)."
    )
    bump_bps: int = setting(
        1_250,
        minimum=1_000,
        maximum=10_000,
        doc="By how much a replacement of a stuck transaction pays more, in basis points; nodes ask for 1000.",
    )
    bump_after_s: float = setting(
        30.0,
        minimum=1,
        maximum=86_400,
        doc="How long a transaction may wait in no block before it pays more.",
    )
    resend_after_s: float = setting(
        10.0, minimum=0.1, maximum=86_400, doc="How long before the same transaction is sent once more."
    )
    max_transaction_cost_wei: int = setting(
        10**18, minimum=0, doc="The most that the gas of one transaction may cost (1 coin); 0: no limit."
    )
    max_day_cost_wei: int = setting(
        5 * 10**18, minimum=0, doc="The most that a key spends on gas within 24 hours (5 coins); 0: no limit."
    )

    def check(self) -> list[Fault]:
        faults = [
            Fault(f"rpc_urls[{i}]", "expected http://host:port or https://host")
            for i, url in enumerate(self.rpc_urls)
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname
        ]
        if len(set(self.rpc_urls)) < len(self.rpc_urls):
            faults.append(Fault("rpc_urls", "the same address stands there twice"))
        if self.rpc_urls and self.agree > len(self.rpc_urls):
            faults.append(Fault("agree", f"{len(self.rpc_urls)} rpc_urls can't agree {self.agree} times"))
        if self.max_tip_per_gas_wei > self.max_fee_per_gas_wei:
            faults.append(Fault("max_tip_per_gas_wei", "is above max_fee_per_gas_wei, which includes it"))
        if self.least_tip_per_gas_wei > self.max_tip_per_gas_wei:
            faults.append(Fault("least_tip_per_gas_wei", "is above max_tip_per_gas_wei"))
        return faults


@dataclass(frozen=True)
class RoleEntry:
    """One enabled role: its kind, its instance name, its own decoded config."""

    kind: str
    name: str
    config: object


@dataclass(frozen=True)
class Config:
    """A whole configuration without a fault."""

    file: Path | None
    daemon: DaemonConfig
    network: NetworkConfig
    chain: ChainConfig
    roles: tuple[RoleEntry, ...]

    @property
    def ledger_path(self) -> Path:
        return self.daemon.data_dir / "ledger.db"


class RoleKinds(Protocol):
    """What loading a config asks of the installed roles; `emcd.registry` is one."""

    def list_kinds(self) -> list[str]: ...

    def load_config_type(self, kind: str) -> type:
        """Import the role. Raises: ConfigError when it can't be imported."""
        ...


def list_values(config: object, kind: type, where: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a class anywhere in a decoded config, with its path: all KeyFile, all Listen."""
    if isinstance(config, kind):
        yield where, config
    elif is_dataclass(config):
        for field in fields(config):
            path = f"{where}.{field.name}" if where else field.name
            yield from list_values(getattr(config, field.name), kind, path)
    elif isinstance(config, tuple | list):
        for i, item in enumerate(config):
            yield from list_values(item, kind, f"{where}[{i}]")
    elif isinstance(config, dict):
        for key, item in config.items():
            yield from list_values(item, kind, f"{where}.{key}" if where else key)


def list_key_files(roles: tuple[RoleEntry, ...]) -> list[tuple[str, KeyFile]]:
    """Every keystore that the roles name, with its path for messages."""
    return [
        (f"[[role]] {role.name}.{where}", value)
        for role in roles
        for where, value in list_values(role.config, KeyFile)
        if isinstance(value, KeyFile)
    ]
