"""The reward distributor: published roots, vetoes, claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from emcd.chain.blocks import BlockRef
from emcd.chain.call import Call
from emcd.chain.proxies.contract import Contract
from emcd.chain.proxies.signatures import Signatures, pack_signatures
from emcd.chain.rpc import Rpc
from emcd.proto.messages import Extraction, RoundRoot, Veto
from emcd.types import ZERO_HASH, Address, Hash, Round, Wei


class PublicationState(IntEnum):
    """The numbers are the contract's."""

    NONE = 0
    PENDING = 1
    ACTIVE = 2
    VOID = 3


@dataclass(frozen=True)
class Publication:
    """A round as published; `active_at_s` is when its challenge delay ends."""

    state: PublicationState
    bundle_hash: Hash
    root: Hash
    cumulative_wei: Wei
    active_at_s: int
    publisher: Address
    fee_wei: Wei
    fee_paid: bool


@dataclass(frozen=True)
class ActiveRoot:
    """The newest root that claims are paid from."""

    round: Round
    root: Hash
    bundle_hash: Hash
    cumulative_wei: Wei


class DistributorProxy(Contract):
    """Distributor."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        super().__init__(rpc, "Distributor", address)

    async def find_active_root(self, *, at: BlockRef | None = None) -> ActiveRoot | None:
        """None before the first root is active."""
        index, root, bundle_hash, cumulative = await self.view("activeRoot", at=at)
        if root == ZERO_HASH:
            return None
        return ActiveRoot(Round(index), Hash(root), Hash(bundle_hash), Wei(cumulative))

    async def fetch_publication(self, index: int, *, at: BlockRef | None = None) -> Publication:
        """A round's publication; state NONE when nobody published it."""
        raw = await self.view_one("published", index, at=at)
        return Publication(
            state=PublicationState(raw["state"]),
            bundle_hash=Hash(raw["bundleHash"]),
            root=Hash(raw["root"]),
            cumulative_wei=Wei(raw["cumulativeWei"]),
            active_at_s=raw["activeAt"],
            publisher=raw["publisher"],
            fee_wei=Wei(raw["feeWei"]),
            fee_paid=raw["feePaid"],
        )

    async def find_last_round(self, *, at: BlockRef | None = None) -> Round | None:
        """The newest round ever published, void ones included."""
        exists, index = await self.view("lastRound", at=at)
        return Round(index) if exists else None

    async def find_tip_round(self, *, at: BlockRef | None = None) -> Round | None:
        """The newest published round that is not void."""
        exists, index = await self.view("tipRound", at=at)
        return Round(index) if exists else None

    async def fetch_claimed(self, wallet: Address, *, at: BlockRef | None = None) -> Wei:
        """What a wallet has claimed so far, cumulative."""
        return Wei(await self.view_one("claimed", wallet, at=at))

    async def fetch_extraction_nonce(self, wallet: Address, *, at: BlockRef | None = None) -> int:
        """The least nonce that the wallet's next extraction request may carry."""
        return int(await self.view_one("extractionNonce", wallet, at=at))

    async def fetch_scheduled(self, index: int, *, at: BlockRef | None = None) -> Wei:
        """The contract's bound on everything issued through a round."""
        return Wei(await self.view_one("scheduledWei", index, at=at))

    async def fetch_paused_until_s(self, *, at: BlockRef | None = None) -> int:
        return int(await self.view_one("pausedUntil", at=at))

    async def fetch_total_claimed(self, *, at: BlockRef | None = None) -> Wei:
        return Wei(await self.view_one("totalClaimedWei", at=at))

    async def fetch_total_fees_paid(self, *, at: BlockRef | None = None) -> Wei:
        return Wei(await self.view_one("totalFeesPaidWei", at=at))

    def submit_publish(self, outcome: RoundRoot, signatures: Signatures) -> Call:
        """Sent by anyone, with the signatures of more than 2/3 of the power."""
        return self.call(
            "publish",
            outcome.round,
            outcome.bundle_hash,
            outcome.root,
            outcome.cumulative_wei,
            pack_signatures(signatures),
        )

    def submit_veto(self, veto: Veto, signatures: Signatures) -> Call:
        return self.call("veto", veto.round, veto.bundle_hash, veto.root, pack_signatures(signatures))

    def submit_claim(
        self, wallet: Address, cumulative_wei: int, proof: Sequence[bytes], recipient: Address
    ) -> Call:
        """Sent by the wallet."""
        return self.call("claim", wallet, cumulative_wei, list(proof), recipient)

    def submit_claim_for(
        self, extraction: Extraction, signature: bytes, cumulative_wei: int, proof: Sequence[bytes]
    ) -> Call:
        """Sent by anyone, with the wallet's signed request."""
        fields = (
            extraction.wallet,
            extraction.recipient,
            extraction.through_round,
            extraction.submit,
            extraction.nonce,
            extraction.deadline,
        )
        return self.call("claimFor", fields, signature, cumulative_wei, list(proof))

    def submit_cancel_extractions(self, next_nonce: int) -> Call:
        return self.call("cancelExtractions", next_nonce)

    def submit_pay_fee(self, index: int) -> Call:
        return self.call("payFee", index)

    def submit_pause(self, duration_s: int) -> Call:
        """Sent by the guardian."""
        return self.call("pause", duration_s)

    def submit_unpause(self) -> Call:
        return self.call("unpause")
