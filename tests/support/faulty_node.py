"""A node that misbehaves: an HTTP proxy before a good one, which stalls, cuts, garbles or lies."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import trio

from emcd.net.http_client import request

FAULTS = ("stall", "cut", "half", "reset", "garbage", "status", "other_id", "empty", "lost", "slow")
NEVER_S = 1e6
"""Tests that move the clock must not time the proxy itself out."""
Rewrite = Callable[[list[Any], Any], Any]


class FaultyNode:
    """`choose(method)` names the fault of each request, or "" to behave; `rewrites` lie by method.

    A rewrite takes parameters and true result, and returns what is told instead.
    """

    def __init__(self, upstream: str, choose: Callable[[str], str]) -> None:
        self.upstream = upstream
        self.choose = choose
        self.url = ""
        self.faults: list[str] = []
        self.rewrites: dict[str, Rewrite] = {}
        self.asked: list[str] = []

    async def handle(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                body = await _read_request(stream)
                await self._answer(stream, body)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ValueError):
            pass

    async def _answer(self, stream: trio.SocketStream, body: bytes) -> None:
        asked = msgspec.json.decode(body)
        self.asked.append(asked["method"])
        fault = self.choose(asked["method"])
        if fault:
            self.faults.append(fault)
        if fault == "stall":
            await trio.sleep(30)
        if fault in ("reset", "stall"):
            return
        if fault == "lost":  # acted on, and the answer never arrives
            await self._ask(body)
            return
        if fault == "slow":
            await trio.sleep(0.3)
        if fault == "other_id":
            body = msgspec.json.encode(asked | {"id": asked["id"] + 1})
        answer = await self._ask(body)
        if asked["method"] in self.rewrites:
            answer = self._rewrite(asked, answer)
        answer = {"garbage": b"<html>busy</html>", "empty": b"{}"}.get(fault, answer)
        status = "503 Busy" if fault == "status" else "200 OK"
        sent = b"busy" if fault == "status" else answer
        length = len(sent) + (50 if fault == "cut" else 0)
        whole = f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode() + sent
        if fault == "half":
            await stream.send_all(whole[: len(whole) - len(sent) // 2])
            await trio.sleep(30)
            return
        await stream.send_all(whole)

    async def _ask(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json"}
        answer = await request("POST", self.upstream, body=body, headers=headers, timeout_s=NEVER_S)
        return answer.body

    def _rewrite(self, asked: dict[str, Any], answer: bytes) -> bytes:
        told = msgspec.json.decode(answer)
        if "result" in told:
            told["result"] = self.rewrites[asked["method"]](asked["params"], told["result"])
        return msgspec.json.encode(told)


@asynccontextmanager
async def faulty_node(
    upstream: str, choose: Callable[[str], str] = lambda method: ""
) -> AsyncIterator[FaultyNode]:
    node = FaultyNode(upstream, choose)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, node.handle, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        node.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield node
        nursery.cancel_scope.cancel()


def at_random(seed: int, share: float) -> Callable[[str], str]:
    """A fault in about `share` of the requests, the same for the same seed."""
    dice = random.Random(seed)
    return lambda method: dice.choice(FAULTS) if dice.random() < share else ""


async def _read_request(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await _more(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length"))
    while len(body) < length:
        body += await _more(stream)
    return body


async def _more(stream: trio.SocketStream) -> bytes:
    chunk = await stream.receive_some(65536)
    if not chunk:
        raise ValueError("closed")
    return bytes(chunk)
