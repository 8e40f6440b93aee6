"""Closing a round of many calls by a running hub: how long, with how much memory, at whose cost.

A ledger is filled with a whole round (calls of 10,000 nodes, every receipt in a small batch and in a
consolidated one, as nodes send them); then a hub starts on it, closes the round in its child process
and serves calls meanwhile. The yardstick in the same run: the same hub under the same load once the
round is closed.

    PYTHONPATH=.:plugins python -m tests.bench.bench_close [--calls 1000000] [--json] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from emcd.accounting.price import charge_call_ceil, price_of
from emcd.bundle_file import audit_file
from emcd.daemon.life import SWITCH_INTERVAL_S
from emcd.ledger import open_ledger
from emcd.proto.bundle import StatusEntry
from emcd.proto.hashing import keccak
from emcd.proto.messages import NodeStatus
from emcd.proto.params import NetworkParams
from emcd.proto.records import (
    BATCH_RECORDS,
    CallStatus,
    Delivery,
    Forward,
    Receipt,
    RecordBatch,
    RecordKind,
    batch_root,
)
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS
from emcd_hub.bootstrap import create_account
from emcd_hub.metrics import CLOSE_SECONDS
from emcd_hub.records.batch_row import StoredBatch, insert_batches
from emcd_hub.records.call_row import CallRow, insert_calls
from emcd_hub.rounds.view import fetch_view
from emcd_hub.rounds.view_row import upsert_view
from emcd_hub.schema import MIGRATIONS
from tests.bench.client import Load, finish, opened, run_closed
from tests.bench.hub_process import Apart, be_ready, run_apart, run_null_node
from tests.bench.process_use import cpu_s, family
from tests.bench.statistic import percentile
from tests.bench.window import Case, Target, make_ask
from tests.support.hub_rounds import StubChain
from tests.support.hub_world import DOMAIN, HUB_KEY, make_deployment, running_world

ROUND_S = 7200
SERVED = Case("while closing", 32)
SETTLED_S = 10.0
LOOK_S = 0.01
SHARES = {"median": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_encode = msgspec.msgpack.Encoder().encode


def make_chain(genesis_s: int, nodes: int) -> StubChain:
    """A network whose round 0 is due to be closed."""
    chain = StubChain(make_deployment(genesis_time_s=genesis_s, round_s=ROUND_S))
    chain.nodes = [make_key(f"node {number}").address for number in range(nodes)]
    return chain


class Filler:
    """Writes a round into a ledger, as a hub would have over two hours."""

    def __init__(self, chain: StubChain, calls: int, account_id: str) -> None:
        self._params: NetworkParams = chain.deployment.params
        self._keys = [make_key(f"node {number}") for number in range(len(chain.nodes))]
        self._model_hash = keccak(b"model")
        self._charge = charge_call_ceil(price_of(chain.deployment.prices, self._model_hash), 100, 50)
        self._calls = calls
        self._account_id = account_id
        self._waiting: dict[RecordKind, list[bytes]] = {RecordKind.FORWARD: [], RecordKind.DELIVERY: []}
        self._receipts: list[list[tuple[bytes, int]]] = [[] for _ in self._keys]

    def fill(self, con: Any) -> None:
        rows: list[CallRow] = []
        start_ms = self._params.round_start_ms(0)
        for number in range(self._calls):
            at_ms = start_ms + number * (ROUND_S * 1000 - 60_000) // self._calls
            rows.append(self._make_call(con, number, at_ms))
            if len(rows) == BATCH_RECORDS:
                self._flush(con, rows, at_ms)
                rows = []
        self._flush(con, rows, start_ms + ROUND_S * 1000 - 50_000)
        end_ms = self._params.round_end_ms(0) + 30_000
        for key, receipts in zip(self._keys, self._receipts, strict=True):
            hashes = [record_hash for record_hash, _ in receipts]
            for first in range(0, len(hashes), BATCH_RECORDS):
                self._sign(con, key, RecordKind.RECEIPT, hashes[first : first + BATCH_RECORDS], end_ms)
            if len(receipts) > 1:
                insert_batches(con, [_make_small(key, *item) for item in receipts])
        for key in self._keys:
            status = NodeStatus(
                key.address, HUB_KEY.address, 1, start_ms + 5, (self._model_hash,), 8, 0, "x", ""
            )
            entry = _encode(StatusEntry(status, key.sign(DOMAIN, status)))
            con.execute("INSERT INTO hub_statuses VALUES (0, ?, ?)", (key.address, entry))

    def _make_call(self, con: Any, number: int, at_ms: int) -> CallRow:
        seed = keccak(number.to_bytes(8, "big"))
        node = seed[0] << 16 | seed[1] << 8 | seed[2]
        key = self._keys[node % len(self._keys)]
        call_id = at_ms.to_bytes(6, "big") + seed[:10]
        forward = Forward(
            call_id, HUB_KEY.address, ZERO_ADDRESS, key.address, keccak(seed), self._model_hash, 1, at_ms
        )
        forward_hash = forward.struct_hash()
        answer = keccak(keccak(seed))
        receipt = Receipt(forward_hash, answer, 200, 100, 50, at_ms + 1, at_ms + 40)
        receipt_hash = receipt.struct_hash()
        delivery = Delivery(
            forward_hash, receipt_hash, answer, CallStatus.OK, self._charge, self._charge, 0, at_ms + 50
        )
        self._waiting[RecordKind.FORWARD].append(forward_hash)
        self._waiting[RecordKind.DELIVERY].append(delivery.struct_hash())
        self._receipts[node % len(self._keys)].append((receipt_hash, at_ms + 60))
        return CallRow(
            number + 1, call_id, self._account_id, key.address, "model", 0, 0, _encode(forward), _encode(receipt),
            _encode(delivery), 0, self._charge, "", at_ms + 50,
        )  # fmt: skip

    def _flush(self, con: Any, rows: list[CallRow], at_ms: int) -> None:
        if rows:
            insert_calls(con, rows)
        for kind, hashes in self._waiting.items():
            if hashes:
                self._sign(con, HUB_KEY, kind, hashes, at_ms + 300)
                hashes.clear()

    def _sign(self, con: Any, key: Any, kind: RecordKind, hashes: list[bytes], at_ms: int) -> None:
        batch = RecordBatch(key.address, kind, batch_root(hashes), len(hashes), at_ms)
        insert_batches(con, [StoredBatch(batch, key.sign(DOMAIN, batch), tuple(hashes), at_ms)])


def _make_small(key: Any, record_hash: bytes, at_ms: int) -> StoredBatch:
    """A batch of one, which a consolidated one replaces: nobody will look at its signature."""
    batch = RecordBatch(key.address, RecordKind.RECEIPT, batch_root([record_hash]), 1, at_ms)
    return StoredBatch(batch, bytes(65), (record_hash,), at_ms)


async def build(folder: Path, genesis_s: int, nodes: int, calls: int) -> None:
    chain: Any = make_chain(genesis_s, nodes)
    async with open_ledger(folder / "ledger.db", {"hub": MIGRATIONS}) as ledger:
        account, _ = await create_account(ledger, "payer", 10**9)
        micro = (10**15,)
        await ledger.write(lambda con: con.execute("UPDATE hub_accounts SET vault_micro = ?", micro) and None)
        view = await fetch_view(chain, 0, chain.deployment.params)
        await ledger.write(lambda con: upsert_view(con, view))
        await ledger.write(Filler(chain, calls, account.account_id).fill)


def _hub(pipe: Connection, folder: str, genesis_s: int, nodes: int) -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    lags: list[float] = []

    async def measure_lag() -> None:
        while True:
            before = trio.current_time()
            await trio.sleep(LOOK_S)
            lags.append(trio.current_time() - before - LOOK_S)

    async def main() -> None:
        chain = make_chain(genesis_s, nodes)
        settings: dict[str, Any] = {"granted_micro": 10**15, "max_calls_per_account": 4096, "admit": "staked"}
        async with running_world(Path(folder), deployment=chain.deployment, chain=chain, **settings) as world:
            world.nursery.start_soon(measure_lag)
            be_ready(pipe, (world.role.ports, world.api_key))
            while not await world.rows("SELECT 1 FROM hub_seals WHERE round = 0"):
                await trio.sleep(0.05)
            pipe.send((CLOSE_SECONDS._sum.get(), list(lags)))
            lags.clear()
            await trio.sleep(SETTLED_S)
            pipe.send((0.0, list(lags)))
            await trio.sleep_forever()

    trio.run(main)


class Watch:
    """The most memory a process and its children had, and what CPU the children took."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.hub_mb = self.child_mb = self.child_cpu_s = 0.0

    def look(self) -> None:
        self.hub_mb = max(self.hub_mb, self._peak_mb(self._pid))
        for child in family(self._pid)[1:]:
            with suppress(OSError):
                self.child_mb = max(self.child_mb, self._peak_mb(child))
                self.child_cpu_s = max(self.child_cpu_s, cpu_s(child))

    def _peak_mb(self, pid: int) -> float:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def run(folder: Path, genesis_s: int, nodes: int) -> dict[str, Any]:
    """Start the hub on the ledger, load it while it closes and for a while after."""
    started = time.monotonic()
    with run_apart(_hub, str(folder), genesis_s, nodes) as hub:
        ready_s = time.monotonic() - started
        ports, key = hub.first
        target = Target("hub", ports["public"], hub.pid, {"authorization": f"Bearer {key}"})
        watch = Watch(hub.pid)
        with run_apart(run_null_node, min(os.sched_getaffinity(0)), ports["tunnel"]):
            closing, seconds, while_lags = _load_until(hub, target, watch)
            settled, _, after_lags = _load_until(hub, target, watch)
    return {
        "hub_ready_s": round(ready_s, 1),
        "close_wall_s": round(seconds, 1),
        "child_cpu_s": round(watch.child_cpu_s, 1),
        "hub_peak_mb": round(watch.hub_mb),
        "child_peak_mb": round(watch.child_mb),
        "calls_per_s_while_closing": round(closing),
        "calls_per_s_after": round(settled),
        **{f"lag_ms_{name}_while_closing": _share_ms(while_lags, share) for name, share in SHARES.items()},
        **{f"lag_ms_{name}_after": _share_ms(after_lags, share) for name, share in SHARES.items()},
    }


def _load_until(hub: Apart, target: Target, watch: Watch) -> tuple[float, float, list[float]]:
    """Load the hub until it says something; calls a second, and what it said."""
    wall = 0.0
    with opened(Load(target.port, make_ask(target, SERVED))) as load:
        while not hub.pipe.poll():
            wall += run_closed(load, SERVED.connections, 0.5)
            watch.look()
        finish(load, 5.0)
    seconds, lags = hub.pipe.recv()
    return load.tally.calls / max(wall, 0.1), seconds, lags


def _share_ms(values: list[float], share: float) -> float:
    return round(percentile(values, share) * 1000, 1) if values else 0.0


def audit(folder: Path) -> dict[str, Any]:
    (file,) = (folder / "bundles").glob("0-*.emcb")
    started = time.process_time()
    outcome = audit_file(file)
    assert outcome.ok, outcome.difference
    size = file.stat().st_size
    return {
        "bundle_mb": round(size / 1e6, 1),
        "bytes_per_call": round(size / outcome.calls, 1),
        "counted_calls": outcome.counted_calls,
        "audit_cpu_s": round(time.process_time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="Keep the files in this folder, for a look.")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    genesis_s = int(time.time()) - 2 * ROUND_S - 300
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        started = time.monotonic()
        trio.run(build, folder, genesis_s, args.nodes, args.calls)
        found = {"calls": args.calls, "nodes": args.nodes, "built_in_s": round(time.monotonic() - started)}
        found["ledger_mb"] = round((folder / "ledger.db").stat().st_size / 1e6)
        found |= run(folder, genesis_s, args.nodes)
        found |= audit(folder)
    print(
        json.dumps(found) if args.json else "\n".join(f"{name:28} {value}" for name, value in found.items())
    )


if __name__ == "__main__":
    main()
