"""The load generator: plain sockets and epoll in one thread, so that it is cheap beside what it measures.

Every answer is read to its end by an HTTP parser and looked at: status, what it says, the number of a
stream's chunks. What is wrong is counted by its reason and is no answer.
"""

from __future__ import annotations

import select
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle

import httptools

from tests.bench.openai_wire import ANSWER, COUNT_MARK, STAMP

_SAID = ANSWER.encode()
_DONE = b"data: [DONE]"
_CALL_ID = b"x-emc-call-id: "
_READ_BYTES = 1 << 18
SILENCE_S = 30.0
"""How long a gateway may say nothing at all before the measurement is given up."""


@dataclass(frozen=True)
class Ask:
    """One request as bytes, and what a right answer has."""

    request: bytes
    chunks: int = 0
    """Of a stream; 0: a whole answer."""
    stamped: bool = False
    """Look at the time that every chunk was sent at."""


@dataclass
class Tally:
    """What came of a run."""

    calls: int = 0
    chunks: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    """Of every whole answer, from when it was due to be asked for."""
    chunk_delays_s: array[float] = field(default_factory=lambda: array("d"))
    call_ids: bytearray | None = None
    """The hub's ids of the calls that were answered rightly, 16 bytes each, if asked for."""

    def progress(self) -> tuple[int, int, int]:
        """Something that changes whenever anything comes."""
        return self.calls, self.chunks, self.errors.total()


class Line:
    """One connection and the answer it waits for."""

    __slots__ = ("_ask", "_call_id", "_parser", "_seen", "_tail", "_tally", "began_at", "idle", "sock")

    def __init__(self, port: int, ask: Ask, tally: Tally) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ask = ask
        self._tally = tally
        self._parser = httptools.HttpResponseParser(self)
        self._tail = b""
        self._seen = 0
        self._call_id = b""
        self.idle = True
        self.began_at = 0.0

    def send(self, began_at: float) -> None:
        self.began_at, self.idle = began_at, False
        self._tail, self._seen = b"", 0
        self.sock.sendall(self._ask.request)

    def read(self) -> None:
        """Take what came; `idle` tells whether the answer is complete. Raises: ConnectionError."""
        data = self.sock.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("closed by the gateway")
        if self._tally.call_ids is not None and (at := data.find(_CALL_ID)) >= 0:
            self._call_id = bytes.fromhex(data[at : data.index(b"\r", at)][-32:].decode())
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            raise ConnectionError(f"no HTTP: {exc}") from exc

    def on_body(self, data: bytes) -> None:
        if not self._ask.chunks:
            self._tail += data
            return
        data = self._tail + data
        cut = data.rfind(b"\n\n") + 2
        if cut < 2:
            self._tail = data
            return
        events, self._tail = data[:cut], data[cut:]
        if self._ask.stamped:
            now = time.monotonic_ns()
            sent = STAMP.findall(events)
            self._tally.chunk_delays_s.extend((now - int(stamp)) / 1e9 for stamp in sent)
            count = len(sent)
        else:
            count = events.count(COUNT_MARK)
        self._seen += count
        self._tally.chunks += count
        if _DONE in events:
            self._tail = _DONE

    def on_message_complete(self) -> None:
        tally = self._tally
        self.idle = True
        status = self._parser.get_status_code()
        if status != 200:
            tally.errors[f"status {status}: {self._tail[:160].decode(errors='replace')}"] += 1
        elif self._ask.chunks and (self._seen != self._ask.chunks or self._tail != _DONE):
            tally.errors[f"a stream of {self._seen} chunks instead of {self._ask.chunks}"] += 1
        elif not self._ask.chunks and _SAID not in self._tail:
            tally.errors[f"an answer of {len(self._tail)} bytes without the engine's words"] += 1
        else:
            tally.calls += 1
            tally.latencies_s.append(time.monotonic() - self.began_at)
            if tally.call_ids is not None:
                tally.call_ids += self._call_id


class Load:
    """Connections to one port; with several requests each asks another one, in turns."""

    def __init__(self, port: int, *asks: Ask, keep_ids: bool = False) -> None:
        self._port = port
        self._asks = cycle(asks)
        self.tally = Tally(call_ids=bytearray() if keep_ids else None)
        self._poll = select.epoll()
        self._lines: dict[int, Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def idle(self) -> list[Line]:
        return [line for line in self._lines.values() if line.idle]

    def connect(self) -> Line:
        line = Line(self._port, next(self._asks), self.tally)
        self._lines[line.sock.fileno()] = line
        self._poll.register(line.sock.fileno(), select.EPOLLIN)
        return line

    def close(self) -> None:
        self.disconnect()
        self._poll.close()

    def disconnect(self) -> None:
        """Close every connection; the tally stays."""
        for number, line in self._lines.items():
            self._poll.unregister(number)
            line.sock.close()
        self._lines.clear()

    def replace(self, line: Line, reason: str) -> Line:
        """A new connection instead of one that broke."""
        self.tally.errors[reason] += 1
        number = line.sock.fileno()
        self._poll.unregister(number)
        del self._lines[number]
        line.sock.close()
        return self.connect()

    def wait(self, timeout_s: float, *, exactly: bool = False) -> list[Line]:
        """Read what comes in a time; the lines that became idle. A broken one is idle, and new.

        Args:
            exactly: epoll rounds its timeout up to milliseconds, and costs less.
        """
        timeout_s = max(0, timeout_s)
        if exactly and not select.select([self._poll.fileno()], [], [], timeout_s)[0]:
            return []
        done = []
        for number, _ in self._poll.poll(timeout_s):
            line = self._lines[number]
            try:
                line.read()
            except OSError as exc:
                line = self.replace(line, str(exc))
            if line.idle:
                done.append(line)
        return done


@contextmanager
def opened(load: Load) -> Iterator[Load]:
    try:
        yield load
    finally:
        load.close()


def run_closed(load: Load, connections: int, seconds: float) -> float:
    """Keep one request in flight on every connection; the seconds it took. May be called again.

    Raises: ConnectionError when nothing comes for long.
    """
    started = time.monotonic()
    while len(load) < connections:
        load.connect()
    for line in load.idle():
        line.send(time.monotonic())
    until, heard, before = started + seconds, started, load.tally.progress()
    while (now := time.monotonic()) < until:
        for line in load.wait(min(0.1, until - now)):
            line.send(time.monotonic())
        if load.tally.progress() != before:
            heard, before = now, load.tally.progress()
        elif now - heard > SILENCE_S:
            raise ConnectionError(f"nothing came in {SILENCE_S} s")
    return time.monotonic() - started


def run_open(load: Load, draw_gap_s: Callable[[], float], seconds: float, most: int = 1024) -> float:
    """Ask when it is due, whoever has not answered yet; latency counts from when it was due.

    Args:
        draw_gap_s: seconds between two arrivals.
        most: connections; a request that finds all of them busy waits, and its waiting counts.
    """
    started = time.monotonic()
    idle = load.idle()
    late: deque[float] = deque()
    due = started + draw_gap_s()
    until = started + seconds
    while (now := time.monotonic()) < until:
        while due <= now:
            late.append(due)
            due += draw_gap_s()
        while late and (idle or len(load) < most):
            line = idle.pop() if idle else load.connect()
            line.send(late.popleft())
        idle += load.wait(min(due, until) - time.monotonic(), exactly=True)
    return time.monotonic() - started


def finish(load: Load, seconds: float) -> None:
    """Let what is in flight end, so that nothing is cut off."""
    until = time.monotonic() + seconds
    while len(load.idle()) < len(load) and (now := time.monotonic()) < until:
        load.wait(until - now)
