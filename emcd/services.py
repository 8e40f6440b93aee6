"""Who can ask whom inside one daemon: objects offered under the Protocol they fulfil.

Owns the registry of offered objects and the Protocols that several roles share. A role offers
in `setup`, and asks in `run` (or in `setup` when its RoleSpec names the type in `requires` and
the offering role stands before it in the config). It must not hold state of a role, nor import
one. Invariant: one object per (type, name).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar, cast

from emcd.errors import ConfigError
from emcd.proto.parameter_schedule import ParameterSchedule, single_schedule
from emcd.proto.params import NetworkParams, PriceTable

T = TypeVar("T")


class HealthState(Enum):
    """Where a role stands in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEGRADED = "degraded"


@dataclass(frozen=True)
class Health:
    """A role's answer to "can you serve?"; `reason` is for people and names the remedy."""

    state: HealthState
    reason: str = ""


@dataclass(frozen=True)
class RoleHealth:
    """The health of one role instance."""

    kind: str
    name: str
    health: Health


class HealthBoard(Protocol):
    """The health of every role in this daemon; the daemon offers it, the hub serves it as /readyz."""

    def is_ready(self) -> bool:
        """True while every role is ready (degraded counts as ready: it serves, with a complaint)."""
        ...

    def list_roles(self) -> list[RoleHealth]:
        """Every role in config order."""
        ...


class ParametersInForce(Protocol):
    """The network's parameters by round, as the chain has them; the daemon offers it."""

    @property
    def schedule(self) -> ParameterSchedule:
        """The versions known now; replaced as the chain moves: ask anew for every round."""
        ...

    @property
    def problem(self) -> str:
        """Why rounds are not, or soon will not be, settled here; "" when all is well."""
        ...

    async def refresh(self) -> None:
        """Read the chain now. Raises: RecoverableError when it can't be read."""
        ...


class FixedParameters:
    """The deployment file's parameters for ever: what a daemon without a chain goes by."""

    problem = ""

    def __init__(self, params: NetworkParams, prices: PriceTable) -> None:
        self.schedule = single_schedule(params, prices)

    async def refresh(self) -> None:
        """Nothing can have changed."""


class Services:
    """The objects that roles offer each other."""

    def __init__(self) -> None:
        self._offered: dict[tuple[type, str], object] = {}

    def offer(self, service: type[T], provider: T, name: str = "") -> None:
        """Offer an object under a type; `name` tells several of one type apart.

        Raises: ConfigError EMC-1030 when (type, name) is offered already.
        """
        if (service, name) in self._offered:
            raise ConfigError("EMC-1030", f"service {_label(service, name)} is offered twice")
        self._offered[service, name] = provider

    def get(self, service: type[T], name: str = "") -> T:
        """The object offered under a type. Raises: ConfigError EMC-1031 when nobody offers it."""
        found = self.find(service, name)
        if found is None:
            raise ConfigError("EMC-1031", f"no role of this daemon offers {_label(service, name)}")
        return found

    def find(self, service: type[T], name: str = "") -> T | None:
        """The object offered under a type, or None."""
        return cast("T | None", self._offered.get((service, name)))

    def list_named(self, service: type[T]) -> Iterator[tuple[str, T]]:
        """Every (name, object) offered under a type, in the order of offering."""
        for (offered, name), provider in list(self._offered.items()):
            if offered is service:
                yield name, cast("Any", provider)


def _label(service: type, name: str) -> str:
    return f"{service.__name__}[{name}]" if name else service.__name__
