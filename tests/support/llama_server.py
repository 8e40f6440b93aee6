"""llama.cpp's own server, for tests against a real engine.

It is not among our packages. `EMCD_LLAMA_SERVER` names one that is there; with `EMCD_BUILD_ENGINES=1` it is
compiled from the source that PyPI's llama-cpp-python carries, once a machine (20 minutes on two cores; needs
cmake, ninja and a C++ compiler). Without either, the tests say so and are skipped.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from emcd.errors import RecoverableError
from emcd.inference.engine import Engine

SOURCE = "llama-cpp-python==0.3.36"
_CMAKE = [
    f"-D{option}"
    for option in (
        "CMAKE_BUILD_TYPE=Release", "LLAMA_STANDALONE=ON", "LLAMA_BUILD_COMMON=ON", "LLAMA_BUILD_TOOLS=ON",
        "LLAMA_BUILD_SERVER=ON", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_APP=OFF",
        "LLAMA_BUILD_UI=OFF", "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_OPENSSL=OFF",
    )
]  # fmt: skip
_START_S = 60.0
_BUILD_S = 3 * 3600.0


def find_llama_server() -> Path:
    """The program. Skips the test when there is none, and says what to do."""
    named = os.environ.get("EMCD_LLAMA_SERVER")
    if named:
        return Path(named)
    folder = Path(tempfile.gettempdir()) / f"emcd-test-llama-{os.getuid()}"
    built = folder / "build" / "bin" / "llama-server"
    if not built.exists():
        if os.environ.get("EMCD_BUILD_ENGINES") != "1":
            pytest.skip("no llama.cpp: set EMCD_LLAMA_SERVER to its llama-server, or EMCD_BUILD_ENGINES=1")
        _build(folder)
    return built


def _build(folder: Path) -> None:
    if missing := [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]:
        pytest.skip(f"llama.cpp can't be compiled without {', '.join(missing)}")
    folder.mkdir(parents=True, exist_ok=True)
    fetch = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary",
        ":all:",
        "-d",
        str(folder),
        SOURCE,
    ]
    if subprocess.run(fetch, check=False, capture_output=True, timeout=_BUILD_S).returncode:
        pytest.skip(f"{SOURCE} can't be fetched")
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    build = folder / "build"
    for command in (
        ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", *_CMAKE],
        ["ninja", "-C", str(build), "llama-server"],
    ):
        subprocess.run(["nice", *command], check=True, capture_output=True, timeout=_BUILD_S)


@asynccontextmanager
async def running_llama(model: Path, name: str, *options: str) -> AsyncIterator[str]:
    """A server of one model on loopback; gives its base URL."""
    program = find_llama_server()
    port = _find_port()
    command = [
        str(program), "--model", str(model), "--alias", name, "--host", "127.0.0.1", "--port", str(port),
        "--parallel", "4", "--ctx-size", "2048", "--threads", "1", *options,
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1"
    with tempfile.TemporaryFile() as log:
        process = await trio.lowlevel.open_process(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            await _wait_ready(Engine(url), process, name)
            yield url
        except RecoverableError as exc:
            log.seek(0)
            raise AssertionError(log.read()[-2000:].decode("utf-8", "replace")) from exc
        finally:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                await process.wait()


def _find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def _wait_ready(engine: Engine, process: trio.Process, name: str) -> None:
    with trio.fail_after(_START_S):
        while True:
            try:
                health = await engine.ask("/health")
                if health is not None and name in await engine.list_models():
                    return
            except RecoverableError:
                if process.poll() is not None:
                    raise
            await trio.sleep(0.1)
