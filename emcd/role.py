"""The plugin API: what a role is, and what it gets from the daemon.

A package exports one `RoleSpec` per role through the entry-point group `emcd.roles`; installed
is not enabled, the config or `--role` enables. Nothing here starts, listens or imports a role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from emcd.errors import ConfigError
from emcd.services import (
    FixedParameters,
    Health,
    HealthBoard,
    HealthState,
    ParametersInForce,
    RoleHealth,
    Services,
)

if TYPE_CHECKING:
    import structlog

    from emcd.bus import Bus
    from emcd.chain import Chain
    from emcd.clock import Clock
    from emcd.config import KeyFile
    from emcd.keys import SigningKey
    from emcd.ledger import Ledger, Migration
    from emcd.proto.network import Deployment

__all__ = [
    "API_VERSION",
    "Health",
    "HealthBoard",
    "HealthState",
    "Role",
    "RoleContext",
    "RoleHealth",
    "RoleSpec",
]

API_VERSION = 1


class Role(Protocol):
    """One running instance of a role."""

    async def setup(self, ctx: RoleContext) -> None:
        """Check, offer services. Quick: no tasks, no listening, no peer is asked."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the work; `task_status.started()` when able to serve. Returns only by cancellation."""
        ...

    async def drain(self) -> None:
        """Refuse new work, finish what was promised, flush. The daemon sets the deadline."""
        ...

    def health(self) -> Health:
        """Where the role stands; must not wait."""
        ...


@dataclass(frozen=True, kw_only=True)
class RoleSpec:
    """What the daemon must know of a kind of role before it builds one.

    `config` is a frozen dataclass, decoded strictly by `emcd.config`; `build` makes the role of a
    decoded config and does nothing else. `requires` names service types that another enabled role
    must provide. `needs_network` False: the role runs without a deployment file (the embedded
    chain, which makes one). Tables of `migrations` are prefixed with the kind.
    """

    kind: str
    config: type
    build: Callable[[Any], Role]
    summary: str = ""
    provides: tuple[type, ...] = ()
    requires: tuple[type, ...] = ()
    migrations: tuple[Migration, ...] = ()
    needs_network: bool = True
    api_version: int = API_VERSION


@dataclass(frozen=True, kw_only=True)
class RoleContext:
    """What a role instance gets in `setup`. `name` is unique in the daemon."""

    kind: str
    name: str
    data_dir: Path
    ledger: Ledger
    services: Services
    bus: Bus
    clock: Clock
    log: structlog.stdlib.BoundLogger
    network: Deployment | None = None
    rpc: Chain | None = None
    keys: Mapping[KeyFile, SigningKey] = field(default_factory=dict, repr=False)

    @property
    def deployment(self) -> Deployment:
        """Chain id, contracts, the clock. Raises: ConfigError EMC-1006 when the daemon has none.

        Of its parameters only the clock is in force for ever: see `parameters`.
        """
        if self.network is None:
            raise ConfigError("EMC-1006", f"role {self.name} needs [network] deployment")
        return self.network

    @property
    def chain(self) -> Chain:
        """The chain's client. Raises: ConfigError EMC-1007 when [chain] rpc_urls is empty."""
        if self.rpc is None:
            raise ConfigError("EMC-1007", f"role {self.name} needs [chain] rpc_urls")
        return self.rpc

    @property
    def parameters(self) -> ParametersInForce:
        """The parameters by round: the daemon's, or the deployment file's where there is no chain.

        Raises: ConfigError EMC-1006.
        """
        offered = self.services.find(ParametersInForce)
        return offered or FixedParameters(self.deployment.params, self.deployment.prices)

    def load_key(self, ref: KeyFile) -> SigningKey:
        """The key of a keystore that the role's config names; the daemon decrypted it at start.

        Raises: ConfigError EMC-1107 when the config did not name it in a field of type KeyFile.
        """
        try:
            return self.keys[ref]
        except KeyError:
            raise ConfigError("EMC-1107", f"{ref.file} was not decrypted at start") from None
