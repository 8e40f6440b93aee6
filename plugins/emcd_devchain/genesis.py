"""A chain built before any daemon runs: funded, with its contracts deployed and stakes made.

Every transaction sent is mined at once into a block of its own, with timestamps one second apart
from the start given; so a network's whole preparation is history when its genesis time comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from eth_typing import Address as RawAddress

from emcd.chain.rpc import error_from
from emcd.errors import ConfigError
from emcd.proto.address import address_bytes
from emcd.types import Address
from emcd_devchain.evm import EvmChain
from emcd_devchain.fault import RpcFault
from emcd_devchain.rpc import RpcMethods
from emcd_devchain.store import ChainStore


class OfflineRpc:
    """`emcd.chain.rpc.Rpc` on a chain in this process; a sent transaction is mined at once.

    `instant` False leaves mining to the caller, as on a live chain.
    """

    def __init__(self, chain: EvmChain, *, instant: bool = True) -> None:
        self.chain = chain
        self._methods = RpcMethods(chain)
        self._instant = instant
        self._limiter = trio.CapacityLimiter(1)

    async def call(self, method: str, *params: Any) -> Any:
        """Raises what `JsonRpc.call` raises. Cancellation: when the method has run."""
        return await trio.to_thread.run_sync(self._run, method, params, limiter=self._limiter)

    async def mine(self, timestamp_s: int = 0) -> None:
        """Mine one block, one second after the last or at a later time."""
        await trio.to_thread.run_sync(self.chain.mine, timestamp_s, limiter=self._limiter)

    def _run(self, method: str, params: tuple[Any, ...]) -> Any:
        try:
            result = self._methods.handle(method, params)
        except RpcFault as fault:
            error = {"code": fault.code, "message": fault.message, "data": fault.data}
            raise error_from(method, error) from fault
        if self._instant and method == "eth_sendRawTransaction":
            self.chain.mine(0)
        return result


@contextmanager
def prepare_chain(
    file: Path, *, chain_id: int, timestamp_s: int, balances_wei: Mapping[Address, int]
) -> Iterator[OfflineRpc]:
    """Create a chain file with these balances; on leaving, it is ready for the role.

    Args:
        timestamp_s: of block 0; each transaction takes one second after it.

    Raises: ConfigError EMC-2205 when the file exists.
    """
    if file.exists():
        raise ConfigError("EMC-2205", str(file))
    store = ChainStore(file, chain_id)
    try:
        chain = EvmChain(store, chain_id)
        chain.create_genesis(
            timestamp_s, {RawAddress(address_bytes(a)): wei for a, wei in balances_wei.items()}
        )
        yield OfflineRpc(chain)
    finally:
        store.close()
