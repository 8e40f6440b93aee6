"""What the tunnel alone costs a hub: CPU per call and per streamed chunk, with no HTTP and no records.

The hub's end has one core; one node on the other answers at once. "coroutine" is `TunnelPeer.call`,
"callback" is `TunnelPeer.submit`. One call in flight measures the scheduler and the kernel more than
the tunnel: everything that happens then happens alone.

    PYTHONPATH=.:plugins python -m tests.bench.bench_tunnel_calls [--seconds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from contextlib import suppress
from functools import partial

import trio

from emcd.errors import RecoverableError
from emcd.net.tunnel import HubCall, IncomingCall, TunnelPeer, run_tunnel, serve_tunnels
from emcd.types import Address, ParticipantRole
from tests.support.tunnel_world import DOMAIN, HUB, NODE, drop_control

META, BODY = bytes(300), bytes(200)
HEAD, ANSWER, END = bytes(40), bytes(600), bytes(200)
CHUNK = bytes(200)
CHUNKS = 100
WARM_S = 0.7


async def _answer(call: IncomingCall) -> None:
    if not call.meta:
        await call.start(HEAD)
        for _ in range(CHUNKS):
            await call.send(CHUNK)
            await trio.lowlevel.checkpoint()
        await call.finish(END)
    else:
        await call.answer(HEAD, ANSWER, END)


def _node(port: int, core: int) -> None:
    os.sched_setaffinity(0, {core})
    trio.run(
        partial(
            run_tunnel,
            f"ws://127.0.0.1:{port}",
            key=NODE,
            domain=DOMAIN,
            hub_address=HUB.address,
            on_call=_answer,
            on_control=drop_control,
        )
    )


class Load:
    """Keeps so many calls in flight, in one of the two ways, and counts answers or chunks."""

    def __init__(self, peer: TunnelPeer, streamed: bool) -> None:
        self._peer = peer
        self._meta = b"" if streamed else META
        self._streamed = streamed
        self.done = 0.0

    async def coroutine(self) -> None:
        with suppress(RecoverableError):  # the end of the measurement
            while True:
                async with self._peer.call(self._meta, BODY) as call:
                    async for piece in call:
                        self.done += len(piece) / len(CHUNK) if self._streamed else 0
                    self.done += not self._streamed

    async def callback(self) -> None:
        with suppress(RecoverableError):
            self._submit()

    def _submit(self) -> None:
        on_data = self._take if self._streamed else None
        self._peer.submit(self._meta, BODY, self._end, max_bytes=4096, on_data=on_data)

    def _take(self, call: HubCall) -> None:
        self.done += len(self._peer.take(call)) / len(CHUNK)

    def _end(self, call: HubCall) -> None:
        if call.error is not None:
            return
        if self._streamed:
            self._take(call)
        else:
            self.done += len(call.body()) == len(ANSWER)
        self._submit()


async def _measure_one(
    way: str, streamed: bool, in_flight: int, seconds: float, other: int
) -> dict[str, float]:
    peers: list[TunnelPeer] = []
    joined = trio.Event()

    async def on_peer(peer: TunnelPeer) -> None:
        peers.append(peer)
        joined.set()
        await trio.sleep_forever()

    async def admit(address: Address, role: ParticipantRole) -> bool:
        return True

    serve = partial(
        serve_tunnels, host="127.0.0.1", port=0, key=HUB, domain=DOMAIN, on_peer=on_peer, authorize=admit
    )
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve)
        node = multiprocessing.get_context("spawn").Process(target=_node, args=(port, other), daemon=True)
        node.start()
        await joined.wait()
        load = Load(peers[0], streamed)
        for _ in range(in_flight):
            nursery.start_soon(getattr(load, way))
        await trio.sleep(WARM_S)
        done, cpu, wall = load.done, time.process_time(), time.monotonic()
        await trio.sleep(seconds)
        done, cpu, wall = load.done - done, time.process_time() - cpu, time.monotonic() - wall
        nursery.cancel_scope.cancel()
    node.terminate()
    node.join()
    return {"per_s": round(done / wall), "per_cpu_s": round(done / cpu), "cpu_us": round(cpu / done * 1e6, 1)}


def measure(seconds: float) -> dict[str, dict[str, float]]:
    """Calls at 1, 32 and 256 in flight and chunks of 100 streams, both ways."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    results = {}
    for way in ("coroutine", "callback"):
        for in_flight in (1, 32, 256):
            run = partial(_measure_one, way, False, in_flight, seconds, max(cores))
            results[f"{way}, {in_flight} in flight"] = trio.run(run)
        run = partial(_measure_one, way, True, 100, seconds, max(cores))
        results[f"{way}, chunks of 100 streams"] = trio.run(run)
    os.sched_setaffinity(0, cores)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args.seconds)
    if args.json:
        print(json.dumps(results))
        return
    for name, row in results.items():
        print(f"{name:34} {row['per_s']:>8}/s {row['per_cpu_s']:>8}/CPU-s {row['cpu_us']:>8} us")


if __name__ == "__main__":
    main()
