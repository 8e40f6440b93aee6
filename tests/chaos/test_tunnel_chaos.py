"""Tunnels over a network that breaks all the time, with ends that are killed, and peers that flood."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from websockets.frames import Frame, Opcode
from websockets.trio.client import connect

from emcd.clock import SystemClock
from emcd.errors import RecoverableError
from emcd.net.tunnel import HubCall, IncomingCall, TunnelLimits
from emcd.proto.tunnel import FrameType, encode_frame
from emcd.proto.tunnel_auth import NodeHandshake
from emcd.proto.tunnel_resume import HEADER
from emcd.types import ParticipantRole
from tests.support.tunnel_proxy import TO_HUB, TO_NODE, TunnelProxy, tunnel_proxy
from tests.support.tunnel_world import DOMAIN, HUB, NODE, OTHER, HubWorld, hub_world, node_world, tunnel_world

pytestmark = pytest.mark.chaos
LIMITS = TunnelLimits(resume_s=20, give_up_s=20, ping_interval_s=0.3, ping_timeout_s=0.3)


async def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.01)


async def answer(call: IncomingCall) -> None:
    """Stream, or answer at once, what the call's meta says: its body's bytes, so many times."""
    way, _, times = call.meta.decode().partition(" ")
    if way == "whole":
        await call.answer(b"head", call.body * int(times), b"end " + call.meta)
        return
    await call.start(b"head")
    for _ in range(int(times)):
        await call.send(call.body)
        await trio.lowlevel.checkpoint()
    await call.finish(b"end " + call.meta)


async def break_things(proxy: TunnelProxy, draw: random.Random) -> None:
    """Cut, half-cut, silence and let messages be cut in their middle, for ever."""
    while True:
        await trio.sleep(draw.uniform(0.05, 0.25))
        kind = draw.randrange(4)
        if kind == 0:
            proxy.cut()
        elif kind == 1:
            proxy.cut(half=True)
        elif kind == 2:
            proxy.budget[draw.choice((TO_HUB, TO_NODE))] = draw.randrange(1, 100_000)
        else:
            proxy.silence()
            await trio.sleep(0.2)
            proxy.resume()


@pytest.mark.parametrize(
    ("seed", "connections"), [(1, 10), (2, 10), pytest.param(3, 300, marks=pytest.mark.deep)]
)
async def test_tunnel_that_breaks_all_the_time_loses_and_doubles_nothing(seed: int, connections: int) -> None:
    draw = random.Random(seed)
    served: dict[bytes, int] = {}
    done: list[int] = []

    async def on_call(call: IncomingCall) -> None:
        served[call.body[:16]] = served.get(call.body[:16], 0) + 1
        await answer(call)

    async with (
        hub_world(LIMITS) as hub,
        tunnel_proxy(hub.port) as proxy,
        node_world(hub, on_call, url=proxy.url) as node,
        trio.open_nursery() as nursery,
    ):
        peer = await hub.peer()
        nursery.start_soon(break_things, proxy, draw)

        async def one(number: int) -> None:
            body = secrets.token_bytes(draw.choice((16, 500, 70_000, 300_000)))
            times = draw.choice((1, 1, 3, 20)) if len(body) > 1000 else draw.choice((1, 50, 2000))
            meta = b"%s %d" % (draw.choice((b"whole", b"stream")), times)
            while True:
                try:
                    async with peer.call(meta, body) as call:
                        call.patient = True
                        if number % 5 == 0:
                            await trio.sleep(0.3)  # a slow reader
                        assert await call.whole(1 << 26) == (b"head", body * times, b"end " + meta)
                    break
                except RecoverableError as exc:
                    assert exc.code == "EMC-1413"  # not opened at all: there was no connection
                    await trio.sleep(0.02)
            assert served[body[:16]] == 1
            done.append(number)

        async def some(first: int) -> None:
            number = first
            while proxy.accepted < connections:
                await one(number)
                number += 1

        with trio.fail_after(60 + connections * 2):
            async with trio.open_nursery() as callers:
                for worker in range(8):
                    callers.start_soon(some, worker)
        nursery.cancel_scope.cancel()
    assert len(done) > 8
    assert hub.history[:2] in (["joined"], ["joined", "left"])
    assert hub.errors == node.errors == []


@asynccontextmanager
async def child(kind: str, port: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A hub or node as a process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.tunnel_child", kind, str(port)], stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        await trio.to_thread.run_sync(process.wait)
        assert process.stdout is not None
        process.stdout.close()


async def read_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    with trio.fail_after(30):
        return (
            (await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)).decode().strip()
        )


async def test_hub_killed_and_restarted_has_a_fresh_session() -> None:
    async with child("hub", 0) as first:
        port = int((await read_line(first)).split()[1])
        async with child("node", port):
            assert await read_line(first) == "answered 6 100000 end"
            first.send_signal(signal.SIGKILL)
            await trio.to_thread.run_sync(first.wait)
            async with child("hub", port) as second:
                await read_line(second)
                assert await read_line(second) == "answered 6 100000 end"


async def test_node_killed_is_lost_at_once_given_up_soon_and_replaced_by_its_next_life() -> None:
    ended: list[HubCall] = []
    async with hub_world(TunnelLimits(give_up_s=0.2)) as hub:
        async with child("node", hub.port) as node:
            with trio.fail_after(30):
                peer = await hub.peer()
            node.send_signal(signal.SIGSTOP)
            peer.submit(b"m", b"x", ended.append, max_bytes=100)
            node.send_signal(signal.SIGKILL)
            await until(lambda: not peer.live)
            await until(lambda: ended)
            assert ended[0].error is not None
            assert ended[0].error.code == "EMC-1413"
            assert not peer.closed.is_set()
        async with child("node", hub.port):
            await until(lambda: hub.history == ["joined", "left", "joined"], 30)
            async with (await hub.peer()).call(b"m", b"x") as call:
                assert (await call.whole(10))[1] == b"x"


async def stopped(hub: HubWorld, flood: Callable[[Any], Awaitable[None]]) -> int | None:
    """A node of the key OTHER that does what it should not. Returns: how the hub closed."""
    hub.authorized.add(OTHER.address)
    role = ParticipantRole.COMPUTE
    handshake = NodeHandshake(OTHER, DOMAIN, secrets.token_bytes(32), role, HUB.address)
    async with connect(f"ws://127.0.0.1:{hub.port}", compression=None, proxy=None) as websocket:
        hello = await websocket.recv()
        assert isinstance(hello, bytes)
        await websocket.send(handshake.prove(hello, SystemClock().now_ms()))
        await websocket.recv()
        with trio.move_on_after(20):
            try:
                await flood(websocket)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            await websocket.wait_closed()
    return websocket.close_code


async def flood_controls(websocket: Any) -> None:
    message = HEADER.pack(0) + encode_frame(FrameType.CONTROL, 0, b"x") * 20_000
    while websocket.protocol.state.name == "OPEN":
        await websocket.stream.send_all(Frame(Opcode.BINARY, message).serialize(mask=True))
        await trio.sleep(0)


async def flood_fragments(websocket: Any) -> None:
    part = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 1000
    await websocket.stream.send_all(Frame(Opcode.BINARY, b"", fin=False).serialize(mask=True) + part)


async def lie_about_what_came(websocket: Any) -> None:
    await websocket.send(HEADER.pack(10**9))


@pytest.mark.parametrize(
    ("flood", "code"), [(flood_controls, 4423), (flood_fragments, 1009), (lie_about_what_came, 4421)]
)
async def test_node_that_floods_is_cut_and_the_others_are_served(
    flood: Callable[[Any], Awaitable[None]], code: int
) -> None:
    async def on_peer(peer: Any) -> None:
        if peer.address == NODE.address:
            await hub.on_peer(peer)
        await trio.sleep_forever()  # reads none of the flood

    async with hub_world(on_peer=lambda peer: on_peer(peer)) as hub, node_world(hub):
        peer = await hub.peer()
        closed: list[int | None] = []
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                closed.append(await stopped(hub, flood))

            nursery.start_soon(run)
            while not closed:
                with trio.fail_after(5):
                    async with peer.call(b"", b"x") as call:
                        assert (await call.whole(10))[1] == b"x"
                await trio.sleep(0.01)
        assert closed == [code]


async def test_node_that_pings_without_reading_fills_no_memory() -> None:
    async def flood(websocket: Any) -> None:
        pings = Frame(Opcode.PING, b"p" * 100).serialize(mask=True) * 2000
        websocket.recv_flow_control = trio.Event()  # the node reads no more
        for _ in range(200):
            await websocket.stream.send_all(pings)

    limits = TunnelLimits(write_stall_s=0.5, ping_interval_s=0.2, ping_timeout_s=0.3, resume_s=0)
    async with hub_world(limits) as hub:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stopped, hub, flood)
            await until(lambda: "left" in hub.history)
            nursery.cancel_scope.cancel()


async def test_slow_readers_hold_up_nobody_and_get_everything() -> None:
    """Half of the calls are read slowly or not at all; the others go on at full speed."""

    async def on_call(call: IncomingCall) -> None:
        await call.start(b"")
        for _ in range(100):
            await call.send(call.body)
        await call.finish(b"")

    async with tunnel_world(on_call) as (_, _, peer):
        async with trio.open_nursery() as nursery:

            async def never_read(task_status: trio.TaskStatus[None]) -> None:
                async with peer.call(b"", b"n" * 10_000) as call:
                    await call.head()
                    task_status.started()
                    await trio.sleep_forever()

            async def slow() -> None:
                got = 0
                async with peer.call(b"", b"s" * 10_000) as call:
                    async for chunk in call:
                        got += len(chunk)
                        await trio.sleep(0.02)
                assert got == 1_000_000

            for _ in range(50):
                await nursery.start(never_read)
            async with trio.open_nursery() as readers:
                for _ in range(10):
                    readers.start_soon(slow)
                with trio.fail_after(20):
                    for _ in range(50):
                        async with peer.call(b"", b"q" * 100) as call:
                            assert len((await call.whole(1 << 20))[1]) == 10_000
            nursery.cancel_scope.cancel()
