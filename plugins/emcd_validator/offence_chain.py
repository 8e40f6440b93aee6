"""What a validator asks the chain before it accuses: who had a say, what is final, what is left to take.

Invariant: every answer is as of a confirmed block. Members of a set that an epoch has frozen never
change, so they are asked for once.
"""

from __future__ import annotations

from emcd.chain import ActiveRoot, Chain
from emcd.proto.messages import Offence
from emcd.types import Address
from emcd_validator.queries.offences import OffenceState

_KEPT_EPOCHS = 8


class OffenceChain:
    """The chain, as far as offences go. Every method raises RecoverableError while it is away."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._members: dict[int, frozenset[Address]] = {}

    async def fetch_members(self, epoch: int) -> frozenset[Address]:
        """The validators of an epoch that has begun; kept once the chain is in it."""
        known = self._members.get(epoch)
        if known is None:
            params = self._chain.deployment.params
            head = await self._chain.confirmed_head()
            found = await self._chain.staking.fetch_validator_set(epoch, at=head)
            known = frozenset(entry.node for entry in found if any(entry.power_wei))
            if known and head.timestamp_s * 1000 >= params.round_start_ms(epoch * params.epoch_rounds):
                while len(self._members) >= _KEPT_EPOCHS:
                    del self._members[min(self._members)]
                self._members[epoch] = known
        return known

    async def fetch_endpoints(self, epoch: int) -> dict[Address, str]:
        """Where the validators of an epoch serve now."""
        head = await self._chain.confirmed_head()
        members = await self._chain.staking.fetch_validator_set(epoch, at=head)
        found = [await self._chain.staking.find_participant(entry.node, at=head) for entry in members]
        pairs = zip(members, found, strict=True)
        return {entry.node: item.endpoint for entry, item in pairs if item is not None and item.endpoint}

    async def is_same_account(self, key: Address, other: Address) -> bool:
        """Whether two keys are of one participant, which changed its key between them."""
        if key == other:
            return True
        head = await self._chain.confirmed_head()
        one = await self._chain.staking.find_participant(key, at=head)
        two = await self._chain.staking.find_participant(other, at=head)
        return one is not None and two is not None and one.account == two.account

    async def find_active_root(self) -> ActiveRoot | None:
        """The newest root that nobody can veto any more."""
        return await self._chain.distributor.find_active_root(at=await self._chain.confirmed_head())

    async def fetch_state(self, offence: Offence, evidence_hash: bytes) -> OffenceState:
        """Whether there is anything left to punish."""
        head = await self._chain.confirmed_head()
        if await self._chain.staking.fetch_evidence_used(evidence_hash, at=head):
            return OffenceState.SLASHED
        found = await self._chain.staking.find_participant(offence.offender, at=head)
        if found is None or not found.stake_wei + found.pending_wei + found.unbonding_wei:
            return OffenceState.NO_STAKE
        return OffenceState.OPEN
