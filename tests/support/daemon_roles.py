"""Roles that behave and roles that don't, and a daemon config around them, for tests of the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from emcd.config import ChainConfig, Config, DaemonConfig, NetworkConfig, RoleEntry
from emcd.daemon import Prepared
from emcd.ledger import Migration
from emcd.role import Health, HealthState, RoleContext, RoleSpec


@dataclass
class Diary:
    """What happened, in order."""

    lines: list[str] = field(default_factory=list)

    def note(self, role: str, what: str) -> None:
        self.lines.append(f"{role} {what}")


@dataclass(frozen=True)
class ActorConfig:
    """How an actor behaves."""

    name: str
    diary: Diary
    crash_in: str = ""  # build, setup, start, run, drain
    return_in: str = ""  # start, run
    hang_in: str = ""  # setup, start, drain
    crash: trio.Event | None = None


class Actor:
    """A role that notes what is done to it and fails where it is told."""

    def __init__(self, config: ActorConfig) -> None:
        self._config = config
        self._state = HealthState.STARTING
        self.ctx: RoleContext | None = None
        self._meet("build")

    def _note(self, what: str) -> None:
        self._config.diary.note(self._config.name, what)

    def _meet(self, place: str) -> None:
        if self._config.crash_in == place:
            raise ValueError(f"{self._config.name} fails in {place}")

    async def _hang(self, place: str) -> None:
        if self._config.hang_in == place:
            await trio.sleep_forever()

    async def setup(self, ctx: RoleContext) -> None:
        self._note("setup")
        self.ctx = ctx
        self._meet("setup")
        await self._hang("setup")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            self._meet("start")
            await self._hang("start")
            if self._config.return_in == "start":
                return
            self._note("started")
            self._state = HealthState.READY
            task_status.started()
            if self._config.return_in == "run":
                return
            if self._config.crash is not None:
                await self._config.crash.wait()
                self._meet("run")
            await trio.sleep_forever()
        finally:
            self._note("closed")

    async def drain(self) -> None:
        self._note("drain")
        self._state = HealthState.DRAINING
        self._meet("drain")
        await self._hang("drain")
        self._note("drained")

    def health(self) -> Health:
        return Health(self._state)


def make_prepared(
    folder: Path,
    actors: Sequence[ActorConfig],
    *,
    drain_s: float = 1.0,
    grace_s: float = 5.0,
    migrations: tuple[Migration, ...] = (),
    status_listen: str = "unix:status.sock",
) -> Prepared:
    """A prepared daemon of actors."""
    daemon = DaemonConfig(data_dir=folder, drain_s=drain_s, grace_s=grace_s, status_listen=status_listen)
    entries = tuple(RoleEntry("actor", actor.name, actor) for actor in actors)
    config = Config(None, daemon, NetworkConfig(), ChainConfig(), entries)
    spec = RoleSpec(kind="actor", config=ActorConfig, build=Actor, needs_network=False, migrations=migrations)
    return Prepared(config, (spec,) * len(entries), None, {})
