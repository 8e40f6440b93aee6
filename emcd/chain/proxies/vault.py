"""The credit vault: token burnt for credits."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.chain.blocks import BlockRef
from emcd.chain.call import Call
from emcd.chain.proxies.contract import Contract
from emcd.chain.rpc import Rpc
from emcd.types import Address, Micro, Wei

PAGE = 100


@dataclass(frozen=True)
class Deposit:
    """One purchase; `account` is the 32 bytes that the hub knows the buyer by."""

    index: int
    account: bytes
    payer: Address
    amount_wei: Wei
    credits_micro: Micro
    time_s: int
    block: int


class VaultProxy(Contract):
    """CreditVault."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        super().__init__(rpc, "CreditVault", address)

    async def fetch_credits_for(self, amount_wei: int, *, at: BlockRef | None = None) -> Micro:
        return Micro(await self.view_one("creditsFor", amount_wei, at=at))

    async def fetch_micro_per_token(self, *, at: BlockRef | None = None) -> Micro:
        return Micro(await self.view_one("microPerToken", at=at))

    async def fetch_deposits(self, first: int = 0, *, at: BlockRef) -> list[Deposit]:
        """Every deposit from index `first` on, at one block."""
        count = await self.view_one("depositCount", at=at)
        found: list[Deposit] = []
        for offset in range(first, count, PAGE):
            for raw in await self.view_one("depositPage", offset, PAGE, at=at):
                found.append(Deposit(first + len(found), *raw.values()))
        return found

    def submit_buy(self, account: bytes, amount_wei: int) -> Call:
        """Sent by the payer, after approving the amount to this contract."""
        return self.call("buy", account, amount_wei)
