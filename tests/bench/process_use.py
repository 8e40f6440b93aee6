"""What processes use, from /proc, and which core they run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Cores(NamedTuple):
    """Where the gateway runs, and where all else does; the same where there is but one."""

    gateway: int
    rest: int


def choose_cores() -> Cores:
    cores = os.sched_getaffinity(0)
    return Cores(min(cores), max(cores))


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This process, and what it starts meanwhile, run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """A process and its descendants that live."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text("ascii").split())
    return found


def cpu_s(pid: int | None) -> float:
    """CPU seconds of a process with all its threads and the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS


def family_cpu_s(pid: int) -> float:
    """CPU seconds of a process and its descendants, the ended ones too."""
    total = 0.0
    for member in family(pid):
        with suppress(OSError):
            total += cpu_s(member)
    return total


def family_held_up_s(pid: int) -> float:
    """Seconds that its threads were ready to run while something else had the core."""
    total = 0
    for member in family(pid):
        with suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                total += int((task / "schedstat").read_text("ascii").split()[1])
    return total / 1e9


def family_rss_mb(pid: int) -> float:
    """Resident memory of a process and its descendants."""
    pages = 0
    for member in family(pid):
        with suppress(OSError):
            pages += int(Path(f"/proc/{member}/statm").read_text("ascii").split()[1])
    return pages * _PAGE / 1e6


def find_cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"
