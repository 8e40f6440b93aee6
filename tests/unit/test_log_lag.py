"""The loop-lag monitor: quiet while the loop runs, one warning when it was blocked."""

from __future__ import annotations

import structlog
import trio
import trio.testing

from emcd.daemon.lag import QUIET_S, TICK_S, watch_lag


async def tick(clock: trio.testing.MockClock, seconds: float) -> None:
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked()


async def test_lag_warns_once_with_the_worst_and_then_is_quiet(mock_clock: trio.testing.MockClock) -> None:
    seen: list[tuple[str, int]] = []

    class Log:
        def warning(self, event: str, **fields: int) -> None:
            seen.append((event, fields["lag_ms"]))

    log: structlog.stdlib.BoundLogger = Log()  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_lag, log)
        await trio.testing.wait_all_tasks_blocked()
        for late_s in [0.0] * 20 + [0.09]:
            await tick(mock_clock, TICK_S + late_s)
        assert seen == []
        await tick(mock_clock, TICK_S + 0.3)
        assert seen == [("the loop was blocked", 300)]
        for late_s in (0.2, 0.5):
            await tick(mock_clock, TICK_S + late_s)
        assert len(seen) == 1
        for _ in range(int(QUIET_S / TICK_S) + 2):
            await tick(mock_clock, TICK_S)
        assert seen[1:] == [("the loop was blocked", 500)]
        nursery.cancel_scope.cancel()
