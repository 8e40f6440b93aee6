"""What tests of roles, ours or a third party's, need: a context without a daemon, doubles, files.

Nothing here is imported by the program. Everything is real but the clock: a real ledger in a
temporary folder, a real bus, real keys with a light password.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from emcd.bus import Bus
from emcd.clock import Clock, ManualClock
from emcd.keys import SigningKey
from emcd.ledger import Ledger, Migration, open_ledger
from emcd.log import get_logger
from emcd.role import Health, HealthState, Role, RoleContext, RoleHealth
from emcd.services import HealthBoard, Services

if TYPE_CHECKING:
    from emcd.chain import Chain
    from emcd.config import KeyFile
    from emcd.proto.network import Deployment

AUTOJUMP_S = 0.02
"""Autojump threshold for MockClock beside threads: longer than a ledger job, shorter than patience."""


def make_key(name: str) -> SigningKey:
    """The same key for the same name, everywhere and always; worthless outside tests."""
    return SigningKey(hashlib.sha256(b"emcd test key " + name.encode()).digest())


@asynccontextmanager
async def temporary_ledger(
    folder: Path, components: Mapping[str, Sequence[Migration]] | None = None
) -> AsyncIterator[Ledger]:
    """A real ledger file in a folder."""
    async with open_ledger(folder / "ledger.db", components) as ledger:
        yield ledger


class AlwaysReady:
    """A HealthBoard that is ready, for roles that serve one."""

    def is_ready(self) -> bool:
        return True

    def list_roles(self) -> list[RoleHealth]:
        return [RoleHealth("test", "test", Health(HealthState.READY))]


def make_context(
    kind: str,
    ledger: Ledger,
    *,
    name: str = "",
    data_dir: Path | None = None,
    deployment: Deployment | None = None,
    chain: Chain | None = None,
    keys: Mapping[KeyFile, SigningKey] | None = None,
    services: Services | None = None,
    bus: Bus | None = None,
    clock: Clock | None = None,
) -> RoleContext:
    """A RoleContext for one role; without `services` there is a HealthBoard that is always ready."""
    if services is None:
        services = Services()
        services.offer(HealthBoard, AlwaysReady())
    return RoleContext(
        kind=kind,
        name=name or kind,
        data_dir=data_dir or ledger.path.parent,
        ledger=ledger,
        services=services,
        bus=bus or Bus(),
        clock=clock or ManualClock(),
        log=get_logger(role=kind, name=name or kind),
        network=deployment,
        rpc=chain,
        keys=keys or {},
    )


@asynccontextmanager
async def running_role(role: Role, context: RoleContext, *, drain_s: float = 5.0) -> AsyncIterator[Role]:
    """Set up and run a role as the daemon does; at the end drain it and cancel it."""
    await role.setup(context)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: role.run(task_status=task_status))
        yield role
        with trio.move_on_after(drain_s):
            await role.drain()
        nursery.cancel_scope.cancel()
