"""Embeddings a second: one caller, many callers (batched), and bare onnxruntime at its best batch.

All on the same texts in one process, in passes that take turns: what disturbs the machine hits all of
them. The ratios, taken pass by pass, hold where absolute figures do not, and embeddings per CPU-second
hold on a machine that others use too.

    PYTHONPATH=. python -m tests.bench.bench_embeddings [--passes 5] [--repeat 4] [--one] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import trio

from emcd.inference.embedder import Embedder, EmbedderSettings, EmbedResult
from emcd.inference.minilm import MINILM_MANIFEST, ModelFiles
from emcd.inference.session import open_session
from emcd.inference.tokenizer import Tokenizer
from tests.bench.statistic import percentile, ratio, spread
from tests.support.inference_model import shared_model

CALLERS = 64
BATCHES = (1, 2, 4, 8, 16)
TEXTS = 192
RAW, MANY = "raw_batch_", f"{CALLERS}_callers"

Row = dict[str, float]


def make_texts(count: int) -> list[str]:
    """Texts of 8 to 200 tokens, short ones more often, as questions and paragraphs are."""
    rng = random.Random(1)
    words = ["network", "node", "credit", "proof", "stake", "round", "garden", "river", "letter", "music"]
    return [" ".join(rng.choices(words, k=min(200, int(6 + rng.expovariate(1 / 30))))) for _ in range(count)]


class _Watch:
    """Wall and CPU time of this process, from here."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def row(self, done: int, **more: float) -> Row:
        return {
            "embeddings_per_s": round(done / (time.perf_counter() - self._wall), 1),
            "embeddings_per_cpu_s": round(done / (time.process_time() - self._cpu), 1),
            **more,
        }


def measure_raw(
    files: ModelFiles, token_ids: Sequence[Sequence[int]], threads: int, runs: int, batch: int
) -> Row:
    """Bare sessions on texts sorted by length beforehand."""
    session = open_session(files.onnx, threads)
    ordered = sorted(token_ids, key=len)
    batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    with ThreadPoolExecutor(runs) as pool:
        session.run(batches[0])
        watch = _Watch()
        list(pool.map(session.run, batches))
        return watch.row(len(ordered))


async def measure_callers(embedder: Embedder, texts: Sequence[str], callers: int) -> Row:
    """Closed loops of `callers` tasks with one text each, until every text was embedded: the work is that
    of the bare session, to the token."""
    waits: list[float] = []
    left = iter(random.Random(callers).sample(texts, len(texts)))

    async def call() -> None:
        for text in left:
            started = trio.current_time()
            assert isinstance(await embedder.embed([text]), EmbedResult)
            waits.append(trio.current_time() - started)

    watch = _Watch()
    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(call)
    p50, p99 = (round(percentile(waits, share) * 1000, 1) for share in (0.5, 0.99))
    return watch.row(len(waits), p50_ms=p50, p99_ms=p99)


async def measure_call(embedder: Embedder, texts: Sequence[str]) -> Row:
    """One call with all texts."""
    watch = _Watch()
    assert isinstance(await embedder.embed(texts), EmbedResult)
    return watch.row(len(texts))


async def measure_setting(threads: int, runs: int, passes: int, repeat: int) -> dict[str, Any]:
    """Everything for one way to use the cores."""
    files, texts = shared_model(), make_texts(TEXTS)
    token_ids = Tokenizer(files.tokenizer, MINILM_MANIFEST.max_tokens).encode(texts)
    embedder = Embedder(files, MINILM_MANIFEST, EmbedderSettings(threads=threads, parallel_runs=runs))
    rows: dict[str, list[Row]] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(embedder.run)
        for _ in range(passes):
            for batch in BATCHES:
                row = measure_raw(files, token_ids, threads, runs, batch)
                rows.setdefault(f"{RAW}{batch}", []).append(row)
            for name, callers, times in (("one_caller", 1, 1), (MANY, CALLERS, repeat)):
                row = await measure_callers(embedder, texts * times, callers)
                rows.setdefault(name, []).append(row)
            rows.setdefault(f"one_call_of_{len(texts)}", []).append(await measure_call(embedder, texts))
        nursery.cancel_scope.cancel()
    return {**{name: _middle(found) for name, found in rows.items()}, "ratios": _ratios(rows)}


def _middle(rows: list[Row]) -> Row:
    return {figure: spread([row[figure] for row in rows]).median for figure in rows[0]}


def _ratios(rows: dict[str, list[Row]]) -> dict[str, Any]:
    """Pass by pass: many small calls to one caller, and to the bare session at the batch that is its best."""
    found: dict[str, Any] = {}
    for figure in ("embeddings_per_s", "embeddings_per_cpu_s"):
        raw = [name for name in rows if name.startswith(RAW)]
        best = max(raw, key=lambda name: _middle(rows[name])[figure])
        for other in ("one_caller", best):
            label = "raw_best" if other == best else other
            shares = [
                ratio(ours[figure], row[figure]) for ours, row in zip(rows[MANY], rows[other], strict=True)
            ]
            found[f"{figure}_to_{label}"] = spread(shares)._asdict()
        found[f"{figure}_raw_best_batch"] = int(best.removeprefix(RAW))
    return found


def measure(passes: int = 5, repeat: int = 4, *, one_setting: bool = False) -> dict[str, Any]:
    """All settings, or one run of one thread alone; cores are those this process may use."""
    cores = len(os.sched_getaffinity(0))
    settings = [(1, 1)] if one_setting else sorted({(1, 1), (cores, 1), (1, cores)})
    rows = {
        f"threads_{threads}_runs_{runs}": trio.run(measure_setting, threads, runs, passes, repeat)
        for threads, runs in settings
    }
    return {"cores": cores, "texts": TEXTS, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=5, help="in which what is compared takes turns")
    parser.add_argument(
        "--repeat", type=int, default=4, help="how often many callers embed each text in a pass"
    )
    parser.add_argument("--one", action="store_true", help="only one run at a time, of one thread")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args.passes, args.repeat, one_setting=args.one)
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for setting, rows in results.items():
        if isinstance(rows, dict):
            for name, row in rows.items():
                print(setting, name, row)


if __name__ == "__main__":
    main()
