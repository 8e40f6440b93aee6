"""Embeddings a second: one caller, many callers (batched), and bare onnxruntime at its best batch.

All on the same texts in one process, in passes that take turns, the best of each kept: what
disturbs the machine hits all of them. The ratios hold where absolute figures do not, and
embeddings per CPU-second hold on a machine that others use too.

    PYTHONPATH=. python -m tests.bench.bench_embeddings [--seconds 2] [--passes 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import trio

from emcd.inference.embedder import Embedder, EmbedderSettings, EmbedResult
from emcd.inference.minilm import MINILM_MANIFEST, ModelFiles
from emcd.inference.session import open_session
from emcd.inference.tokenizer import Tokenizer
from tests.support.inference_model import shared_model

CALLERS = 64
BATCHES = (1, 2, 4, 8, 16)
TEXTS = 192

Row = dict[str, float]


def make_texts(count: int = TEXTS) -> list[str]:
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


async def measure_callers(embedder: Embedder, texts: Sequence[str], callers: int, seconds: float) -> Row:
    """Closed loops of `callers` tasks with one text each."""
    waits: list[float] = []
    deadline = trio.current_time() + seconds

    async def call(number: int) -> None:
        while trio.current_time() < deadline:
            started = trio.current_time()
            assert isinstance(await embedder.embed([texts[number % len(texts)]]), EmbedResult)
            waits.append(trio.current_time() - started)
            number += 7

    watch = _Watch()
    async with trio.open_nursery() as nursery:
        for index in range(callers):
            nursery.start_soon(call, index * 13)
    waits.sort()
    p50, p99 = (round(waits[len(waits) * share // 100] * 1000, 1) for share in (50, 99))
    return watch.row(len(waits), p50_ms=p50, p99_ms=p99)


async def measure_call(embedder: Embedder, texts: Sequence[str]) -> Row:
    """One call with all texts."""
    watch = _Watch()
    assert isinstance(await embedder.embed(texts), EmbedResult)
    return watch.row(len(texts))


async def measure_setting(threads: int, runs: int, seconds: float, passes: int) -> dict[str, Any]:
    """Everything for one way to use the cores."""
    files, texts = shared_model(), make_texts()
    token_ids = Tokenizer(files.tokenizer, MINILM_MANIFEST.max_tokens).encode(texts)
    embedder = Embedder(files, MINILM_MANIFEST, EmbedderSettings(threads=threads, parallel_runs=runs))
    rows: dict[str, list[Row]] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(embedder.run)
        for _ in range(passes):
            for batch in BATCHES:
                row = measure_raw(files, token_ids, threads, runs, batch)
                rows.setdefault(f"raw_batch_{batch}", []).append(row)
            for name, callers in (("one_caller", 1), (f"{CALLERS}_callers", CALLERS)):
                rows.setdefault(name, []).append(await measure_callers(embedder, texts, callers, seconds))
            rows.setdefault(f"one_call_of_{len(texts)}", []).append(await measure_call(embedder, texts))
        nursery.cancel_scope.cancel()
    best = {name: max(found, key=lambda row: row["embeddings_per_s"]) for name, found in rows.items()}
    return {**best, "ratios": _ratios(best)}


def _ratios(best: dict[str, Row]) -> dict[str, float]:
    def ratio(pick: Callable[[str], float]) -> tuple[float, float]:
        batched = pick(f"{CALLERS}_callers")
        raw = max(pick(name) for name in best if name.startswith("raw"))
        return round(batched / pick("one_caller"), 2), round(batched / raw, 2)

    by_wall = ratio(lambda name: best[name]["embeddings_per_s"])
    by_cpu = ratio(lambda name: best[name]["embeddings_per_cpu_s"])
    return {
        "batched_over_single": by_wall[0],
        "batched_over_raw_best": by_wall[1],
        "batched_over_single_per_cpu_s": by_cpu[0],
        "batched_over_raw_best_per_cpu_s": by_cpu[1],
    }


def measure(seconds: float = 2.0, passes: int = 3) -> dict[str, Any]:
    """All settings; cores are those this process may use."""
    cores = len(os.sched_getaffinity(0))
    settings = sorted({(1, 1), (cores, 1), (1, cores)})
    rows = {
        f"threads_{threads}_runs_{runs}": trio.run(measure_setting, threads, runs, seconds, passes)
        for threads, runs in settings
    }
    return {"cores": cores, "texts": TEXTS, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args.seconds, args.passes)
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for setting, rows in results.items():
        if isinstance(rows, dict):
            for name, row in rows.items():
                print(setting, name, row)


if __name__ == "__main__":
    main()
