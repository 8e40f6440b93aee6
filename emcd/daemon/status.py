"""A small local socket that says how the daemon stands; `emcd status` asks it, whatever the roles.

One request a connection: the line "status" or "metrics", answered by a JSON object or Prometheus'
text, then closed. It listens on a Unix socket of mode 0600 or on loopback, and says nothing secret.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
import trio

from emcd import __version__
from emcd.clock import Clock
from emcd.errors import FatalError, RecoverableError
from emcd.metrics import render_metrics
from emcd.services import HealthBoard

UNIX = "unix:"
TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 16 * 1024 * 1024


class StatusReport:
    """What the socket answers."""

    def __init__(self, board: HealthBoard, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._started_ms = clock.now_ms()

    def answer(self, question: str) -> bytes:
        """The bytes for one request line."""
        if question == "metrics":
            return render_metrics()
        return json.dumps(self.to_json()).encode() + b"\n"

    def to_json(self) -> dict[str, Any]:
        """The daemon's state: version, pid, uptime, readiness, and each role's health."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started_at_ms": self._started_ms,
            "uptime_s": (self._clock.now_ms() - self._started_ms) // 1000,
            "ready": self._board.is_ready(),
            "roles": [
                {
                    "kind": role.kind,
                    "name": role.name,
                    "state": role.health.state.value,
                    "reason": role.health.reason,
                }
                for role in self._board.list_roles()
            ],
        }


async def serve_status(
    listen: str,
    data_dir: Path,
    report: StatusReport,
    log: structlog.stdlib.BoundLogger,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled. Raises: FatalError EMC-1019 when it can't listen."""
    if not listen:
        task_status.started()
        return
    try:
        listener = _listen(listen, data_dir)
    except OSError as exc:
        raise FatalError("EMC-1019", f"{listen}: {exc.strerror}") from exc

    async def handle(stream: trio.SocketStream) -> None:
        with trio.move_on_after(TIMEOUT_S), suppress(trio.BrokenResourceError):
            line = await stream.receive_some(64)
            await stream.send_all(report.answer(line.decode("ascii", "replace").strip()))
        await stream.aclose()

    log.debug("status socket", listen=listen)
    task_status.started()
    try:
        await trio.serve_listeners(handle, [listener])
    finally:
        if listen.startswith(UNIX):
            with suppress(OSError):
                (data_dir / listen.removeprefix(UNIX)).unlink()


async def fetch_status(listen: str, data_dir: Path, question: str = "status") -> bytes:
    """Ask a running daemon. Raises: RecoverableError EMC-1032 when none answers within 5 s."""
    try:
        with trio.fail_after(TIMEOUT_S):
            async with await _connect(listen, data_dir) as stream:
                await stream.send_all(question.encode() + b"\n")
                answer = bytearray()
                async for chunk in stream:
                    answer += chunk
                    if len(answer) > MAX_ANSWER_BYTES:
                        break
    except (OSError, trio.TooSlowError, trio.BrokenResourceError) as exc:
        raise RecoverableError("EMC-1032", f"no daemon answers at {listen} (data_dir {data_dir})") from exc
    return bytes(answer)


def _listen(listen: str, data_dir: Path) -> trio.SocketListener:
    host = "" if listen.startswith(UNIX) else _split(listen)[0]
    family = (socket.AF_INET6 if ":" in host else socket.AF_INET) if host else socket.AF_UNIX
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if host:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(_split(listen))
        else:
            _bind_private(sock, data_dir / listen.removeprefix(UNIX))
        sock.listen(16)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except OSError:
        sock.close()
        raise


def _bind_private(sock: socket.socket, path: Path) -> None:
    path.unlink(missing_ok=True)  # left by a killed daemon: the ledger's lock says we are alone
    mask = os.umask(0o177)
    try:
        with _short(path) as short:
            sock.bind(short)
    finally:
        os.umask(mask)


async def _connect(listen: str, data_dir: Path) -> trio.SocketStream:
    if listen.startswith(UNIX):
        with _short(data_dir / listen.removeprefix(UNIX)) as short:
            return await trio.open_unix_socket(short)
    return await trio.open_tcp_stream(*_split(listen))


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the socket that fits the kernel's 107 bytes, however deep its folder lies."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _split(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)
