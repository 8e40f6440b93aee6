"""The role "devchain": opens the chain's file, mines a block every second, serves JSON-RPC.

Owns the schedule of blocks and the one worker thread's turn. Invariants: a block's timestamp is the
wall clock's second when it is mined, or one more than its parent's; the loop never runs the EVM.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from typing import TYPE_CHECKING

import trio
from eth_typing import Address as RawAddress

from emcd.errors import ConfigError, FatalError
from emcd.net.http_limit import Limits
from emcd.net.http_server import serve_http
from emcd.proto.address import address_bytes
from emcd.role import Health, HealthState, RoleContext, RoleSpec
from emcd_devchain.config import DevchainConfig

if TYPE_CHECKING:
    from emcd_devchain.evm import EvmChain

FUNDED_WEI = 1_000_000 * 10**18
_LATE_BLOCKS = 10
"""So many blocks behind the clock is worth a warning."""


class Devchain:
    """One running embedded chain. `port` is known once it serves."""

    def __init__(self, config: DevchainConfig) -> None:
        self.port = 0
        self._config = config
        self._drain = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._state = HealthState.STARTING

    async def setup(self, ctx: RoleContext) -> None:
        """Raises: ConfigError EMC-2201 when the network is on another chain than this one."""
        self._ctx = ctx
        if ctx.network is not None and ctx.network.chain_id != self._config.chain_id:
            raise ConfigError(
                "EMC-2201", f"the network is on chain {ctx.network.chain_id}, not {self._config.chain_id}"
            )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and mine. Returns only by cancellation.

        Raises: ConfigError EMC-2201 to EMC-2203, EMC-2206, FatalError EMC-2204.
        Cancellation: after the block that is being mined; the file is closed.
        """
        chain = await trio.to_thread.run_sync(self._open, limiter=self._limiter)
        try:
            async with trio.open_nursery() as nursery:
                self.port = await nursery.start(self._serve, chain)
                self._state = HealthState.READY
                self._ctx.log.info("devchain.serving", port=self.port, head=chain.head.block_number)
                task_status.started()
                await self._mine(chain)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await trio.to_thread.run_sync(chain.store.close, limiter=self._limiter)

    async def drain(self) -> None:
        """Take no new connections; blocks are mined to the end."""
        self._state = HealthState.DRAINING
        self._drain.set()

    def health(self) -> Health:
        return Health(self._state)

    def _open(self) -> EvmChain:
        from emcd_devchain.evm import EvmChain  # 0.9 s to import py-evm
        from emcd_devchain.store import ChainStore

        config = self._config
        store = ChainStore(self._ctx.data_dir / config.file, config.chain_id)
        try:
            chain = EvmChain(store, config.chain_id)
            if not chain.has_genesis:
                if not config.fund:
                    raise ConfigError("EMC-2206", str(config.file))
                balances = {RawAddress(address_bytes(account)): FUNDED_WEI for account in config.fund}
                chain.create_genesis(self._ctx.clock.now_ms() // 1000, balances)
        except BaseException:
            store.close()
            raise
        return chain

    async def _serve(self, chain: EvmChain, *, task_status: trio.TaskStatus[int]) -> None:
        from emcd_devchain.app import RpcApp
        from emcd_devchain.rpc import RpcMethods

        app = RpcApp(RpcMethods(chain), self._limiter, self._config.origins, self._report)
        listen = self._config.listen
        await serve_http(
            app,
            host=listen.host,
            port=listen.port,
            limits=Limits(),
            drain=self._drain,
            task_status=task_status,
        )
        await trio.sleep_forever()

    async def _mine(self, chain: EvmChain) -> None:
        step = self._config.block_seconds
        while True:
            now_ms = self._ctx.clock.now_ms()
            await trio.sleep((step * 1000 - now_ms % (step * 1000)) / 1000)
            second = self._ctx.clock.now_ms() // 1000
            try:
                header = await trio.to_thread.run_sync(partial(chain.mine, second), limiter=self._limiter)
            except sqlite3.Error as exc:
                raise FatalError("EMC-2204", str(exc)) from exc
            if header.timestamp > second + _LATE_BLOCKS:
                self._ctx.log.warning("devchain.ahead_of_clock", seconds=header.timestamp - second)

    def _report(self, exc: BaseException) -> None:
        self._ctx.log.error("devchain.method_failed", exc_info=exc)


SPEC = RoleSpec(
    kind="devchain",
    config=DevchainConfig,
    build=Devchain,
    summary="An embedded chain for development: a real EVM, one block a second, JSON-RPC on loopback.",
    needs_network=False,
)
