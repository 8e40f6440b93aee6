"""Closing and auditing a round of many calls, in CPU seconds, with the memory the audit needs.

The yardstick in the same run is plain keccak over the same number of records: what no
implementation can do without.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from emcd.accounting.audit import audit_bundle
from emcd.accounting.round_close import close_round
from emcd.proto.hashing import keccak
from emcd.proto.params import mainnet_params
from tests.support.round_world import GENESIS_S, World

NODES = 20


def make_world(calls: int) -> World:
    return World(
        node_names=[f"node-{n}" for n in range(NODES)],
        calls_per_node=calls // NODES,
        batch_records=255,
        params=mainnet_params(GENESIS_S),
    )


def measure(calls: int) -> dict[str, Any]:
    world = make_world(calls)
    facts, evidence = world.facts, world.evidence()
    started = time.process_time()
    closed = close_round(facts, evidence)
    close_s = time.process_time() - started
    assert not closed.left_out
    started = time.process_time()
    for _ in range(3 * len(world.calls)):
        keccak(bytes(256))
    keccak_s = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle.bin"
        path.write_bytes(closed.data)
        audit = _audit_alone(path)
    return {
        "calls": len(world.calls),
        "bundle_mb": round(len(closed.data) / 1e6, 1),
        "close_cpu_s": round(close_s, 2),
        **audit,
        "calls_audited_per_cpu_s": round(len(world.calls) / audit["audit_cpu_s"]),
        "audit_ratio_to_keccak": round(audit["audit_cpu_s"] / keccak_s, 1),
    }


def _audit_alone(path: Path) -> dict[str, Any]:
    """In a process of its own, for its memory."""
    command = [sys.executable, "-m", "tests.bench.bench_round", "--audit", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def audit_file(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    before_kb = peak_kb()
    started = time.process_time()
    outcome = audit_bundle(data)
    audit_s = time.process_time() - started
    assert outcome.ok, outcome.difference
    grown_kb = peak_kb() - before_kb
    return {"audit_cpu_s": round(audit_s, 2), "audit_memory_mb": round(grown_kb / 1024, 1)}


def peak_kb() -> int:
    """The most memory this process had; the bundle's own bytes are in it before the audit."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--audit", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.audit:
        print(json.dumps(audit_file(args.audit)))
        return
    found = measure(args.calls)
    print(
        json.dumps(found) if args.json else "\n".join(f"{name:24} {value}" for name, value in found.items())
    )


if __name__ == "__main__":
    main()
