"""Where a profile's time went, by part of the hub: sums what py-spy recorded in its raw format.

    python -m tests.bench.bench_hub --hold 30 &        # prints the hub's PID
    py-spy record -d 15 -r 500 -f raw -o raw.txt -p PID
    python -m tests.bench.parts raw.txt [--us 130]     # --us: microseconds a call, to be shared out

A sample belongs to the innermost of its frames that is in a known part; what waits is left out.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PARTS = (
    ("ledger", r"emcd/ledger"),
    ("HTTP", r"emcd/net/http|httptools"),
    ("tunnel", r"emcd/net/tunnel|emcd/proto/tunnel|websockets/"),
    ("keys and accounts", r"emcd_hub/billing"),
    ("routing", r"emcd_hub/(nodes|routers)|emcd/scheduling"),
    ("reading requests", r"emcd_hub/api|emcd/proto/openai|emcd/proto/wish"),
    ("calls and records", r"emcd_hub|emcd/proto|emcd/accounting"),
    ("trio", r"trio/"),
)
_PATTERNS = [(name, re.compile(pattern)) for name, pattern in PARTS]
_WAITS = re.compile(r"_recv \(multiprocessing|Writer\._run \([^)]*\)$")
"""Frames that py-spy takes for work: the bench's own pipe, and the ledger's thread waiting for a job."""


def find_part(frames: list[str]) -> str:
    """The part of the innermost frame that is in one."""
    for frame in reversed(frames):
        for name, pattern in _PATTERNS:
            if pattern.search(frame):
                return name
    return "other"


def sum_parts(lines: Iterable[str]) -> Counter[str]:
    """Samples by part."""
    found: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rstrip().rpartition(" ")
        frames = stack.split(";")
        if count.isdecimal() and not _WAITS.search(frames[-1]):
            found[find_part(frames)] += int(count)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("raw", type=Path, help="what py-spy wrote")
    parser.add_argument("--us", type=float, help="CPU of one call or chunk, in microseconds")
    args = parser.parse_args()
    found = sum_parts(args.raw.read_text().splitlines())
    for name, count in found.most_common():
        share = count / found.total()
        us = f" {args.us * share:7.1f} us" if args.us else ""
        print(f"{name:20}{share * 100:6.1f}%{us}")


if __name__ == "__main__":
    main()
