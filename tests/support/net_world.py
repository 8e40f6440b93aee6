"""Servers and raw sockets for the tests of `emcd.net`: every wait has a deadline, and what a test
raises inside comes out as it is, not in a group."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h11
import trio
import trustme

from emcd.net.http_limit import Limits
from emcd.net.http_server import serve_http

WAIT_S = 10.0


@dataclass
class Server:
    """A running `serve_http`. `errors` holds what its application let out."""

    port: int = 0
    drain: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def http_server(
    app: Any, limits: Limits | None = None, ssl_context: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[Server]:
    """A server on a free port, or as the options of `serve_http` say."""
    server = Server()
    place: dict[str, Any] = {} if "unix" in options else {"host": "127.0.0.1"}

    async def run(task_status: trio.TaskStatus[int]) -> None:
        try:
            await serve_http(
                app,
                ssl_context=ssl_context,
                limits=limits,
                drain=server.drain,
                on_error=server.errors.append,
                task_status=task_status,
                **place,
                **options,
            )
        finally:
            server.ended.set()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        server.port = await nursery.start(run)
        try:
            yield server
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def tcp_server(handle: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A server that a test scripts byte by byte; yields its port."""

    async def run(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await handle(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, run, 0, host="127.0.0.1"))
        try:
            yield listeners[0].socket.getsockname()[1]
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def dial(port: int, receive_buffer: int = 0) -> AsyncIterator[trio.SocketStream]:
    """A raw connection; a small receive buffer makes the server's sends stall soon."""
    sock = trio.socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    with sock:
        await sock.connect(("127.0.0.1", port))
        yield trio.SocketStream(sock)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything until the server closes (a reset counts as closed)."""
    data = bytearray()
    with trio.fail_after(WAIT_S):
        try:
            while piece := await stream.receive_some():
                data += piece
        except trio.BrokenResourceError:
            pass
    return bytes(data)


async def read_until(stream: trio.SocketStream, end: bytes) -> bytes:
    data = bytearray()
    with trio.fail_after(WAIT_S):
        while not data.endswith(end):
            piece = await stream.receive_some()
            if not piece:
                raise AssertionError(f"closed after {bytes(data)!r}")
            data += piece
    return bytes(data)


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes, return all that comes until the server closes."""
    async with dial(port) as stream:
        await stream.send_all(data)
        return await read_all(stream)


@dataclass
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


def parse_answers(data: bytes, methods: list[str]) -> list[Answer]:
    """Read the answers to requests of these methods, by h11; what is cut raises."""
    answers = []
    for method in methods:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        client.send(h11.EndOfMessage())
        client.receive_data(data)
        client.receive_data(b"")
        head = client.next_event()
        while isinstance(head, h11.InformationalResponse):
            head = client.next_event()
        assert isinstance(head, h11.Response), head
        body = b""
        while isinstance(event := client.next_event(), h11.Data):
            body += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage)
        answers.append(Answer(head.status_code, dict(head.headers), body))
        data = client.trailing_data[0]
    assert not data, data
    return answers


def request_bytes(path: str = "/", body: bytes = b"", method: str = "POST", close: bool = False) -> bytes:
    tail = b"Connection: close\r\n" if close else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n".encode()
    return head + tail + b"\r\n" + body


@dataclass(frozen=True)
class Tls:
    """A CA of the test's own, the files of a server on localhost, and who trusts it."""

    cert_file: Path
    key_file: Path
    ca_file: Path

    @staticmethod
    def make(folder: Path, name: str = "localhost") -> Tls:
        authority = trustme.CA()
        issued = authority.issue_cert(name)
        tls = Tls(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
        authority.cert_pem.write_to_path(str(tls.ca_file))
        issued.private_key_pem.write_to_path(str(tls.key_file))
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(str(tls.cert_file), append=number > 0)
        return tls
