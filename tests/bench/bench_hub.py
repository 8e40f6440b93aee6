"""Calls per second through a whole hub, in a few seconds: what one looks at while changing it.

The hub has one core; its node, whose engine computes nothing, and the load generator share another.
What travels between machines is calls per CPU-second of the hub's process, beside that of the bare
HTTP server in the same run. `bench_gateway` measures more, and beside other gateways.

    PYTHONPATH=.:plugins python -m tests.bench.bench_hub [--seconds 5] [--connections 32] [--json]
    PYTHONPATH=.:plugins python -m tests.bench.bench_hub --hold 60 [--only "chunks one by one"]

With --hold the hub stays under load for so long, and its process id is printed, for a profiler:
py-spy record -n -d 20 -p PID -o hub.svg
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.bench_http_server import measure as measure_http
from tests.bench.hub_process import running_hub
from tests.bench.process_use import choose_cores, on_core
from tests.bench.window import Case, Target, run_closed_window

PACE_US = 20_000
"""A hundred streams of fifty chunks a second each: 5,000 chunks/s."""


def measure(connections: int, seconds: float, only: str = "", *, say_pid: bool = False) -> dict[str, Any]:
    """Whole answers, and chunks of streams in a flood and one by one, through one hub."""
    cores = choose_cores()
    streams = Case("streams", 100, chunks=200)
    cases = {
        "whole": (Case("whole", connections), 0),
        "stream chunks": (streams, 0),
        "chunks one by one": (streams, PACE_US),
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with running_hub(cores, Path(folder)) as hub, on_core(cores.rest):
            if say_pid:
                print(f"the hub is process {hub.pid}", file=sys.stderr, flush=True)
            target = Target("hub", hub.ports["public"], hub.pid, {"authorization": f"Bearer {hub.api_key}"})
            for name, (case, pace_us) in cases.items():
                if only in ("", name):
                    window = run_closed_window(target, case, seconds, pace_us)
                    kind = "chunks" if case.chunks else "calls"
                    results[name] = {
                        "per_s": round(getattr(window, f"{kind}_per_s")),
                        "per_cpu_s": round(getattr(window, f"{kind}_per_cpu_s")),
                        "errors": window.errors.total(),
                    }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case (default 5)")
    parser.add_argument("--connections", type=int, default=32, help="of whole answers (default 32)")
    parser.add_argument("--only", default="", help='"whole", "stream chunks" or "chunks one by one"')
    parser.add_argument(
        "--hold", type=float, help="seconds under load, for a profiler; whole answers by default"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.hold:
        measure(args.connections, args.hold, args.only or "whole", say_pid=True)
        return
    results = measure(args.connections, args.seconds, args.only)
    http = measure_http("small", args.connections, args.seconds)
    results["bare HTTP"] = {"per_s": http["requests_per_s"], "per_cpu_s": http["requests_per_cpu_s"]}
    for row in results.values():
        row["ratio_to_http"] = round(row["per_cpu_s"] / http["requests_per_cpu_s"], 3)
    if args.json:
        print(json.dumps(results))
        return
    for name, row in results.items():
        print(f"{name:18} {row['per_s']:>8}/s {row['per_cpu_s']:>8}/CPU-s {row['ratio_to_http']:.3f}")


if __name__ == "__main__":
    main()
