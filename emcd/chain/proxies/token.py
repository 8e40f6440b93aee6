"""The token: balances and approvals."""

from __future__ import annotations

from emcd.chain.blocks import BlockRef
from emcd.chain.call import Call
from emcd.chain.proxies.contract import Contract
from emcd.chain.rpc import Rpc
from emcd.types import Address, Wei


class TokenProxy(Contract):
    """EMCToken."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        super().__init__(rpc, "EMCToken", address)

    async def fetch_balance(self, account: Address, *, at: BlockRef | None = None) -> Wei:
        return Wei(await self.view_one("balanceOf", account, at=at))

    async def fetch_allowance(self, owner: Address, spender: Address, *, at: BlockRef | None = None) -> Wei:
        return Wei(await self.view_one("allowance", owner, spender, at=at))

    async def fetch_total_supply(self, *, at: BlockRef | None = None) -> Wei:
        return Wei(await self.view_one("totalSupply", at=at))

    async def fetch_minted(self, *, at: BlockRef | None = None) -> Wei:
        """What the distributor has minted so far."""
        return Wei(await self.view_one("mintedWei", at=at))

    def submit_approve(self, spender: Address, amount_wei: int) -> Call:
        return self.call("approve", spender, amount_wei)

    def submit_transfer(self, to: Address, amount_wei: int) -> Call:
        return self.call("transfer", to, amount_wei)
