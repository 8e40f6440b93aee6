"""Runs every benchmark of this folder, one after the other, and writes their results as one JSON file.

Absolute figures hold for the machine of the run; compare ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]
LIMIT_S = 600


def run_all(names: list[str]) -> dict[str, Any]:
    """The results by benchmark; one that fails is named with the end of its output."""
    results: dict[str, Any] = {}
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'plugins'}"}
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"tests.bench.bench_{name}", "--json"],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        results[name] = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-500:]}
    return results


def main() -> None:
    known = sorted(file.stem.removeprefix("bench_") for file in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"))
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all without it")
    args = parser.parse_args()
    unknown = sorted(set(args.only) - set(known))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    results = run_all(args.only or known)
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "system": platform.platform()}
    args.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    if any("failed" in row for row in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
