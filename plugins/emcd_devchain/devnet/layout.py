"""Where a devnet keeps its files and which ports it takes.

Owns the names of the files under the devnet's folder and the environment variables that the
config `conf/devnet.toml` reads. Everything listens on loopback only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emcd.errors import ConfigError

HOST = "127.0.0.1"
CHAIN_ID = 31337
DEFAULT_HUB_PORT = 8420
VALIDATOR_COUNT = 4


@dataclass(frozen=True)
class DevnetLayout:
    """One devnet's folder and ports."""

    folder: Path
    hub_port: int
    tunnel_port: int
    rpc_port: int
    admin_port: int
    router_port: int
    validator_ports: tuple[int, ...]

    @property
    def summary(self) -> Path:
        """devnet.json: what other people's scripts start from."""
        return self.folder / "devnet.json"

    @property
    def state(self) -> Path:
        """What the devnet's own commands remember: wallets and stakes, no secret."""
        return self.folder / "state.json"

    @property
    def deployment(self) -> Path:
        return self.folder / "deployment.json"

    @property
    def password(self) -> Path:
        return self.folder / "password"

    @property
    def admin_token(self) -> Path:
        return self.folder / "admin.token"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def chain(self) -> Path:
        return self.folder / "devchain.sqlite"

    @property
    def models(self) -> Path:
        """Where conf/devnet.toml has its roles look for models."""
        return self.folder / "models"

    @property
    def process(self) -> Path:
        return self.folder / "emcd.pid"

    @property
    def log(self) -> Path:
        return self.folder / "emcd.log"

    def api_key(self, account: str) -> Path:
        return self.folder / "api-keys" / account

    @property
    def hub_url(self) -> str:
        return f"http://{HOST}:{self.hub_port}"

    @property
    def admin_url(self) -> str:
        return f"http://{HOST}:{self.admin_port}"

    @property
    def rpc_url(self) -> str:
        return f"http://{HOST}:{self.rpc_port}"

    @property
    def ports(self) -> tuple[int, ...]:
        """Everything that listens."""
        own = (self.hub_port, self.tunnel_port, self.rpc_port, self.admin_port, self.router_port)
        return (*own, *self.validator_ports)

    def environment(self, hub_address: str, router_address: str, admin_token_hash: str) -> dict[str, str]:
        """The variables that conf/devnet.toml reads."""
        variables = {
            "EMCD_DEVNET_DIR": str(self.folder),
            "EMCD_HUB_PORT": str(self.hub_port),
            "EMCD_TUNNEL_PORT": str(self.tunnel_port),
            "EMCD_RPC_PORT": str(self.rpc_port),
            "EMCD_ADMIN_PORT": str(self.admin_port),
            "EMCD_ROUTER_PORT": str(self.router_port),
            "EMCD_HUB_ADDRESS": hub_address,
            "EMCD_ROUTER_ADDRESS": router_address,
            "EMCD_ADMIN_TOKEN_HASH": admin_token_hash,
        }
        for number, port in enumerate(self.validator_ports, start=1):
            variables[f"EMCD_VALIDATOR_{number}_PORT"] = str(port)
        return variables


def read_layout(environ: Mapping[str, str] = os.environ) -> DevnetLayout:
    """The layout that the environment asks for; ports not named follow the hub's.

    Raises: ConfigError EMC-2230 on a port that is none or taken twice.
    """
    hub = _port(environ, "EMCD_HUB_PORT", DEFAULT_HUB_PORT)
    layout = DevnetLayout(
        folder=Path(environ.get("EMCD_DEVNET_DIR") or ".devnet").absolute(),
        hub_port=hub,
        tunnel_port=_port(environ, "EMCD_TUNNEL_PORT", hub + 1),
        rpc_port=_port(environ, "EMCD_RPC_PORT", 8545 if hub == DEFAULT_HUB_PORT else hub + 20),
        admin_port=_port(environ, "EMCD_ADMIN_PORT", hub + 2),
        router_port=_port(environ, "EMCD_ROUTER_PORT", hub + 3),
        validator_ports=tuple(
            _port(environ, f"EMCD_VALIDATOR_{n}_PORT", hub + 10 + n) for n in range(1, VALIDATOR_COUNT + 1)
        ),
    )
    if len(set(layout.ports)) != len(layout.ports):
        raise ConfigError("EMC-2230", f"two listeners of the devnet share a port: {sorted(layout.ports)}")
    return layout


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise ConfigError("EMC-2230", f"{name}={text!r} is no port")
    return int(text)
