"""The life of rounds: read their view, collect what belongs to them, close them in order.

Owns the tasks and their timing; what is done stands elsewhere. Invariants: rounds close in order,
one at a time; a restart goes on where the ledger ends; a round whose chance to be published has
passed while the hub was away is never closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from emcd.bus import Bus
from emcd.chain import Chain
from emcd.clock import Clock
from emcd.errors import EmcdError, FatalError, RecoverableError
from emcd.events import ROUND_STATE, RoundMoved
from emcd.ledger import Connection, Ledger
from emcd.services import ParametersInForce
from emcd.types import Round
from emcd_hub.metrics import ROUND
from emcd_hub.rounds.bundle_row import list_facts
from emcd_hub.rounds.closer import Closer
from emcd_hub.rounds.collector import Collector
from emcd_hub.rounds.view import RoundView, fetch_view, is_current
from emcd_hub.rounds.view_row import find_first_view, find_view, upsert_view

MAX_PAUSE_S = 30.0
BAD_AFTER_FAILURES = 3
BOUNDARY_MARGIN_S = 0.01
LATE_SIGNATURE_ROUNDS = 2
"""How long signatures beyond the quorum are still asked for."""


class RoundKeeper:
    """The rounds of one hub."""

    def __init__(
        self,
        *,
        chain: Chain,
        parameters: ParametersInForce,
        ledger: Ledger,
        clock: Clock,
        bus: Bus,
        closer: Closer,
        collector: Collector,
        poll_s: float,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._chain = chain
        self._params = chain.deployment.params
        self._parameters = parameters
        self._ledger = ledger
        self._clock = clock
        self._bus = bus
        self._closer = closer
        self._collector = collector
        self._poll_s = min(poll_s, self._params.round_s / 20)
        self._collect_s = max(self._poll_s, self._params.round_s / 20)
        self._log = log
        self._problems: dict[str, str] = {}
        self._quorums: set[int] = set()
        self._unanimous: set[int] = set()

    @property
    def problem(self) -> str:
        """What keeps rounds from going on; "" while nothing does."""
        return next(iter(self._problems.values()), "")

    async def run(self) -> None:
        """Keep the rounds until cancelled. Raises: FatalError when a seal would contradict another."""
        await self._closer.prepare()
        await self._closer.seal_all()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guard, "view", self._follow, self._poll_s)
            nursery.start_soon(self._guard, "collect", self._collect, self._collect_s)
            nursery.start_soon(self._guard, "close", self._close, self._poll_s)
            nursery.start_soon(self._guard, "attest", self._attest, self._poll_s)

    def current_round(self) -> int:
        return self._params.round_at(self._clock.now_ms())

    def is_attested(self, index: int) -> bool:
        """Whether more than 2/3 of the power has signed a round's root, as far as this process asked."""
        return index in self._quorums

    async def _guard(self, name: str, step: Callable[[], Awaitable[None]], every_s: float) -> None:
        """Repeat a step for ever, also right after each round's end; what may pass is waited out."""
        failures = 0
        while True:
            try:
                await step()
                failures = 0
                self._problems.pop(name, None)
            except FatalError:
                raise
            except EmcdError as exc:
                failures += 1
                self._log.warning("rounds are delayed", step=name, code=exc.code, detail=exc.detail[:300])
                if failures >= BAD_AFTER_FAILURES:
                    self._problems[name] = f"rounds are delayed: {exc.code} {exc.detail[:200]}"
            pause_s = min(every_s * 2**failures, max(every_s, MAX_PAUSE_S))
            await trio.sleep(min(pause_s, self._until_boundary_s()))

    def _until_boundary_s(self) -> float:
        now_ms = self._clock.now_ms()
        return (self._params.round_end_ms(self._params.round_at(now_ms)) - now_ms) / 1000 + BOUNDARY_MARGIN_S

    async def _follow(self) -> None:
        """Tell when a round begins and ends, and read the view of the open one."""
        index = self.current_round()
        ROUND.set(index)
        if index < 0:
            return
        if await self._ensure_view(index, quietly=True):
            self._bus.publish(ROUND_STATE, RoundMoved(Round(index), "open"))
            if index:
                self._bus.publish(ROUND_STATE, RoundMoved(Round(index - 1), "grace"))

    async def _collect(self) -> None:
        """Plans while the round is open, everything else in its grace."""
        index = self.current_round()
        for wanted in (index, index - 1):
            view = await self._find_view(wanted)
            if view is None:
                continue
            await self._collector.collect_commitments(view)
            if wanted < index:
                await self._collector.collect_statements(view)

    async def _close(self) -> None:
        """Close what is due, oldest first."""
        while (index := await self._find_due()) is not None:
            view = await self._require_view(index)
            await self._collector.collect_statements(view)
            await self._closer.close(view)

    async def _attest(self) -> None:
        """Gather the validators' signatures of recent rounds, for who wants to see them."""
        newest = self.current_round() - 2
        void_after = self._void_after()
        recent = await self._ledger.read(lambda con: list_facts(con, void_after + 1))
        for facts in recent:
            age = newest - facts.round
            if facts.round in self._unanimous or age > void_after:
                continue
            if facts.round in self._quorums and age > LATE_SIGNATURE_ROUNDS:
                continue
            view = await self._find_view(facts.round)
            if view is None:
                continue
            signed, total = await self._collector.collect_attestations(view)
            if signed == total:
                self._unanimous.add(facts.round)
            if 3 * signed > 2 * total and facts.round not in self._quorums:
                self._quorums.add(facts.round)
                self._bus.publish(ROUND_STATE, RoundMoved(Round(facts.round), "attested"))

    def _void_after(self) -> int:
        """How many rounds a round waits for its publication."""
        version = self._parameters.schedule.newest_readable_at(self.current_round())
        return version.parameters.params.void_after_rounds

    async def _find_due(self) -> int | None:
        """The next round to close, or None."""
        newest = self.current_round() - 2

        def read(con: Connection) -> tuple[int | None, int | None]:
            closed = list_facts(con, 1)
            return (closed[0].round if closed else None), find_first_view(con)

        last, first = await self._ledger.read(read)
        if last is None and first is None:
            return None
        following = last + 1 if last is not None else first
        assert following is not None
        oldest = max(following, newest - self._void_after() + 1)
        if oldest > following:
            self._log.error("rounds were missed", first=following, last=oldest - 1)
        return oldest if oldest <= newest else None

    async def _find_view(self, index: int) -> RoundView | None:
        return await self._ledger.read(lambda con: find_view(con, index)) if index >= 0 else None

    async def _ensure_view(self, index: int, *, quietly: bool = False) -> bool:
        """Read a round's view once. Returns: whether it is new."""
        if await self._find_view(index) is not None:
            return False
        try:
            view = await self._fetch_view(index)
        except RecoverableError:
            if quietly and self._clock.now_ms() < self._params.round_end_ms(index):
                return False
            raise
        await self._ledger.write(lambda con: upsert_view(con, view))
        return True

    async def _fetch_view(self, index: int) -> RoundView:
        return await fetch_view(self._chain, index, self._parameters.schedule.params_at(index))

    async def _require_view(self, index: int) -> RoundView:
        """The view to close with: as the chain is now. Raises: RecoverableError."""
        view = await self._find_view(index)
        if view is None or not await is_current(self._chain, view):
            view = await self._fetch_view(index)
            kept = view
            await self._ledger.write(lambda con: upsert_view(con, kept))
        return view
