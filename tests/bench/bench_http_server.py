"""Requests per second of `emcd.net.http_server`, next to a bare httptools echo on the same machine.

Server and load generator are two processes. The figure that travels between machines is the
ratio, and requests per CPU-second of the server process.

    PYTHONPATH=. python -m tests.bench.bench_http_server [--seconds 3] [--connections 32] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httptools
import trio

from emcd.net.http_exchange import DirectApp, Exchange
from emcd.net.http_request import Request
from emcd.net.http_server import serve_http

BODY = b'{"ok":true}'
REQUEST = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1:8420\r\nAccept: */*\r\n"
    b"Authorization: Bearer emc-0123456789abcdef\r\nContent-Type: application/json\r\n"
    b"User-Agent: bench\r\nContent-Length: 11\r\n\r\n" + BODY
)
BARE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n" + BODY
START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"x-emc-call-id", b"call_0123456789abcdef")],
}


async def small_app(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, answer with a small one."""
    message = await receive()
    await send(START)
    await send({"type": "http.response.body", "body": message["body"]})


async def stream_app(scope: Any, receive: Any, send: Any) -> None:
    """Answer in ten pieces, as a stream of tokens does."""
    await receive()
    await send(START)
    for _ in range(9):
        await send({"type": "http.response.body", "body": BODY, "more_body": True})
    await send({"type": "http.response.body", "body": BODY})


class Direct(DirectApp):
    """What `small_app` does, by the direct door."""

    async def handle(self, request: Request, exchange: Exchange) -> None:
        await exchange.whole(200, START["headers"], await exchange.read_body())


class Echo:
    """The least that httptools on trio can do."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.parser = httptools.HttpRequestParser(self)
        self.done = 0

    def on_message_complete(self) -> None:
        self.done += 1

    async def run(self) -> None:
        while data := await self.stream.receive_some(65536):
            self.parser.feed_data(data)
            await self.stream.send_all(BARE * self.done)
            self.done = 0


async def _bare(port: Callable[[int], None]) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        try:
            await Echo(stream).run()
        except trio.BrokenResourceError:
            pass

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(handle, listeners)


async def _ours(app: Any, port: Callable[[int], None]) -> None:
    async with trio.open_nursery() as nursery:
        port(
            await nursery.start(
                lambda task_status: serve_http(app, host="127.0.0.1", port=0, task_status=task_status)
            )
        )


def _server(kind: str, pipe: Connection) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if kind == "bare":
        trio.run(_bare, pipe.send)
    else:
        apps = {"small": small_app, "direct": Direct(), "stream": stream_app}
        trio.run(_ours, apps[kind], pipe.send)


def _load(port: int, connections: int, seconds: float, end: bytes) -> int:
    """Keep one request in flight on every connection; count whole responses."""
    poll = select.epoll()
    socks: dict[int, socket.socket] = {}
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(sock.fileno(), select.EPOLLIN)
        socks[sock.fileno()] = sock
        sock.send(REQUEST)
    done = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for fileno, _ in poll.poll():
            sock = socks[fileno]
            data = sock.recv(65536)
            if not data:
                raise ConnectionError("the server closed")
            if data.endswith(end):
                done += 1
                sock.send(REQUEST)
    for sock in socks.values():
        sock.close()
    return done


def measure(kind: str, connections: int, seconds: float) -> dict[str, float]:
    """Run one server and load it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_server, args=(kind, theirs), daemon=True)
    cores = os.sched_getaffinity(0)
    process.start()
    os.sched_setaffinity(0, {max(cores)})
    port = ours.recv()
    end = b"\r\n0\r\n\r\n" if kind == "stream" else BODY
    _load(port, connections, 0.5, end)
    cpu = _cpu_s(process.pid)
    started = time.monotonic()
    done = _load(port, connections, seconds, end)
    wall = time.monotonic() - started
    cpu = _cpu_s(process.pid) - cpu
    process.terminate()
    process.join()
    os.sched_setaffinity(0, cores)
    return {"requests_per_s": round(done / wall), "requests_per_cpu_s": round(done / cpu)}


def _cpu_s(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = {
        kind: measure(kind, args.connections, args.seconds) for kind in ("bare", "small", "direct", "stream")
    }
    bare = results["bare"]["requests_per_cpu_s"]
    for row in results.values():
        row["ratio_to_bare"] = round(row["requests_per_cpu_s"] / bare, 3)
    if args.json:
        print(json.dumps(results))
        return
    for kind, row in results.items():
        figures = f"{row['requests_per_s']:>8.0f}/s {row['requests_per_cpu_s']:>8.0f}/CPU-s"
        print(f"{kind:8} {figures} {row['ratio_to_bare']:.2f}")


if __name__ == "__main__":
    main()
