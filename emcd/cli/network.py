"""Which network a money command is about: explicit options, the configuration, or the devnet here.

Owns the options that these commands share. Nothing is asked of a peer here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from emcd.chain import Chain, ChainConfig
from emcd.command import CommandContext
from emcd.config import ChainConfig as Settings
from emcd.config import Config
from emcd.errors import ConfigError
from emcd.proto.network import Deployment, decode_deployment

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class NetworkOptions:
    """What was given on the command line."""

    deployment: Path | None
    rpc: str
    hub: str


@dataclass(frozen=True)
class Network:
    """Where the chain and the hub are, and what both must agree on."""

    deployment: Deployment
    rpc_urls: tuple[str, ...]
    confirmations: int
    hub_url: str
    chain: Settings = field(default_factory=Settings)
    """What the configuration says of the chain beside the addresses: agreement and fee ceilings."""

    def open_chain(self) -> Chain:
        """The chain's client. Raises: ConfigError EMC-2131 without an RPC URL."""
        if not self.rpc_urls:
            raise ConfigError("EMC-2131", "no JSON-RPC address is known")
        settings = replace(
            self.chain,
            rpc_urls=self.rpc_urls,
            confirmations=self.confirmations,
            agree=min(self.chain.agree, len(self.rpc_urls)),
        )
        return Chain(ChainConfig.from_settings(settings), self.deployment)

    def require_hub(self) -> str:
        """The hub's base URL. Raises: ConfigError EMC-2132 when none is known."""
        if not self.hub_url:
            raise ConfigError("EMC-2132", "no hub address is known")
        return self.hub_url


def network_options(command: F) -> F:
    """Add --deployment, --rpc and --hub; the command takes them as `network: NetworkOptions`."""

    def collect(*args: Any, deployment: Path | None, rpc: str, hub: str, **rest: Any) -> Any:
        return command(*args, network=NetworkOptions(deployment, rpc, hub), **rest)

    collect.__doc__ = command.__doc__
    collect.__name__ = command.__name__
    collect.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    wrapped: Any = collect
    for option in (
        click.option("--hub", default="", metavar="URL", help="Base URL of a hub."),
        click.option("--rpc", default="", metavar="URL", help="JSON-RPC address of the chain."),
        click.option(
            "--deployment",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="The network's deployment.json.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def resolve_network(context: CommandContext, given: NetworkOptions) -> Network:
    """Take what was given; fill the rest from the configuration, else from the devnet here.

    Raises: ConfigError EMC-2130 when no deployment file is to be found, EMC-1020 when it is at fault.
    """
    known = _from_config(context.load()) if context.config_file else _from_devnet()
    deployment_file = given.deployment or known.deployment
    if deployment_file is None:
        raise ConfigError("EMC-2130", "no --deployment, no configuration, no devnet in this folder")
    try:
        deployment = decode_deployment(deployment_file.read_bytes(), str(deployment_file))
    except OSError as exc:
        raise ConfigError("EMC-2130", f"{deployment_file}: {exc.strerror}") from exc
    return Network(
        deployment=deployment,
        rpc_urls=(given.rpc,) if given.rpc else known.rpc_urls,
        confirmations=known.confirmations,
        chain=known.chain,
        hub_url=(given.hub or known.hub).rstrip("/"),
    )


@dataclass(frozen=True)
class _Known:
    deployment: Path | None = None
    rpc_urls: tuple[str, ...] = ()
    confirmations: int = 2
    hub: str = ""
    chain: Settings = field(default_factory=Settings)


def _from_config(config: Config) -> _Known:
    hubs = (str(getattr(role.config, "hub_url", "")) for role in config.roles)
    return _Known(
        deployment=config.network.deployment,
        rpc_urls=config.chain.rpc_urls,
        confirmations=config.chain.confirmations,
        chain=config.chain,
        hub=next((url for url in hubs if url.startswith("http")), ""),
    )


def _from_devnet() -> _Known:
    file = Path(os.environ.get("EMCD_DEVNET_DIR") or ".devnet") / "devnet.json"
    try:
        summary = json.loads(file.read_bytes())
        return _Known(Path(summary["deployment"]), (summary["rpc_url"],), 1, summary["hub_url"])
    except FileNotFoundError:
        return _Known()
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError("EMC-2130", f"{file} can't be read: {exc}") from exc
