"""What connected, idle nodes cost one hub: memory, and CPU while nothing happens but pings.

A whole hub in a process of its own; the nodes, each with a tunnel and a signed status, in others.
Then, for comparison in the same run, the same number of bare TCP connections in a process that does
nothing else: what trio and the kernel's bookkeeping cost anybody.

    PYTHONPATH=.:plugins python -m tests.bench.bench_idle_tunnels [--nodes 5000] [--seconds 30] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog
import trio

from emcd.errors import RecoverableError
from emcd.net.open_file import ensure_open_files
from emcd.net.tunnel import run_tunnel
from tests.support.hub_world import DOMAIN, HUB_KEY, StubNode, node_key, running_world

NODE_PROCESSES = 4
DIALS_AT_ONCE = 16
SPAWN = multiprocessing.get_context("spawn")


def _hub(pipe: Connection, nodes: int) -> None:
    ensure_open_files(nodes + 500)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            listed = tuple(node_key(number).address for number in range(nodes))
            async with running_world(Path(folder), allowed_nodes=listed) as world:
                pipe.send(world.role.ports["tunnel"])
                online = partial(world.plane.board.list_entries)
                while sum(entry.status is not None for entry in online()) < nodes:
                    await trio.sleep(0.2)
                pipe.send(True)
                while not await trio.to_thread.run_sync(pipe.poll, 3600):
                    pass
                pipe.send(sum(entry.status is not None for entry in online()))

    trio.run(main)


def _nodes(port: int, first: int, count: int) -> None:
    ensure_open_files(count + 500)

    async def main() -> None:
        room = trio.Semaphore(DIALS_AT_ONCE)

        async def one(number: int, nursery: trio.Nursery) -> None:
            node = StubNode(node_key(number), batching=False, keep_bodies=False)
            async with room:
                await nursery.start(partial(_stay, node, port))

        async with trio.open_nursery() as nursery:
            for number in range(first, first + count):
                nursery.start_soon(one, number, nursery)

    trio.run(main)


async def _stay(node: StubNode, port: int, *, task_status: trio.TaskStatus[None]) -> None:
    """A node that says once what it is, and then nothing. It tries again while the machine is too busy."""
    tunnel = partial(
        run_tunnel,
        f"ws://127.0.0.1:{port}",
        key=node.key,
        domain=DOMAIN,
        hub_address=HUB_KEY.address,
        on_call=node.on_call,
        on_control=node.on_control,
    )
    async with trio.open_nursery() as nursery:
        while node.link is None:
            try:
                node.link = await nursery.start(tunnel)
            except RecoverableError:
                await trio.sleep(1)
        await node.send_status()
        task_status.started()


def _sockets(pipe: Connection, count: int) -> None:
    """The same connections with nothing on them but a trio task that waits."""
    ensure_open_files(2 * count + 500)

    async def main() -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        address = listener.socket.getsockname()

        async def wait(stream: trio.SocketStream) -> None:
            await stream.receive_some(100)

        before = used_kib(None)
        clients = []
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                clients.append(socket.create_connection(address))
                nursery.start_soon(wait, await listener.accept())
            await trio.sleep(0.5)
            pipe.send((used_kib(None) - before) / count)
            nursery.cancel_scope.cancel()

    trio.run(main)


def used_kib(pid: int | None) -> int:
    """Resident memory."""
    for line in Path(f"/proc/{pid or 'self'}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError("the kernel tells no VmRSS")


def cpu_s(pid: int | None) -> float:
    """CPU of all threads of a process so far."""
    nanoseconds = sum(
        int(task.read_text("ascii").split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )
    return nanoseconds / 1e9


def measure(nodes: int, seconds: float) -> dict[str, Any]:
    """Connect, wait until it is quiet, and look."""
    ours, theirs = SPAWN.Pipe()
    hub = SPAWN.Process(target=_hub, args=(theirs, nodes), daemon=True)
    hub.start()
    port = ours.recv()
    time.sleep(1.0)
    empty_kib, began, cpu = used_kib(hub.pid), time.monotonic(), cpu_s(hub.pid)
    time.sleep(3.0)
    empty_share = (cpu_s(hub.pid) - cpu) / (time.monotonic() - began)
    began, cpu = time.monotonic(), cpu_s(hub.pid)
    share = -(-nodes // NODE_PROCESSES)
    workers = [
        SPAWN.Process(target=_nodes, args=(port, first, min(share, nodes - first)), daemon=True)
        for first in range(0, nodes, share)
    ]
    for worker in workers:
        worker.start()
    ours.recv()
    connecting = {"wall_s": time.monotonic() - began, "cpu_ms_each": (cpu_s(hub.pid) - cpu) / nodes * 1000}
    time.sleep(15.0)  # past the first pings, and what connecting left behind
    began, cpu = time.monotonic(), cpu_s(hub.pid)
    time.sleep(seconds)
    wall, cpu, kib = time.monotonic() - began, cpu_s(hub.pid) - cpu, used_kib(hub.pid)
    ours.send(True)
    left = ours.recv()
    for process in [*workers, hub]:
        process.terminate()
        process.join()
    return {
        "nodes": nodes,
        "still_online": left,
        "hub_mib": round(kib / 1024, 1),
        "hub_mib_without_nodes": round(empty_kib / 1024, 1),
        "kib_each": round((kib - empty_kib) / nodes, 1),
        "cpu_share": round(cpu / wall, 4),
        "cpu_share_without_nodes": round(empty_share, 4),
        "connecting": {name: round(value, 2) for name, value in connecting.items()},
    }


def measure_sockets(count: int) -> float:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_sockets, args=(theirs, count), daemon=True)
    process.start()
    found: float = ours.recv()
    process.join()
    return round(found, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args.nodes, args.seconds)
    results["bare_trio_socket_kib_each"] = measure_sockets(min(args.nodes, 2000))
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
