"""A hub under load for minutes: whether its memory stays flat, its books balance and nothing is lost.

Whole answers, streams and long prompts over connections that are opened anew again and again. At the
end the hub is drained and its ledger read: what was granted is what is left and what was charged, and
every call whose answer came to its end has its row.

    PYTHONPATH=.:plugins python -m tests.bench.bench_soak [--minutes 10] [--connections 32] [--json]
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.client import Load, Tally, finish, opened, run_closed
from tests.bench.hub_process import running_hub
from tests.bench.process_use import choose_cores, family_rss_mb, on_core
from tests.bench.statistic import slope
from tests.bench.window import Case, Target, make_ask

CASES = (
    Case("whole", 1),
    Case("whole", 1),
    Case("whole", 1),
    Case("stream", 1, chunks=20),
    Case("long", 1, 8192),
)
SAMPLE_S = 5.0
KEPT_SAMPLES = 1 / 2
"""The last part of the samples, of which the slope is: before, SQLite's caches fill up."""
FINISH_S = 10.0


def run(minutes: float, connections: int) -> dict[str, Any]:
    cores = choose_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_hub(cores, folder) as hub, on_core(cores.rest):
            target = Target("hub", hub.ports["public"], hub.pid, {"authorization": f"Bearer {hub.api_key}"})
            with opened(
                Load(target.port, *(make_ask(target, case) for case in CASES), keep_ids=True)
            ) as load:
                samples = _run_load(load, target, connections, minutes * 60)
            hub.apart.drain()
        checked = check_books(folder / "ledger.db", load.tally.call_ids or b"")
    return {**_sum_up(samples, load.tally), **checked}


def _run_load(load: Load, target: Target, connections: int, seconds: float) -> list[tuple[float, int, float]]:
    """(seconds, calls until then, MB) every few seconds."""
    samples: list[tuple[float, int, float]] = []
    started = time.monotonic()
    while (now := time.monotonic() - started) < seconds:
        run_closed(load, connections, min(SAMPLE_S, seconds - now))
        sample = (time.monotonic() - started, load.tally.calls, family_rss_mb(target.pid))
        samples.append(sample)
        finish(load, FINISH_S)
        load.disconnect()
        # What a long run would pile up here is not the hub's.
        del load.tally.latencies_s[:]
        if len(samples) % 12 == 1:
            print(
                f"  {sample[0]:.0f} s: {sample[1]:,} calls, {sample[2]:.1f} MB", file=sys.stderr, flush=True
            )
    return samples


def _sum_up(samples: list[tuple[float, int, float]], tally: Tally) -> dict[str, Any]:
    kept = samples[-max(2, round(len(samples) * KEPT_SAMPLES)) :]
    return {
        "seconds": round(samples[-1][0]),
        "calls": tally.calls,
        "chunks": tally.chunks,
        "errors": dict(tally.errors.most_common(5)),
        "rss_mb_first": round(kept[0][2], 1),
        "rss_mb_last": round(kept[-1][2], 1),
        "rss_mb_most": round(max(sample[2] for sample in samples), 1),
        "mb_per_million_calls": round(
            slope([sample[1] / 1e6 for sample in kept], [sample[2] for sample in kept]), 2
        ),
    }


def check_books(file: Path, call_ids: bytes | bytearray) -> dict[str, Any]:
    """What the ledger of a drained hub says of the calls whose answers came to their end.

    Returns: `unbalanced_micro` (granted less what is left and what was charged: 0) and `lost_calls`
    (answered, but without a row: 0).
    """
    ids = {bytes(call_ids[at : at + 16]) for at in range(0, len(call_ids), 16)}
    con = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        (granted,) = con.execute("SELECT sum(granted_micro + vault_micro) FROM hub_movements").fetchone()
        (left,) = con.execute("SELECT sum(granted_micro + vault_micro) FROM hub_accounts").fetchone()
        rows, charged = con.execute(
            "SELECT count(*), coalesce(sum(granted_micro + vault_micro), 0) FROM hub_calls"
        ).fetchone()
        for (call_id,) in con.execute("SELECT call_id FROM hub_calls"):
            ids.discard(call_id)
    finally:
        con.close()
    return {
        "rows": rows,
        "charged_micro": charged,
        "unbalanced_micro": granted - left - charged,
        "lost_calls": len(ids),
        "ledger_mb": round(file.stat().st_size / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (default 10)")
    parser.add_argument("--connections", type=int, default=32, help="at the same time (default 32)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = run(args.minutes, args.connections)
    if args.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:24} {value}" for name, value in found.items()))
    if found["unbalanced_micro"] or found["lost_calls"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
