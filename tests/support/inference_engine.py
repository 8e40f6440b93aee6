"""An engine that answers what the test wrote, byte for byte, also what no honest one would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

SILENCE = b"\0silence"
"""A piece that stands for never answering."""

MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'


@dataclass
class SeenRequest:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedEngine:
    """`answers` maps a path to the pieces that are written for it, whole head included."""

    answers: dict[str, Sequence[bytes]] = field(default_factory=dict)
    url: str = ""
    seen: list[SeenRequest] = field(default_factory=list)
    hung_up: trio.Event = field(default_factory=trio.Event)
    between: Callable[[], Awaitable[None]] | None = None

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            head, _, body = (await self._read_head(stream)).partition(b"\r\n\r\n")
            line, *fields = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (item.partition(": ") for item in fields)}
            while len(body) < int(headers.get("content-length", "0")):
                body += await stream.receive_some(65536)
            self.seen.append(SeenRequest(line, headers, body))
            try:
                for piece in self.answers.get(line.split(" ")[1], [answer(404, b"{}")]):
                    if piece == SILENCE:
                        await stream.receive_some(1)
                        self.hung_up.set()
                        return
                    await stream.send_all(piece)
                    if self.between is not None:
                        await self.between()
            except trio.BrokenResourceError:
                self.hung_up.set()

    async def _read_head(self, stream: trio.SocketStream) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(65536)
            if not more:
                return b"GET /nothing HTTP/1.1\r\n\r\n"
            data += more
        return data


def answer(
    status: int, body: bytes, content_type: str = "application/json", length: int | None = None
) -> bytes:
    """A whole answer; `length` lies about it."""
    count = len(body) if length is None else length
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {count}\r\n\r\n"
    return head.encode() + body


def sse(*chunks: object, done: bool = True, ended: bool = True) -> list[bytes]:
    """A chunked event stream, one piece a chunk; not `ended`: it is cut before its last frame."""
    lines = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    if done:
        lines.append(b"data: [DONE]\n\n")
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"]
    pieces += [b"%x\r\n%s\r\n" % (len(line), line) for line in lines]
    return [*pieces, b"0\r\n\r\n"] if ended else pieces


@asynccontextmanager
async def scripted_engine(answers: dict[str, Sequence[bytes]]) -> AsyncIterator[ScriptedEngine]:
    """A running engine on a free port of loopback; /v1/models lists "m" unless scripted."""
    engine = ScriptedEngine({"/v1/models": [answer(200, MODELS)], **answers})
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, engine.serve, 0, host="127.0.0.1"))
        engine.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"
        yield engine
        nursery.cancel_scope.cancel()
