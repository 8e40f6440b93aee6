"""Who is caught, who is not, and what it costs: the tables of docs/verification.md, measured anew.

Honest answers of the fp32 class over thread counts, batch sizes, padding and optimisation levels; every
known cheat on fresh prompts, judged by the validator's own code with its reruns; rounds until a node that
cheats on a share of its calls is suspended by the network's own rule; the judge's CPU time beside the
node's. The first run on a machine trains emcd-tiny-1 and a smaller impostor (two minutes).

    PYTHONPATH=.:plugins python -m tests.bench.bench_detection [--honest 10000] [--answers 100] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emcd.proto.messages import Verdict
from emcd.proto.params import mainnet_params
from tests.bench.detection_report import detection_lines
from tests.bench.detection_tally import Tally, simulate_rounds
from tests.bench.detection_text import TextBench
from tests.bench.detection_vectors import VectorBench

SHARES = (0.05, 0.2, 1.0)
ROUND_ROWS = ("3 of 4 layers", "int4 weights, laundered", "int8 weights")
_PAUSE_S = 10.0


def measure(honest: int, answers: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything. Args: `honest`: answers, half of them text; `answers`: of each row of cheats."""
    with tempfile.TemporaryDirectory(prefix="emcd-detection-") as name:
        work = Path(name)
        texts = TextBench.open(work, say)
        vectors = VectorBench(work)
        text_rows, tallies = texts.measure_cheats(answers, say)
        vector_rows, vector_tallies = vectors.measure_cheats(max(8, answers * 3 // 5), say)
        return {
            "honest": {
                "text": texts.measure_honest(honest // 2, say),
                "vectors": vectors.measure_honest(honest - honest // 2, say),
            },
            "text": text_rows,
            "vectors": vector_rows,
            "rounds": measure_rounds({**tallies, **vector_tallies}),
            "cost": {**texts.measure_cost(work, say), "all-MiniLM-L6-v2, batched": vectors.measure_cost()},
        }


def measure_rounds(tallies: dict[str, Tally]) -> dict[str, Any]:
    """Rounds until suspended, for rows of one strike, of a weak probe, and of two strikes."""
    params = mainnet_params(0)
    rows = {name: tallies[name].verdicts for name in ROUND_ROWS if name in tallies}
    rows["every probe GROSS"] = [Verdict.GROSS]
    return {
        name: [simulate_rounds(verdicts, share, params) for share in SHARES]
        for name, verdicts in rows.items()
    }


def paced(is_quiet: bool) -> Callable[[str], None]:
    """What goes on, on stderr, now and then."""
    last_at = -_PAUSE_S

    def say(line: str) -> None:
        nonlocal last_at
        if not is_quiet and time.monotonic() - last_at >= _PAUSE_S:
            last_at = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    return say


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--honest", type=int, default=10_000, help="honest answers, half text and half vectors"
    )
    parser.add_argument("--answers", type=int, default=100, help="of each cheat with a text model")
    parser.add_argument("--json", action="store_true", help="the results instead of the tables")
    args = parser.parse_args()
    found = measure(args.honest, args.answers, paced(is_quiet=False))
    print(json.dumps(found, indent=1) if args.json else "\n".join(detection_lines(found)))


if __name__ == "__main__":
    main()
