"""The embedded chain's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emcd.config import Listen, setting
from emcd.config.value import is_loopback
from emcd.types import Address


@dataclass(frozen=True)
class DevchainConfig:
    """One embedded chain. It listens on loopback only: whoever reaches it may send transactions."""

    listen: Listen = setting(Listen("127.0.0.1", 8545), doc="where JSON-RPC is served; loopback only")
    file: Path = setting(Path("devchain.sqlite"), doc="the chain's own file, in the data directory")
    chain_id: int = setting(31337, minimum=1, maximum=2**53, doc="the chain's id")
    block_seconds: int = setting(1, minimum=1, maximum=60, doc="seconds between blocks")
    fund: tuple[Address, ...] = setting((), doc="accounts that own 1,000,000 ether in a new chain")
    origins: tuple[str, ...] = setting((), doc="web origins that may call it, beside those of this machine")

    def check(self) -> list[str]:
        if not is_loopback(self.listen.host):
            return [f"the embedded chain listens on loopback only, not on {self.listen.host}"]
        return []
