"""How late the loop runs: whatever blocks it stalls every role of the daemon."""

from __future__ import annotations

import structlog
import trio

from emcd.metrics import histogram

TICK_S = 0.05
WARN_S = 0.1
QUIET_S = 10.0
"""One warning per this long, with the worst lag of it: a blocked loop must not also fill the disk."""

_LAG_S = histogram(
    "emcd_loop_lag_seconds",
    "How much later than asked the loop ran a task.",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0),
)


async def watch_lag(log: structlog.stdlib.BoundLogger) -> None:
    """Measure forever; warn past 100 ms."""
    worst = 0.0
    quiet_until = -1.0
    while True:
        asked = trio.current_time() + TICK_S
        await trio.sleep_until(asked)
        now = trio.current_time()
        lag = now - asked
        _LAG_S.observe(max(lag, 0.0))
        worst = max(worst, lag)
        if worst > WARN_S and now >= quiet_until:
            log.warning("the loop was blocked", lag_ms=round(worst * 1000), limit_ms=round(WARN_S * 1000))
            worst = 0.0
            quiet_until = now + QUIET_S
