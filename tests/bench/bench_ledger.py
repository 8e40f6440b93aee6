"""Durable writes per second through `await ledger.write`, next to SQLite alone on the same disk.

The yardstick is one thread that commits batches of as many rows with FULL sync and nothing else.
`busy` measures beside a loop that always has something else to do, as a hub under load has; there a
thread that has to win the interpreter back after every SQLite call would starve.

    PYTHONPATH=. python -m tests.bench.bench_ledger [--writes 20000] [--json]
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from emcd.ledger import Connection, Ledger, Migration
from emcd.testing import temporary_ledger

COMPONENTS = {
    "b": [Migration(1, "rows", "CREATE TABLE b_rows (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT")]
}
INSERT = "INSERT INTO b_rows (body) VALUES ('a row of a call')"


def insert(con: Connection) -> None:
    con.execute(INSERT)


def insert_many(con: Connection, bodies: Sequence[str]) -> None:
    con.execute("INSERT INTO b_rows (body) VALUES " + ",".join(["(?)"] * len(bodies)), list(bodies))


def measure_sqlite(writes: int, batch: int) -> float:
    """Rows per second of SQLite alone, in transactions of `batch` rows."""
    with tempfile.TemporaryDirectory() as folder:
        con = sqlite3.connect(Path(folder) / "ledger.db", isolation_level=None)
        con.execute("PRAGMA journal_mode = WAL")
        con.execute("PRAGMA synchronous = FULL")
        con.execute("CREATE TABLE b_rows (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT")
        started = time.perf_counter()
        for _ in range(writes // batch):
            con.execute("BEGIN IMMEDIATE")
            for _ in range(batch):
                con.execute(INSERT)
            con.execute("COMMIT")
        elapsed = time.perf_counter() - started
        con.close()
    return writes / elapsed


async def measure_ledger(writes: int, tasks: int, *, bulk: bool, busy: bool) -> float:
    """Writes per second of that many tasks, each waiting for its write before the next."""

    async def write(ledger: Ledger) -> None:
        for _ in range(writes // tasks):
            await (ledger.write_bulk(insert_many, "a row of a call") if bulk else ledger.write(insert))

    async def work() -> None:
        while True:
            until = time.perf_counter() + 0.0001
            while time.perf_counter() < until:
                pass
            await trio.lowlevel.checkpoint()

    with tempfile.TemporaryDirectory() as folder:
        async with temporary_ledger(Path(folder), COMPONENTS) as ledger, trio.open_nursery() as others:
            if busy:
                others.start_soon(work)
            started = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(tasks):
                    nursery.start_soon(write, ledger)
            elapsed = time.perf_counter() - started
            others.cancel_scope.cancel()
    return writes / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writes", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for tasks in (1, 32, 256):
        writes = args.writes // 20 if tasks == 1 else args.writes
        yardstick = measure_sqlite(writes, tasks)
        results[f"sqlite {tasks}"] = {"writes_per_s": round(yardstick), "ratio_to_sqlite": 1.0}
        for bulk in (False, True):
            for busy in (False, True):
                rate = trio.run(partial(measure_ledger, writes, tasks, bulk=bulk, busy=busy))
                name = f"{'write_bulk' if bulk else 'write'} {tasks}{' busy' if busy else ''}"
                results[name] = {"writes_per_s": round(rate), "ratio_to_sqlite": round(rate / yardstick, 3)}
    if args.json:
        print(json.dumps(results))
        return
    for name, row in results.items():
        print(
            f"{name:20} {row['writes_per_s']:>9,.0f} writes/s  {row['ratio_to_sqlite']:>6.2f} of SQLite alone"
        )


if __name__ == "__main__":
    main()
