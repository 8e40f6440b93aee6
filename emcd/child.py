"""Heavy work in a process of its own, so that the loop keeps its interpreter and its memory.

Owns the child's life: started, fed, heard, and gone when the call returns. Both ends are this
program, so what passes between them is pickled. Invariants: a deadline on all of it; the child is
killed on cancellation and ends by itself when this process dies; what it says is bounded.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import trio

from emcd.child_main import FAULT, HEAD_BYTES, KNOWN_ERROR, PROGRESS, RESULT, pack_frame, resolve
from emcd.errors import EmcdError, FatalError, RecoverableError

T = TypeVar("T")

NICENESS = 10
MAX_FRAME_BYTES = 1 << 28
_KEPT_STDERR_BYTES = 4_096
_REAP_S = 10.0


async def run_in_child(
    fn: Callable[..., T],
    *args: Any,
    timeout_s: float,
    on_progress: Callable[..., None] | None = None,
    niceness: int = NICENESS,
    environment: Mapping[str, str] | None = None,
) -> T:
    """Run a module-level function in a child of lower priority and return what it returns.

    Args:
        fn: called as `fn(*args)`, or `fn(*args, progress=report)` where `on_progress` is given; what
            is reported arrives there, in the loop, twice a second at most.
        environment: variables that the child has besides this process's own.

    Raises: EmcdError as the function raised it; RecoverableError EMC-1034 when the child missed its
        deadline or was killed; FatalError EMC-1035 when the function failed otherwise.
    Cancellation: the child is killed.
    """
    request = (fn.__module__, fn.__qualname__, args, on_progress is not None, niceness)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "emcd.child_main"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    child = _Child(process, fn.__qualname__, on_progress)
    try:
        with trio.move_on_after(timeout_s):
            return await child.ask(pack_frame(b"Q", request))  # type: ignore[no-any-return]
        raise RecoverableError("EMC-1034", f"{fn.__qualname__} took more than {timeout_s:.0f} s")
    finally:
        await child.end()


class _Child:
    """One process and the ends of its pipes."""

    def __init__(self, process: trio.Process, name: str, on_progress: Callable[..., None] | None) -> None:
        self._process = process
        self._name = name
        self._on_progress = on_progress
        self._stderr = bytearray()
        self._answer: tuple[bytes, Any] | None = None

    async def ask(self, request: bytes) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed, request)
            nursery.start_soon(self._hear_errors)
            await self._hear()
            nursery.cancel_scope.cancel()
        if self._answer is None:
            code = await self._process.wait()
            said = bytes(self._stderr).decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise RecoverableError("EMC-1034", f"{self._name} ended with {code}: {said[:300]}")
        kind, value = self._answer
        return value if kind == RESULT else _raise(self._name, kind, value)

    async def end(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _REAP_S):
            self._process.kill()
            await self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                await trio.aclose_forcefully(stream)

    async def _feed(self, request: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(trio.BrokenResourceError):  # it ended early: its answer or its end says why
            await self._process.stdin.send_all(request)

    async def _hear_errors(self) -> None:
        assert self._process.stderr is not None
        async for piece in self._process.stderr:
            self._stderr = (self._stderr + piece)[-_KEPT_STDERR_BYTES:]

    async def _hear(self) -> None:
        """Read frames until the answer, or the end."""
        assert self._process.stdout is not None
        waiting = bytearray()
        async for piece in self._process.stdout:
            waiting += piece
            while len(waiting) >= HEAD_BYTES:
                size = int.from_bytes(waiting[1:HEAD_BYTES], "big")
                if size > MAX_FRAME_BYTES:
                    self._answer = FAULT, f"it answers {size} bytes"
                    return
                if len(waiting) < HEAD_BYTES + size:
                    break
                kind = bytes(waiting[:1])
                value = pickle.loads(waiting[HEAD_BYTES : HEAD_BYTES + size])  # noqa: S301 - our own child
                del waiting[: HEAD_BYTES + size]
                if kind != PROGRESS:
                    self._answer = kind, value
                    return
                if self._on_progress is not None:
                    self._on_progress(*value)


def _raise(name: str, kind: bytes, value: Any) -> NoReturn:
    if kind == KNOWN_ERROR:
        module, error, code, detail = value
        known = resolve(module, error)
        if isinstance(known, type) and issubclass(known, EmcdError):
            raise known(code, detail)
    raise FatalError("EMC-1035", f"{name}: {value}" if kind == FAULT else f"{name} answers {kind!r}")
