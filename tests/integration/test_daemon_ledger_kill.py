"""The ledger in a process that dies: killed at any moment, or out of disk; what was acknowledged stays."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.process import make_environment

PROGRAM = """
import resource, sys
from pathlib import Path
import trio
from emcd.errors import FatalError
from emcd.ledger import Migration, open_ledger

first, limit_bytes = int(sys.argv[2]), int(sys.argv[3])
if limit_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
TABLE = Migration(1, "t", "CREATE TABLE t_numbers (number INTEGER PRIMARY KEY, filler TEXT NOT NULL) STRICT")
ROW = "INSERT INTO t_numbers VALUES (?, hex(zeroblob(100)))"

async def main():
    async with open_ledger(Path(sys.argv[1]), {"t": [TABLE]}) as ledger:
        async def write(lane):
            for number in range(first + lane, first + 10_000_000, 32):
                await ledger.write(lambda con: con.execute(ROW, (number,)))
                sys.stdout.write(f"{number}\\n")
                sys.stdout.flush()
        async with trio.open_nursery() as nursery:
            for lane in range(32):
                nursery.start_soon(write, lane)

code = 0
try:
    trio.run(main)
except* FatalError as group:
    print(group.exceptions[0].code, file=sys.stderr)
    code = 3
sys.exit(code)
"""


def start(ledger: Path, first: int, out: Path, limit_bytes: int = 0) -> subprocess.Popen[str]:
    with out.open("w") as stdout:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ledger), str(first), str(limit_bytes)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=make_environment(),
        )


def list_acknowledged(out: Path) -> set[int]:
    """Every number of a whole line: the last one may be cut."""
    return {int(line) for line in out.read_text().split("\n")[:-1]}


def list_stored(ledger: Path) -> set[int]:
    con = sqlite3.connect(ledger)
    try:
        assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {row[0] for row in con.execute("SELECT number FROM t_numbers")}
    finally:
        con.close()


def kill_rounds(folder: Path, rounds: int, seed: int) -> None:
    moments = random.Random(seed)
    acknowledged: set[int] = set()
    for number in range(rounds):
        out = folder / f"out-{number}"
        process = start(folder / "ledger.db", number * 10_000_000, out)
        while not out.read_text() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate(timeout=10)
        assert list_acknowledged(out), "nothing was written before the kill"
        acknowledged |= list_acknowledged(out)
        assert acknowledged <= list_stored(folder / "ledger.db")


def test_ledger_killed_at_random_moments_lost_nothing_acknowledged(tmp_path: Path) -> None:
    kill_rounds(tmp_path, rounds=4, seed=1)


@pytest.mark.deep
def test_ledger_killed_a_hundred_times_lost_nothing_acknowledged(tmp_path: Path) -> None:
    kill_rounds(tmp_path, rounds=100, seed=2)


def test_ledger_out_of_disk_stops_with_its_number_and_lost_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(tmp_path / "ledger.db", 0, out, limit_bytes=1_000_000)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3, err
    assert err.split() == ["EMC-1204"] or err.split() == ["EMC-1205"]
    acknowledged = list_acknowledged(out)
    assert acknowledged
    assert acknowledged <= list_stored(tmp_path / "ledger.db")
    again = start(tmp_path / "ledger.db", 10_000_000, tmp_path / "again")
    while not (tmp_path / "again").read_text() and again.poll() is None:
        time.sleep(0.005)
    again.kill()
    again.communicate(timeout=10)
    assert list_acknowledged(tmp_path / "again"), "it does not write again with room on the disk"
