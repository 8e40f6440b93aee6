"""Functions for a child process: they must be importable by name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from emcd.errors import RemoteProtocolError


def add(left: int, right: int) -> int:
    print("what a function prints is no answer")
    return left + right


def describe() -> tuple[int, int]:
    return os.getpid(), os.getpriority(os.PRIO_PROCESS, 0)


def count(steps: int, progress: Callable[[int, int], None] | None = None) -> bytes:
    for number in range(steps):
        time.sleep(0.05)
        if progress is not None:
            progress(number + 1, steps)
    return bytes(300_000)


def refuse() -> None:
    raise RemoteProtocolError("EMC-1901", "it is damaged")


def stumble() -> None:
    raise ValueError("a bug")


def die() -> None:
    os._exit(9)


def sleep_and_write(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(60)


def answer_hugely(size: int) -> bytes:
    return bytes(size)
