"""One role instance in the daemon: its task, its cancel scope, how it ended; and all their health.

Invariant: a runner's task never raises once its role has started; it records the failure and tells
the daemon, so that one crash leads to an orderly stop of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from emcd.role import Role
from emcd.services import Health, HealthState, RoleHealth


class Runner:
    """The life of one role instance."""

    def __init__(
        self,
        kind: str,
        name: str,
        role: Role,
        log: structlog.stdlib.BoundLogger,
        complain: Callable[[], str] = str,
    ) -> None:
        """Args: complain: what degrades the role although it does not know; "" when nothing does."""
        self.kind = kind
        self.name = name
        self.role = role
        self.failure: BaseException | None = None
        self.started = False
        self.stopping = False
        self.closed = trio.Event()
        self._scope = trio.CancelScope()
        self._log = log
        self._complain = complain

    async def run(
        self,
        ended: Callable[[Runner], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the role until it is cancelled; call `ended` when it ends by itself.

        Raises: what the role raised, when that was before it had started.
        """
        status = _Status(self, task_status)
        try:
            with self._scope:
                await self.role.run(task_status=status)
        except BaseException as exc:
            self.failure = find_crash(exc)
            if self.failure is None or not self.started:
                raise
            self._log.exception("role crashed")
        finally:
            self.closed.set()
        if not self.stopping:
            if self.failure is None:
                self.failure = RuntimeError(f"role {self.name} returned without being cancelled")
                self._log.error("role ended by itself")
                if not self.started:
                    raise self.failure
            ended(self)

    async def stop(self, drain_s: float) -> None:
        """Drain the role within its deadline, cancel it, wait until it is closed."""
        self.stopping = True
        if not self.closed.is_set():
            with trio.move_on_after(drain_s) as deadline:
                try:
                    await self.role.drain()
                except Exception as exc:  # noqa: BLE001 - logged whole; the stop goes on
                    self.failure = self.failure or exc
                    self._log.exception("drain failed")
            if deadline.cancelled_caught:
                self._log.warning("drain was cut off", after_s=drain_s)
        self._scope.cancel()
        await self.closed.wait()
        self._log.info("role stopped")

    def health(self) -> Health:
        """The role's health as the daemon sees it."""
        if self.failure is not None:
            return Health(HealthState.DEGRADED, f"stopped: {self.failure!r}")
        if self.stopping:
            return Health(HealthState.DRAINING)
        if not self.started:
            return Health(HealthState.STARTING)
        health = self.role.health()
        complaint = self._complain() if health.state is HealthState.READY else ""
        return Health(HealthState.DEGRADED, complaint) if complaint else health


def find_crash(exc: BaseException) -> BaseException | None:
    """What went wrong, without the cancellations that came with it; None when nothing did."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(trio.Cancelled)[1]
    return None if isinstance(exc, trio.Cancelled) else exc


class _Status:
    """The `task_status` a role sees: remembers that it started."""

    def __init__(self, runner: Runner, inner: trio.TaskStatus[None]) -> None:
        self._runner = runner
        self._inner = inner

    def started(self, value: None = None) -> None:
        self._runner.started = True
        self._inner.started(value)


class Board:
    """The daemon's `HealthBoard`."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = runners
        self.serving = False
        """True from the last role's start to the beginning of the stop."""

    def is_ready(self) -> bool:
        serving = (HealthState.READY, HealthState.DEGRADED)
        return self.serving and all(
            runner.started and runner.failure is None and runner.health().state in serving
            for runner in self._runners
        )

    def list_roles(self) -> list[RoleHealth]:
        return [RoleHealth(runner.kind, runner.name, runner.health()) for runner in self._runners]
