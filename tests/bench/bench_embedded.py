"""The embedded engine beside onnxruntime itself: small embedding calls, and streams of text.

Both in short: `bench_embeddings` for one run of one thread at a time, `bench_generation` for its two sizes.

    PYTHONPATH=.:plugins python -m tests.bench.bench_embedded [--passes 5] [--json]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from tests.bench import bench_embeddings, bench_generation
from tests.bench.report import embedded_lines


def measure(passes: int = 5, tokens: int = 96, repeat: int = 4) -> dict[str, Any]:
    """Both; `tokens` of each stream, `repeat` how often many callers embed each text in a pass."""
    found = bench_embeddings.measure(passes, repeat, one_setting=True)
    (embeddings,) = [rows for rows in found.values() if isinstance(rows, dict)]
    return {"embeddings": embeddings, "text": bench_generation.measure(tokens, passes)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=5, help="in which what is compared takes turns")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args.passes)
    print(json.dumps(results, indent=1) if args.json else "\n".join(embedded_lines(results)))


if __name__ == "__main__":
    main()
