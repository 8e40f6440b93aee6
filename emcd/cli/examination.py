"""What `emcd doctor` looks at on any machine. Each check returns one finding and never raises."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import emcd

LOCK_FILE = Path(emcd.__file__).parent.parent / "requirements.lock"
LOCK_REMEDY = "pip install --no-deps --require-hashes -r requirements.lock"
BUILT_AT_S = 1_767_225_600
"""2026-01-01 UTC: a clock before this is wrong."""
LEAST_PYTHON = (3, 11)
LEAST_SQLITE = (3, 37, 0)
"""STRICT tables."""
GIB = 1024**3


class Verdict(Enum):
    """How a check came out."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One check's result."""

    check: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def examine_machine(data_dir: Path) -> Iterator[Callable[[], Finding]]:
    """The checks that need no configuration."""
    yield check_python
    yield check_anyio
    yield partial(check_lock, LOCK_FILE)
    yield check_sqlite
    yield check_onnxruntime
    yield partial(check_disk, data_dir)
    yield check_sync
    yield partial(check_clock, time.time())


def check_python() -> Finding:
    """Python 3.11 or newer, on Linux."""
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if tuple(sys.version_info) < LEAST_PYTHON:
        return Finding("python", Verdict.BAD, detail, "install Python 3.11 or newer")
    return Finding("python", Verdict.GOOD, detail)


def check_anyio() -> Finding:
    """anyio 4: asks pins version 3, which does not run on today's trio."""
    version = _find_version("anyio")
    if version is None or int(version.split(".")[0]) < 4:
        return Finding("anyio", Verdict.BAD, version or "not installed", LOCK_REMEDY)
    return Finding("anyio", Verdict.GOOD, version)


def check_lock(lock: Path) -> Finding:
    """Every package installed in the version that the lock names."""
    if not lock.is_file():
        return Finding("packages", Verdict.WARNING, f"no {lock.name} beside the program: not compared")
    wanted = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", lock.read_text("utf-8"), re.MULTILINE))
    for tool in ("pip", "setuptools", "wheel"):
        wanted.pop(tool, None)  # they install packages and are not used afterwards
    found = {name: _find_version(name) for name in wanted}
    other = [
        f"{name} {found[name] or 'missing'} (lock: {v})" for name, v in wanted.items() if found[name] != v
    ]
    if other:
        return Finding("packages", Verdict.BAD, ", ".join(other), LOCK_REMEDY)
    return Finding("packages", Verdict.GOOD, f"{len(wanted)} as in {lock.name}")


def check_sqlite() -> Finding:
    """SQLite with STRICT tables."""
    from emcd.ledger.connection import SQLITE_VERSION

    text = ".".join(map(str, SQLITE_VERSION))
    if SQLITE_VERSION < LEAST_SQLITE:
        return Finding("sqlite", Verdict.BAD, text, "use a Python built with SQLite 3.37 or newer")
    return Finding("sqlite", Verdict.GOOD, text)


def check_onnxruntime() -> Finding:
    """onnxruntime, which nodes and validators run models with."""
    version = _find_version("onnxruntime")
    if version is None or find_spec("onnxruntime") is None:
        return Finding("onnxruntime", Verdict.WARNING, "not installed: no embedded models", LOCK_REMEDY)
    return Finding("onnxruntime", Verdict.GOOD, version)


def check_disk(data_dir: Path) -> Finding:
    """Room and the right to write where the data directory is or will be."""
    place = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    if not os.access(place, os.W_OK):
        return Finding("disk", Verdict.BAD, f"{place} can't be written", "choose another [daemon] data_dir")
    free = shutil.disk_usage(place).free
    detail = f"{free / GIB:.1f} GiB free for {data_dir}"
    if free < GIB // 5:
        return Finding("disk", Verdict.BAD, detail, "the ledger stops the daemon on a full disk: make room")
    return Finding("disk", Verdict.GOOD if free > 2 * GIB else Verdict.WARNING, detail)


def check_sync() -> Finding:
    """How long a synced write takes in the temporary folder: each group commit waits for one."""
    with tempfile.NamedTemporaryFile() as file:
        started = time.perf_counter()
        for _ in range(10):
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        each_ms = (time.perf_counter() - started) * 100
    verdict = Verdict.GOOD if each_ms < 20 else Verdict.WARNING
    return Finding("sync", verdict, f"{each_ms:.1f} ms a synced write in {tempfile.gettempdir()}")


def check_clock(now_s: float) -> Finding:
    """A clock that is not obviously wrong; with a chain it is compared with the newest block too."""
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < BUILT_AT_S:
        return Finding("clock", Verdict.BAD, f"{text} is in the past", "set the clock; run an NTP client")
    return Finding("clock", Verdict.GOOD, text)


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
