"""An engine that speaks OpenAI's API and computes nothing: what every gateway is measured in front of.

One thread, epoll and prepared bytes, so that it is not the bottleneck. A request says how it wants to
be answered by what any gateway passes on untouched: `stream`, `max_tokens` (the chunks of a stream)
and, anywhere in its text, `pace=N`: microseconds between two chunks of a stream, 0 for as fast as the
connection takes them. Every chunk carries the time it was sent at, by the clock that all processes of
one machine share.
"""

from __future__ import annotations

import heapq
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator

from tests.bench.openai_wire import (
    DONE,
    EMBEDDINGS,
    FINISH,
    MODELS,
    WHOLE,
    Wish,
    make_chunk,
    read_wish,
    usage_event,
)

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


def whole_answer(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def frame(event: bytes) -> bytes:
    """One chunk of HTTP's chunked coding."""
    return b"%x\r\n%s\r\n" % (len(event), event)


_ANSWERS = {
    b"/v1/chat/completions": whole_answer(WHOLE),
    b"/v1/embeddings": whole_answer(EMBEDDINGS),
    b"/v1/models": whole_answer(MODELS),
}
_CHAT = b"POST /v1/chat/completions "


class Client:
    """One connection: what was read of a request, and what waits to be written."""

    __slots__ = ("buffer", "left", "parts", "sock", "wish", "writable")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.parts: deque[bytes] = deque()
        """What the socket did not take yet."""
        self.writable = True
        self.left = 0
        """Chunks of the stream under way that are not sent yet."""
        self.wish = Wish(0, 0, wants_usage=False)

    def requests(self, data: bytes) -> Iterator[bytes]:
        """Every whole request, given what was just read."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self.buffer, 0, end)
            size = end + 4 + (int(found[1]) if found else 0)
            if len(self.buffer) < size:
                return
            request, self.buffer = self.buffer[:size], self.buffer[size:]
            yield request

    def send(self, data: bytes) -> None:
        """Write, or keep what the socket does not take."""
        if self.parts:
            self.parts.append(data)
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.parts.append(data[sent:])
            self.writable = False

    def flush(self) -> bool:
        """Write what waits; whether all of it went out."""
        while self.parts:
            part = self.parts[0]
            sent = self.sock.send(part)
            if sent < len(part):
                self.parts[0] = part[sent:]
                return False
            self.parts.popleft()
        self.writable = True
        return True


class MockEngine:
    """Serves until the process ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        listener.setblocking(False)
        self._poll = select.epoll()
        self._poll.register(listener.fileno(), select.EPOLLIN)
        self._clients: dict[int, Client] = {}
        self._paced: list[tuple[int, int]] = []
        """(when its next chunk is due, the connection), a heap."""
        self._eager: set[int] = set()
        """Connections whose stream takes chunks as fast as they go."""

    def run(self, keep_on: Callable[[], bool] = lambda: True) -> None:
        while keep_on():
            for number, event in self._poll.poll(self._timeout_s()):
                if number == self._listener.fileno():
                    self._accept()
                elif event & select.EPOLLOUT:
                    self._attempt(number, self._drain)
                else:
                    self._attempt(number, self._read)
            for number in list(self._eager):
                self._attempt(number, self._send_chunk)
            self._send_due()

    def _timeout_s(self) -> float:
        if self._eager:
            return 0
        if not self._paced:
            return 0.5
        return min(0.5, max(0, self._paced[0][0] - time.monotonic_ns()) / 1e9)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients[sock.fileno()] = Client(sock)
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def _attempt(self, number: int, action: Callable[[int, Client], None]) -> None:
        client = self._clients.get(number)
        if client is None:
            return
        try:
            action(number, client)
        except BlockingIOError:
            pass
        except OSError:
            self._forget(number, client)

    def _forget(self, number: int, client: Client) -> None:
        self._eager.discard(number)
        del self._clients[number]
        self._poll.unregister(number)
        client.sock.close()

    def _read(self, number: int, client: Client) -> None:
        data = client.sock.recv(1 << 19)
        if not data:
            self._forget(number, client)
            return
        for request in client.requests(data):
            self._answer(number, client, request)

    def _answer(self, number: int, client: Client, request: bytes) -> None:
        if request.startswith(_CHAT):
            wish = read_wish(request)
            if wish is not None:
                client.left, client.wish = wish.chunks, wish
                client.send(_STREAM_HEAD)
                if wish.pace_ns:
                    # Streams that begin together do not send together.
                    first = time.monotonic_ns() + number * 7919 % 97 * wish.pace_ns // 97
                    heapq.heappush(self._paced, (first, number))
                else:
                    self._eager.add(number)
                return
        client.send(_ANSWERS.get(request.split(b" ", 2)[1], _NOT_FOUND))
        self._watch(number, client)

    def _send_due(self) -> None:
        now = time.monotonic_ns()
        while self._paced and self._paced[0][0] <= now:
            due, number = heapq.heappop(self._paced)
            client = self._clients.get(number)
            self._attempt(number, self._send_chunk)
            if client is not None and client.left and self._clients.get(number) is client:
                heapq.heappush(self._paced, (due + client.wish.pace_ns, number))

    def _send_chunk(self, number: int, client: Client) -> None:
        if not client.writable or not client.left:
            self._eager.discard(number)
            return
        client.left -= 1
        part = frame(make_chunk(time.monotonic_ns()))
        if not client.left:
            self._eager.discard(number)
            usage = frame(usage_event(client.wish.chunks)) if client.wish.wants_usage else b""
            part += frame(FINISH) + usage + frame(DONE) + b"0\r\n\r\n"
        client.send(part)
        self._watch(number, client)

    def _watch(self, number: int, client: Client) -> None:
        if not client.writable:
            self._poll.modify(number, select.EPOLLIN | select.EPOLLOUT)

    def _drain(self, number: int, client: Client) -> None:
        if client.flush():
            self._poll.modify(number, select.EPOLLIN)
            if client.left and not client.wish.pace_ns:
                self._eager.add(number)


def listen() -> socket.socket:
    """A listening socket on a free port of loopback."""
    return socket.create_server(("127.0.0.1", 0), backlog=4096)
