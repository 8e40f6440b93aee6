"""The daemon's life: open the ledger, set up, start, serve, drain, stop.

Roles start in config order and stop in reverse. The first SIGTERM or SIGINT, a crash or a dead
ledger begin the stop; a second signal or the grace deadline cancels everything. The exit code is
0 only after a stop that was asked for and went well. The daemon never restarts a role: systemd
restarts the daemon.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog
import trio

from emcd import __version__
from emcd.bus import Bus
from emcd.clock import Clock, SystemClock
from emcd.daemon.garbage import calm_collector
from emcd.daemon.lag import watch_lag
from emcd.daemon.notify import notify_systemd
from emcd.daemon.prepare import Prepared
from emcd.daemon.runner import Board, Runner
from emcd.daemon.status import StatusReport, serve_status
from emcd.errors import FatalError
from emcd.ledger import Ledger, Migration, open_ledger
from emcd.ledger.parameter_store import LedgerParameterStore
from emcd.log import configure_logging, get_logger
from emcd.recursion import cap_recursion
from emcd.role import RoleContext
from emcd.services import HealthBoard, ParametersInForce, Services

if TYPE_CHECKING:
    from emcd.chain import Chain
    from emcd.chain.parameters import ParameterKeeper


SWITCH_INTERVAL_S = 0.001
"""How long a thread that audits or closes a round may hold the interpreter while the loop waits for
it: the loop waits this long for each such thread, whenever it comes back from the kernel."""


def run_daemon(prepared: Prepared) -> int:
    """Run the daemon in this process until it stops. Returns: the exit code."""
    configure_logging(prepared.config.daemon.log_format, prepared.config.daemon.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return trio.run(Daemon(prepared, on_ready=calm_collector).run)


class Daemon:
    """One run of the daemon."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        clock: Clock | None = None,
        signals: bool = True,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            signals: False leaves SIGTERM and SIGINT to others (several daemons in one test).
            on_ready: called when every role has started.
        """
        self._prepared = prepared
        self._config = prepared.config.daemon
        self._clock = clock or SystemClock()
        self._signals = signals
        self._on_ready = on_ready
        self._stop = trio.Event()
        self._at_once = trio.CancelScope()
        self._failed = False
        self._log = get_logger()
        self._runners: list[Runner] = []
        self.board = Board(self._runners)
        self.services = Services()
        self._parameters: ParameterKeeper | None = None

    def stop(self) -> None:
        """Begin an orderly stop; a second call cancels everything."""
        if self._stop.is_set():
            self._at_once.cancel()
        self.board.serving = False
        self._stop.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> int:
        """Live. Returns: the exit code. Raises: EmcdError when it could not start.

        Cancellation: roles are cancelled without a drain; the ledger is closed properly.
        """
        components = _list_components(self._prepared)
        async with open_ledger(self._prepared.config.ledger_path, components) as ledger:
            _log_migrations(self._log, ledger)
            await self._set_up(ledger)
            with self._at_once:
                async with trio.open_nursery() as nursery:
                    await self._serve(nursery, ledger, task_status)
                    nursery.cancel_scope.cancel()
            if self._at_once.cancelled_caught:
                self._failed = True
                self._log.error("stopped at once, without draining")
        self._log.info("stopped", exit_code=int(self._failed))
        return int(self._failed)

    async def _set_up(self, ledger: Ledger) -> None:
        self.services.offer(HealthBoard, self.board)
        bus = Bus()
        chain = make_chain(self._prepared)
        await self._offer_parameters(chain, ledger)
        for entry, spec in zip(self._prepared.config.roles, self._prepared.specs, strict=True):
            log = self._log.bind(role=entry.kind, name=entry.name)
            role = spec.build(entry.config)
            context = RoleContext(
                kind=entry.kind,
                name=entry.name,
                data_dir=self._config.data_dir,
                ledger=ledger,
                services=self.services,
                bus=bus,
                clock=self._clock,
                log=log,
                network=self._prepared.deployment,
                rpc=chain,
                keys=self._prepared.keys,
            )
            await role.setup(context)
            complain = self._complain if spec.needs_network else str
            self._runners.append(Runner(entry.kind, entry.name, role, log, complain))

    async def _offer_parameters(self, chain: Chain | None, ledger: Ledger) -> None:
        """The parameters by round, as an earlier run read them; they are followed while we serve."""
        if chain is not None:
            from emcd.chain.parameters import ParameterKeeper

            self._parameters = keeper = ParameterKeeper(
                chain, LedgerParameterStore(ledger), self._clock, self._log
            )
            await keeper.load()
            self.services.offer(ParametersInForce, keeper)

    def _complain(self) -> str:
        """What degrades every role of the network."""
        return self._parameters.problem if self._parameters is not None else ""

    async def _serve(self, nursery: trio.Nursery, ledger: Ledger, task_status: trio.TaskStatus[None]) -> None:
        if self._signals:
            await nursery.start(self._watch_signals)
        nursery.start_soon(self._watch_ledger, ledger)
        nursery.start_soon(watch_lag, self._log)
        if self._parameters is not None:
            nursery.start_soon(self._follow_parameters, self._parameters)
        nursery.start_soon(_keep_recursion_capped)
        report = StatusReport(self.board, self._clock)
        await nursery.start(
            serve_status, self._config.status_listen, self._config.data_dir, report, self._log
        )
        if await self._start_roles(nursery) and not self._stop.is_set():
            self._on_ready()
            self.board.serving = True
            self._log.info("ready", roles=[runner.name for runner in self._runners], version=__version__)
            notify_systemd("READY=1")
            task_status.started()
            await self._stop.wait()
        await self._stop_roles()

    async def _start_roles(self, nursery: trio.Nursery) -> bool:
        """Returns: True when every role started, False when the daemon is to stop instead."""
        with trio.CancelScope() as starting:
            nursery.start_soon(self._cancel_on_stop, starting)
            for runner in self._runners:
                try:
                    await nursery.start(runner.run, self._on_end)
                except Exception as exc:  # noqa: BLE001 - logged whole; the daemon stops
                    self._failed = True
                    self._log.exception(
                        "role did not start", role=runner.kind, name=runner.name, reason=str(exc)
                    )
                    return False
        return not starting.cancelled_caught

    async def _cancel_on_stop(self, starting: trio.CancelScope) -> None:
        await self._stop.wait()
        starting.cancel()

    async def _stop_roles(self) -> None:
        self.board.serving = False
        self._stop.set()
        notify_systemd("STOPPING=1")
        self._log.info("stopping", grace_s=self._config.grace_s)
        with trio.move_on_after(self._config.grace_s) as grace:
            for runner in reversed(self._runners):
                if runner.started:
                    await runner.stop(self._config.drain_s)
        if grace.cancelled_caught:
            self._at_once.cancel()
        self._failed = self._failed or any(runner.failure for runner in self._runners)

    def _on_end(self, runner: Runner) -> None:
        self._failed = True
        if not self._stop.is_set():
            self._log.error("stopping because a role ended", role=runner.kind, name=runner.name)
            self.stop()

    async def _watch_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            task_status.started()
            async for number in received:
                self._log.info("signal", signal=signal.Signals(number).name)
                self.stop()

    async def _watch_ledger(self, ledger: Ledger) -> None:
        failure = await ledger.wait_failed()
        self._failed = True
        self._log.error("the ledger failed", error=str(failure))
        if not self._stop.is_set():
            self.stop()

    async def _follow_parameters(self, keeper: ParameterKeeper) -> None:
        """Follow the chain; a chain that is another network's stops the daemon."""
        try:
            await keeper.run()
        except FatalError as exc:
            self._failed = True
            self._log.error("the network's parameters", code=exc.code, detail=exc.detail, remedy=exc.remedy)
            if not self._stop.is_set():
                self.stop()


async def _keep_recursion_capped() -> None:
    """Whatever a role imports, and whenever: a peer's nested JSON must not overflow the stack."""
    while True:
        cap_recursion()
        await trio.sleep(1)


def _list_components(prepared: Prepared) -> Mapping[str, tuple[Migration, ...]]:
    return {spec.kind: spec.migrations for spec in prepared.specs if spec.migrations}


def make_chain(prepared: Prepared) -> Chain | None:
    """The chain's client; None without a deployment or an RPC address."""
    urls = prepared.config.chain.rpc_urls
    if prepared.deployment is None or not urls:
        return None
    from emcd.chain import Chain, ChainConfig

    return Chain(ChainConfig.from_settings(prepared.config.chain), prepared.deployment)


def _log_migrations(log: structlog.stdlib.BoundLogger, ledger: Ledger) -> None:
    for component, step in ledger.migrated.applied:
        log.info("migrated", component=component, number=step.number, step=step.name)
    if ledger.migrated.copy is not None:
        log.info("the ledger was copied before the migration", file=str(ledger.migrated.copy))
