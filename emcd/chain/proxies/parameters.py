"""The parameters contract: what the quorum changed, and from which epoch it is in force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emcd.chain.blocks import BlockRef
from emcd.chain.call import Call
from emcd.chain.proxies.contract import Contract
from emcd.chain.proxies.signatures import Signatures, pack_signatures
from emcd.chain.rpc import Rpc
from emcd.proto.parameters import ParametersChange, RoleRule, Rules
from emcd.types import Address, Epoch, Hash


@dataclass(frozen=True)
class Version:
    """One version; its document is in the ParametersChanged event of block `block`."""

    number: int
    from_epoch: Epoch
    block: int
    rules_hash: Hash
    document_hash: Hash


class ParametersProxy(Contract):
    """Parameters."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        super().__init__(rpc, "Parameters", address)

    async def fetch_version_count(self, *, at: BlockRef | None = None) -> int:
        return int(await self.view_one("versionCount", at=at))

    async def fetch_version(self, number: int, *, at: BlockRef | None = None) -> Version:
        """A version by its number, from 1."""
        return _version(await self.view_one("version", number, at=at))

    async def fetch_version_at(self, epoch: int, *, at: BlockRef | None = None) -> Version:
        """The version in force in an epoch; final for one that has begun or is the next."""
        return _version(await self.view_one("versionAt", epoch, at=at))

    async def fetch_rules_at(self, epoch: int, *, at: BlockRef | None = None) -> Rules:
        """The part that the contracts enforce, in force in an epoch."""
        raw = await self.view_one("rulesAt", epoch, at=at)
        roles = tuple(RoleRule(role["minimumWei"], role["lockDays"]) for role in raw["roles"])
        locks = tuple(zip(raw["computeLockDays"], raw["computeMultiplierBps"], strict=True))
        return Rules(raw["setSize"], roles, locks)

    def submit_change(
        self, change: ParametersChange, rules: Rules, document: str, signatures: Signatures
    ) -> Call:
        """Sent by anyone, with the signatures of more than 2/3 of the current epoch's power."""
        fields = (change.version, change.from_epoch, change.rules_hash, change.document_hash)
        return self.call("change", fields, encode_rules(rules), document, pack_signatures(signatures))


def encode_rules(rules: Rules) -> tuple[Any, ...]:
    """As the contract's struct takes them."""
    days, multipliers = zip(*rules.compute_locks, strict=True)
    return (rules.set_size, [tuple(role) for role in rules.roles], list(days), list(multipliers))


def _version(raw: dict[str, Any]) -> Version:
    return Version(
        raw["version"],
        Epoch(raw["fromEpoch"]),
        raw["blockNumber"],
        Hash(raw["rulesHash"]),
        Hash(raw["documentHash"]),
    )
