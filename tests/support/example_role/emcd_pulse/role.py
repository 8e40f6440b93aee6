"""The role `pulse`. Owns the table pulse_beats; offers `Pulse`; rings BEATS after each beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import trio

from emcd.bus import Topic
from emcd.config import setting
from emcd.ledger import Connection, Migration
from emcd.role import Health, HealthState, RoleContext, RoleSpec


@dataclass(frozen=True)
class PulseConfig:
    """`[[role]] kind = "pulse"`: every field is a key of the table."""

    interval_s: float = setting(1.0, minimum=0.001, maximum=3600, doc="time between two beats")


class Pulse(Protocol):
    """What the role offers to others in the daemon."""

    async def count_beats(self) -> int: ...


BEATS: Topic[int] = Topic("pulse.beats")

MIGRATIONS = (
    Migration(
        1,
        "beats",
        "CREATE TABLE pulse_beats (id INTEGER PRIMARY KEY, instance TEXT NOT NULL, at_ms INTEGER NOT NULL) "
        "STRICT",
    ),
)


def insert_beat(con: Connection, instance: str, at_ms: int) -> int:
    """Add a beat. Returns: its number."""
    cursor = con.execute("INSERT INTO pulse_beats (instance, at_ms) VALUES (?, ?)", (instance, at_ms))
    return cursor.lastrowid or 0


def count_beats(con: Connection, instance: str) -> int:
    """How many beats an instance has written."""
    row = con.execute("SELECT count(*) FROM pulse_beats WHERE instance = ?", (instance,)).fetchone()
    return int(row[0])


class PulseRole:
    """One instance of the role."""

    def __init__(self, config: PulseConfig) -> None:
        self._config = config
        self._draining = trio.Event()
        self._started = False

    async def setup(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        ctx.services.offer(Pulse, self, ctx.name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._started = True
        task_status.started()
        while not self._draining.is_set():
            await self._beat()
            with trio.move_on_after(self._config.interval_s):
                await self._draining.wait()
        await trio.sleep_forever()

    async def drain(self) -> None:
        self._draining.set()

    def health(self) -> Health:
        if self._draining.is_set():
            return Health(HealthState.DRAINING)
        return Health(HealthState.READY if self._started else HealthState.STARTING)

    async def count_beats(self) -> int:
        return await self._ctx.ledger.read(lambda con: count_beats(con, self._ctx.name))

    async def _beat(self) -> None:
        at_ms = self._ctx.clock.now_ms()
        number = await self._ctx.ledger.write(lambda con: insert_beat(con, self._ctx.name, at_ms))
        self._ctx.bus.publish(BEATS, number)  # after the commit: a doorbell, not the fact


SPEC = RoleSpec(
    kind="pulse",
    config=PulseConfig,
    build=PulseRole,
    summary="writes a beat into the ledger now and then",
    provides=(Pulse,),
    migrations=MIGRATIONS,
    needs_network=False,
)
