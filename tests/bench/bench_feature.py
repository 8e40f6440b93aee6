"""What a feature of the hub costs it: the same calls with it and without, in turns, in microseconds of CPU.

A plain key against one with every limit set (models, expiry, requests and tokens per minute, parallel
calls, a budget a day); a node at the hub against one behind a router, and what the router itself takes.

    PYTHONPATH=.:plugins python -m tests.bench.bench_feature [--seconds 1.5] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench.hub_process import RunningHub, run_apart, run_null_node, run_router, running_hub, wait_online
from tests.bench.openai_wire import MODEL
from tests.bench.process_use import choose_cores, on_core
from tests.bench.statistic import ratio, spread
from tests.bench.window import Case, Target, run_closed_window
from tests.support.hub_world import ADMIN_TOKEN

ROUTED_MODEL = f"{MODEL}-routed"
LIMITS: dict[str, Any] = {
    "models": ["stub-*"],
    "expires_at_ms": 2**52,
    "requests_per_minute": 10**9,
    "tokens_per_minute": 10**12,
    "parallel_calls": 10**5,
    "budget_micro": str(10**14),
    "period": "day",
}
CASES = (Case("call, 32 connections", 32), Case("chunk, 100 streams", 100, chunks=200))
PLAIN, LIMITED, ROUTED, ROUTER = "plain key", "key with every limit", "through a router", "the router itself"


def make_limited_key(hub: RunningHub) -> str:
    """A key of the same account with every limit, made as an operator makes one."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{hub.ports['admin']}/admin/api-keys",
        data=json.dumps({"account_id": hub.account_id, **LIMITS}).encode(),
        headers={"authorization": f"Bearer {ADMIN_TOKEN}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["api_key"])


def run(seconds: float, rounds: int) -> dict[str, Any]:
    """Microseconds per call and per chunk, and times the plain key's."""
    cores = choose_cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub = stack.enter_context(running_hub(cores, folder))
        router = stack.enter_context(run_apart(run_router, cores.rest, hub.ports["tunnel"]))
        port, address = router.first
        stack.enter_context(run_apart(run_null_node, cores.rest, port, 2, ROUTED_MODEL, address))
        wait_online(hub.ports["public"], 2)
        stack.enter_context(on_core(cores.rest))
        plain = {"authorization": f"Bearer {hub.api_key}"}
        limited = {"authorization": f"Bearer {make_limited_key(hub)}"}
        targets = (
            Target(PLAIN, hub.ports["public"], hub.pid, plain),
            Target(LIMITED, hub.ports["public"], hub.pid, limited),
            Target(ROUTED, hub.ports["public"], hub.pid, plain, ROUTED_MODEL),
            Target(ROUTER, hub.ports["public"], router.pid, plain, ROUTED_MODEL),
        )
        return {case.name: _measure(case, targets, seconds, rounds) for case in CASES}


def _measure(case: Case, targets: tuple[Target, ...], seconds: float, rounds: int) -> dict[str, Any]:
    spent: dict[str, list[float]] = {}
    for number in range(rounds):
        print(f"  round {number + 1} of {rounds}: {case.name}", file=sys.stderr, flush=True)
        for target in targets:
            window = run_closed_window(target, case, seconds)
            if window.errors:
                raise RuntimeError(f"{target.name}: {window.errors}")
            per_cpu_s = window.chunks_per_cpu_s if case.chunks else window.calls_per_cpu_s
            spent.setdefault(target.name, []).append(1e6 / per_cpu_s)
    plain = spread(spent[PLAIN]).median
    return {
        name: {
            "us": round(spread(values).median, 2),
            "times_plain": round(ratio(spread(values).median, plain), 3),
        }
        for name, values in spent.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="of each window (default 1.5)")
    parser.add_argument("--rounds", type=int, default=3, help="in which they take turns (default 3)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = run(args.seconds, args.rounds)
    if args.json:
        print(json.dumps(results))
        return
    for case, rows in results.items():
        for name, row in rows.items():
            print(f"{case:24} {name:24} {row['us']:>8.2f} us of CPU {row['times_plain']:>7.2f} times")


if __name__ == "__main__":
    main()
