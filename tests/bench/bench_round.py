"""Closing and auditing a large round, each in a process of its own, in CPU seconds and peak memory.

The yardstick in the same run is plain keccak over as many records of the size of a delivery: no
implementation can do without. `--node-batch 1` is the worst case, a signed batch for every receipt.

    PYTHONPATH=.:plugins python -m tests.bench.bench_round [--calls N] [--nodes N] [--node-batch N] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS, NODES, NODE_BATCH = 1_000_000, 10_000, 256
_RECORD_BYTES = 288


def measure(calls: int, nodes: int, node_batch: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"calls": calls, "nodes": nodes}
        _alone("make", folder, str(calls), str(nodes), str(node_batch))
        for step in ("keccak", "read", "close", "audit"):
            found |= _alone(step, folder, str(calls))
    found["close_ratio_to_keccak"] = round(found["close_cpu_s"] / found["keccak_cpu_s"], 1)
    found["audit_ratio_to_keccak"] = round(found["audit_cpu_s"] / found["keccak_cpu_s"], 1)
    found["calls_audited_per_cpu_s"] = round(calls / found["audit_cpu_s"])
    return found


def _alone(step: str, *args: str) -> dict[str, Any]:
    """One step in a process of its own, for its memory."""
    command = [sys.executable, "-m", "tests.bench.bench_round", "--step", step, *args]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def make(folder: Path, calls: str, nodes: str, node_batch: str) -> dict[str, Any]:
    from tests.bench.round_data import make_round

    make_round(folder, int(calls), int(nodes), int(node_batch))
    return {}


def keccak(folder: Path, calls: str) -> dict[str, Any]:
    from emcd.proto.hashing import keccak as hash_of

    record = bytes(_RECORD_BYTES)
    began = time.process_time()
    for _ in range(3 * int(calls)):
        hash_of(record)
    return {"keccak_cpu_s": round(time.process_time() - began, 2)}


def read(folder: Path, calls: str) -> dict[str, Any]:
    """What it costs to read the evidence and do nothing: part of the close."""
    from tests.bench.round_data import RoundFiles

    files = RoundFiles(folder)
    began = time.process_time()
    deque(files.calls(), maxlen=0)
    deque(files.batches(), maxlen=0)
    return {"read_cpu_s": round(time.process_time() - began, 2)}


def close(folder: Path, calls: str) -> dict[str, Any]:
    from emcd.accounting.round_close import close_round
    from tests.bench.round_data import RoundFiles

    gc.disable()  # as in the hub's child process (emcd/child.py)
    files = RoundFiles(folder)
    began, wall = time.process_time(), time.monotonic()
    with (folder / "bundle").open("w+b") as out:
        closed = close_round(files.facts(), files.evidence(), out, signatures_checked=True)
    assert not closed.left_out, closed.left_out[:3]
    return {
        "batches": closed.batches,
        "bundle_mb": round(closed.size_bytes / 1e6, 1),
        "bytes_a_call": round(closed.size_bytes / closed.calls, 1),
        "close_cpu_s": round(time.process_time() - began, 2),
        "close_wall_s": round(time.monotonic() - wall, 2),
        "close_peak_mb": peak_mb(),
    }


def audit(folder: Path, calls: str) -> dict[str, Any]:
    from emcd.accounting.audit import audit_bundle

    own = 0

    def sample(done: int, total: int) -> None:
        nonlocal own
        own = max(own, own_mb())

    began = time.process_time()
    with (
        (folder / "bundle").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        outcome = audit_bundle(data, progress=sample)
        assert outcome.ok, outcome.difference
        assert outcome.calls == int(calls)
    return {
        "audit_cpu_s": round(time.process_time() - began, 2),
        "audit_own_mb": own,
        "audit_peak_mb": peak_mb(),
    }


def own_mb() -> int:
    """Memory of this process without the pages of mapped files, which the system takes back at will."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) // 1024


def peak_mb() -> int:
    """The most memory of this process, pages of the mapped bundle included."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


_STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "make": make,
    "keccak": keccak,
    "read": read,
    "close": close,
    "audit": audit,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--node-batch", type=int, default=NODE_BATCH)
    parser.add_argument("--step", choices=_STEPS, help=argparse.SUPPRESS)
    parser.add_argument("args", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.step:
        folder, *rest = options.args
        print(json.dumps(_STEPS[options.step](Path(folder), *rest)))
        return
    found = measure(options.calls, options.nodes, options.node_batch)
    print(
        json.dumps(found)
        if options.json
        else "\n".join(f"{name:24} {value}" for name, value in found.items())
    )


if __name__ == "__main__":
    main()
