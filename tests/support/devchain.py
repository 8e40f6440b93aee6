"""An embedded chain in a temporary file, with signed transactions to feed it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from eth_account import Account
from eth_typing import Address as RawAddress

from emcd.clock import SystemClock
from emcd.config import Listen
from emcd.keys import SigningKey
from emcd.ledger import Ledger
from emcd.proto.address import address_bytes
from emcd.testing import make_context, make_key
from emcd_devchain.config import DevchainConfig
from emcd_devchain.evm import EvmChain
from emcd_devchain.role import Devchain
from emcd_devchain.store import ChainStore

CHAIN_ID = 31337
GENESIS_S = 1_700_000_000
ETHER = 10**18
GWEI = 10**9
RICH = make_key("rich")
POOR = make_key("poor")

RETURNS_42 = bytes.fromhex("602a60005260206000f3")
"""PUSH1 42, MSTORE at 0, RETURN 32 bytes."""


def raw(key: SigningKey) -> RawAddress:
    return RawAddress(address_bytes(key.address))


def make_chain(file: Path, **balances_wei: int) -> EvmChain:
    """A chain of fixed entropy whose genesis funds RICH with 1,000 ether."""
    chain = EvmChain(ChainStore(file, CHAIN_ID), CHAIN_ID, entropy=bytes)
    chain.create_genesis(
        GENESIS_S, {raw(RICH): 1_000 * ETHER, **{raw(make_key(n)): w for n, w in balances_wei.items()}}
    )
    return chain


def sign_raw(key: SigningKey = RICH, **fields: Any) -> bytes:
    """A signed transaction; type 2 unless a gasPrice is given."""
    table: dict[str, Any] = {
        "chainId": CHAIN_ID,
        "nonce": 0,
        "to": POOR.address,
        "value": 0,
        "gas": 21_000,
        "data": b"",
    }
    if "gasPrice" not in fields:
        table |= {"type": 2, "maxFeePerGas": 3 * GWEI, "maxPriorityFeePerGas": GWEI}
    table |= fields
    if table["to"] is None:
        del table["to"]
    if table["chainId"] is None:
        del table["chainId"]
    return bytes(Account.sign_transaction(table, key.reveal()).raw_transaction)


def creation(runtime: bytes) -> bytes:
    """Creation code that deploys `runtime` (at most 255 bytes)."""
    size = len(runtime).to_bytes(1, "big")
    return (
        bytes.fromhex("60") + size + bytes.fromhex("600c60003960") + size + bytes.fromhex("6000f3") + runtime
    )


@asynccontextmanager
async def running_devchain(ledger: Ledger, folder: Path, **settings: Any) -> AsyncIterator[str]:
    """The role itself on a free port; gives its URL. RICH is funded in a new file."""
    config = DevchainConfig(listen=Listen("127.0.0.1", 0), fund=(RICH.address,), **settings)
    role = Devchain(config)
    await role.setup(make_context("devchain", ledger, data_dir=folder, clock=SystemClock()))
    async with trio.open_nursery() as nursery:
        await nursery.start(role.run)
        yield f"http://127.0.0.1:{role.port}"
        await role.drain()
        nursery.cancel_scope.cancel()
