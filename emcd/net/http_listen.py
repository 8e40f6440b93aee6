"""Listening sockets of the HTTP server: TCP, or a unix socket in a folder of this machine.

A unix socket's file outlives a killed process, and a second process could silently take its place.
So a lock file beside it (PATH.lock) tells who owns the path: whoever holds the lock may remove a
socket that nobody answers on, and removes its own when it ends. Invariants: nothing but a socket is
ever removed; nobody can connect before the file has its mode.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

import trio

_BACKLOG = 1024


class HttpListener:
    """A listening socket; closing it is for good, and may be done twice."""

    def __init__(self, listener: trio.SocketListener, path: Path | None = None, lock: int = -1) -> None:
        self._listener = listener
        self._path = path
        self._lock = lock

    @property
    def port(self) -> int:
        """0 for a unix socket."""
        return 0 if self._path is not None else int(self._listener.socket.getsockname()[1])

    async def accept(self) -> trio.socket.SocketType:
        """Raises: OSError."""
        return (await self._listener.accept()).socket

    def close(self) -> None:
        self._listener.socket.close()
        if self._path is not None and self._lock >= 0:
            self._path.unlink(missing_ok=True)
            _unlock(self._path, self._lock)
            self._lock = -1


async def listen_tcp(host: str, port: int) -> HttpListener:
    """Listen on the first address of a host. Raises: OSError."""
    listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
    for extra in listeners[1:]:
        extra.socket.close()
    return HttpListener(listeners[0])


def listen_unix(path: Path, mode: int) -> HttpListener:
    """Listen on a unix socket; closing the listener removes its file.

    Args:
        mode: of the file: who may connect.

    Raises: OSError, with EADDRINUSE where another process listens there or something else than a
        socket has the name.
    """
    lock = _lock(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(os.fspath(path))
        try:
            path.chmod(mode)  # nobody gets in before listen()
            sock.listen(_BACKLOG)
        except OSError:
            path.unlink()
            raise
    except BaseException:
        sock.close()
        _unlock(path, lock)
        raise
    return HttpListener(trio.SocketListener(trio.socket.from_stdlib_socket(sock)), path, lock)


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _lock(path: Path) -> int:
    """Take the path's lock. Returns: the descriptor that holds it. Raises: OSError."""
    file = _lock_file(path)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(descriptor, file):  # else its last owner removed it just now
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise OSError(errno.EADDRINUSE, "another process listens there") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _unlock(path: Path, descriptor: int) -> None:
    _lock_file(path).unlink(missing_ok=True)
    os.close(descriptor)


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        named = file.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed process left. Raises: OSError EADDRINUSE for anything else."""
    try:
        if not stat.S_ISSOCK(path.stat(follow_symlinks=False).st_mode):
            raise OSError(errno.EADDRINUSE, "there is a file of this name that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
    raise OSError(errno.EADDRINUSE, "another program listens there")
