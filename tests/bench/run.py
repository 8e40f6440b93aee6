"""Runs the benchmarks one after the other, prints their tables and writes one JSON file.

Without names: the gateway beside its peers, what the hub's features cost, the hub's loop while it
closes a round, the embedded engine, and who is caught cheating; about half an hour, two thirds of it for
the last, and on the first run some minutes more for the peers, which are installed into .bench/, and for
the small text models, which are trained. Compare ratios: absolute figures hold for the machine of the run, and
for what else runs on it. Every benchmark also runs by itself: python -m tests.bench.bench_NAME --help.

    python -m tests.bench.run                         # what `make bench` does
    python -m tests.bench.run --quick                 # no peers, short windows: about a minute
    python -m tests.bench.run --only gateway --seconds 5 --rounds 5
    python -m tests.bench.run --only embedded --docs docs/performance.md
    python -m tests.bench.run --only detection --docs docs/verification.md
    python -m tests.bench.run --all                   # every benchmark of the folder
    python -m tests.bench.run --docs docs/performance.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.process_use import find_cpu_name
from tests.bench.report import result_lines, write_docs

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]
LIMIT_S = 24 * 3600
USUAL: dict[str, list[str]] = {
    "gateway": [],
    "feature": [],
    "close": ["--calls", "200000", "--nodes", "2000"],
    "embedded": [],
    "detection": [],
}
QUICK: dict[str, list[str]] = {
    "gateway": ["--no-peers", "--seconds", "0.7", "--rounds", "1"],
    "feature": ["--seconds", "0.7", "--rounds", "1"],
    "embedded": ["--passes", "1"],
    "detection": ["--honest", "60", "--answers", "8"],
    "idle_tunnels": ["--nodes", "200", "--seconds", "3"],
    "tunnel_calls": ["--seconds", "0.5"],
}
TIMED = ("gateway", "feature")
"""Those that take --seconds and --rounds."""


def find_benchmarks() -> list[str]:
    return sorted(file.stem.removeprefix("bench_") for file in FOLDER.glob("bench_*.py"))


def run_one(name: str, flags: list[str]) -> dict[str, Any]:
    """Its results; of one that fails the end of what it said."""
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'plugins'}"}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.bench_{name}", "--json", *flags],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        return {"failed": f"ended with {done.returncode}; its words are above"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def describe_machine() -> dict[str, Any]:
    return {
        "cpu": find_cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def make_plan(args: argparse.Namespace) -> dict[str, list[str]]:
    """The flags of every benchmark that is to run, in order."""
    usual = QUICK if args.quick else USUAL
    rest = [name for name in find_benchmarks() if name != "soak"]
    names = [*args.names, *args.only] or ([*USUAL, *rest] if args.all else list(usual))
    plan = {name: list(usual.get(name, [])) for name in names}
    if "soak" in plan and args.minutes is not None:
        plan["soak"] += ["--minutes", str(args.minutes)]
    for name in TIMED:
        for flag in ("seconds", "rounds"):
            if name in plan and getattr(args, flag) is not None:
                plan[name] += [f"--{flag}", str(getattr(args, flag))]
    return plan


def make_parser() -> argparse.ArgumentParser:
    known = find_benchmarks()
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", choices=[[], *known], help=f"of {', '.join(known)}"
    )
    parser.add_argument("--only", action="append", default=[], choices=known, metavar="NAME", help="the same")
    parser.add_argument(
        "--all", action="store_true", help="every benchmark but the soak, about twenty minutes"
    )
    parser.add_argument(
        "--quick", action="store_true", help="no peers, short windows: a look, no measurement"
    )
    parser.add_argument("--seconds", type=float, help="of each window of load, where there are windows")
    parser.add_argument("--rounds", type=int, help="in which what is compared takes turns")
    parser.add_argument("--minutes", type=float, help="of the soak")
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"), help="where the JSON goes")
    parser.add_argument("--json", action="store_true", help="the JSON on standard output, instead of tables")
    parser.add_argument("--docs", type=Path, help="put the tables into this page, between its marks")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    results: dict[str, Any] = {}
    for name, flags in make_plan(args).items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = run_one(name, flags)
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"date": when, "machine": describe_machine(), "results": results}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1) if args.json else "\n".join(result_lines(found)))
    if args.docs:
        write_docs(args.docs, found)
    if any("failed" in row for row in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
