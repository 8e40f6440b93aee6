"""Bundles as files: opened without being read, audited in a thread or in a process of its own.

A file is mapped, so that only what is looked at is in memory. Invariant: an audit of a large bundle
takes neither the loop's interpreter nor its memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from emcd.accounting.audit import AuditOutcome, audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.child import run_in_child

SMALL_BYTES = 8 << 20
"""Up to here a thread is quicker than a process, and the loop hardly feels it."""
BASE_TIMEOUT_S = 120.0
MIN_AUDIT_BYTES_S = 256 * 1024
"""The slowest audit that is waited for: a tenth of what an old core does."""

T = TypeVar("T")
Progress = Callable[[int, int], None]


def size_of(path: Path) -> int:
    """Bytes of a file. Raises: OSError."""
    return path.stat().st_size


@contextmanager
def open_bundle(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a file, mapped. Raises: OSError."""
    with path.open("rb") as file:
        if not size_of(path):  # which can't be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def audit_file(
    path: Path, expected: Expectation | None = None, progress: Progress | None = None
) -> AuditOutcome:
    """`audit_bundle` of a file. Blocking, CPU-bound. Raises: OSError."""
    with open_bundle(path) as data:
        return audit_bundle(data, expected, progress)


async def audit_somewhere(
    path: Path, expected: Expectation | None = None, *, on_progress: Progress | None = None
) -> AuditOutcome:
    """Audit a file without holding up the loop.

    Raises: OSError; RecoverableError EMC-1034 when a child ran too long or was killed.
    Cancellation: a child is killed; a thread ends by itself, its result is dropped.
    """
    return await run_somewhere(audit_file, path, expected, size_bytes=size_of(path), on_progress=on_progress)


async def run_somewhere(
    fn: Callable[..., T],
    *args: object,
    size_bytes: int,
    on_progress: Progress | None = None,
) -> T:
    """Run a module-level function over a bundle of a size: in a thread, or in a child when it is large."""
    if size_bytes < SMALL_BYTES:
        return await trio.to_thread.run_sync(partial(fn, *args), abandon_on_cancel=True)
    timeout_s = BASE_TIMEOUT_S + size_bytes / MIN_AUDIT_BYTES_S
    return await run_in_child(fn, *args, timeout_s=timeout_s, on_progress=on_progress)
