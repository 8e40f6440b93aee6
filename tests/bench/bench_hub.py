"""Calls per second through a whole hub: key, budget, routing, tunnel, receipts, durable record.

The hub has one core, the node (a real tunnel around nothing) and the load generator share another.
The figure that travels between machines is calls per CPU-second of the hub's process, beside that
of the bare HTTP server measured in the same run.

    PYTHONPATH=.:plugins python -m tests.bench.bench_hub [--seconds 5] [--connections 32] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import socket
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from tests.bench.bench_http_server import measure as measure_http
from tests.support.hub_world import (
    MODEL,
    StubNode,
    answer_embedding,
    answer_stream,
    chat_events,
    node_key,
    running_world,
)

CHUNKS = 100
EMBED = msgspec.json.encode({"model": MODEL, "input": "the quick brown fox jumps over the lazy dog"})
CHAT = msgspec.json.encode({"model": MODEL, "messages": [{"role": "user", "content": "go"}], "stream": True})


def make_request(path: str, body: bytes, key: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: hub\r\nauthorization: Bearer {key}\r\nuser-agent: bench\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _hub(pipe: Connection, core: int) -> None:
    os.sched_setaffinity(0, {core})
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with running_world(Path(folder), granted_micro=10**15, max_calls_per_account=4096) as world:
                pipe.send((world.role.ports, world.api_key))
                await trio.sleep_forever()

    trio.run(main)


def _node(port: int, pipe: Connection, core: int) -> None:
    os.sched_setaffinity(0, {core})
    stream = answer_stream(chat_events([" word"] * CHUNKS), (7, CHUNKS))

    async def engine(node: StubNode, call: Any, meta: Any) -> None:
        await (stream if meta.stream else answer_embedding)(node, call, meta)

    async def main() -> None:
        node = StubNode(node_key(0), capacity=1024, answer=engine, keep_bodies=False)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run, port)
            await trio.sleep(0.3)
            pipe.send(True)
            await trio.sleep_forever()

    trio.run(main)


def load(port: int, request: bytes, connections: int, seconds: float, end: bytes) -> int:
    """Keep one request in flight on every connection; count whole responses."""
    poll = select.epoll()
    socks: dict[int, socket.socket] = {}
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(sock.fileno(), select.EPOLLIN)
        socks[sock.fileno()] = sock
        sock.sendall(request)
    done = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for fileno, _ in poll.poll():
            data = socks[fileno].recv(262_144)
            if not data or data.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")):
                raise ConnectionError(data[:200])
            if data.endswith(end):
                done += 1
                socks[fileno].sendall(request)
    for sock in socks.values():
        sock.close()
    return done


def cpu_s(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(connections: int, seconds: float) -> dict[str, dict[str, float]]:
    """Whole answers, and chunks of streams, through one hub."""
    cores = os.sched_getaffinity(0)
    hub_core, other = min(cores), max(cores)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    hub = spawn.Process(target=_hub, args=(theirs, hub_core), daemon=True)
    hub.start()
    ports, key = ours.recv()
    node = spawn.Process(target=_node, args=(ports["tunnel"], theirs, other), daemon=True)
    node.start()
    ours.recv()
    os.sched_setaffinity(0, {other})
    results: dict[str, dict[str, float]] = {}
    cases = (
        ("whole", make_request("/v1/embeddings", EMBED, key), b"}", 1),
        ("stream chunks", make_request("/v1/chat/completions", CHAT, key), b"\r\n0\r\n\r\n", CHUNKS),
    )
    for name, request, end, per_call in cases:
        load(ports["public"], request, connections, 1.0, end)
        cpu, started = cpu_s(hub.pid), time.monotonic()
        done = load(ports["public"], request, connections, seconds, end) * per_call
        wall, cpu = time.monotonic() - started, cpu_s(hub.pid) - cpu
        results[name] = {"per_s": round(done / wall), "per_cpu_s": round(done / cpu)}
    for process in (node, hub):
        process.terminate()
        process.join()
    os.sched_setaffinity(0, cores)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args.connections, args.seconds)
    http = measure_http("small", args.connections, args.seconds)
    results["bare HTTP"] = {"per_s": http["requests_per_s"], "per_cpu_s": http["requests_per_cpu_s"]}
    for row in results.values():
        row["ratio_to_http"] = round(row["per_cpu_s"] / http["requests_per_cpu_s"], 3)
    if args.json:
        print(json.dumps(results))
        return
    for name, row in results.items():
        print(f"{name:14} {row['per_s']:>8}/s {row['per_cpu_s']:>8}/CPU-s {row['ratio_to_http']:.3f}")


if __name__ == "__main__":
    main()
