"""What a validator asks the chain before it accuses: who had a say, what is final, what is left to take.

Invariant: every answer is as of a confirmed block. Members of a set that an epoch has frozen never
change, so they are asked for once.
"""

from __future__ import annotations

from emcd.chain import ActiveRoot, Chain, RpcRefused
from emcd.errors import RecoverableError
from emcd.proto.messages import Offence
from emcd.types import ZERO_ADDRESS, Address, ParticipantRole
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

    async def fetch_frozen(self, epoch: int) -> frozenset[Address]:
        """The validators of an epoch, under the keys that are theirs in it for good.

        Raises: RecoverableError EMC-1806 before the chain is in the epoch: until then a key that
        waits may be cancelled.
        """
        members = await self.fetch_members(epoch)
        if epoch not in self._members:
            raise RecoverableError("EMC-1806", f"the set of epoch {epoch} is not on the chain yet")
        return members

    async def fetch_endpoints(self, epoch: int) -> dict[Address, str]:
        """Where the validators of an epoch serve now."""
        head = await self._chain.confirmed_head()
        members = await self._chain.staking.fetch_validator_set(epoch, at=head)
        found = [await self._chain.staking.find_participant(entry.node, at=head) for entry in members]
        pairs = zip(members, found, strict=True)
        return {entry.node: item.endpoint for entry, item in pairs if item is not None and item.endpoint}

    async def is_hub_key(self, key: Address, hub: Address, round_index: int) -> bool:
        """Whether a key was the hub's in force in the snapshot of a round; `hub` is any key of the hub.

        A key that the account had in other rounds, or that was cancelled before it was in force,
        is no key of this round.
        Raises: RecoverableError EMC-1842 too, where no endpoint has the state of the snapshot any more.
        """
        if not await self._is_same_account(key, hub):
            return False
        params = self._chain.deployment.params
        snapshot = await self._chain.block_at(params.round_start_ms(round_index) // 1000)
        try:
            found = await self._chain.staking.find_participant(key, at=snapshot)
        except RpcRefused as exc:
            what = f"the state of block {snapshot.number}, round {round_index}: {exc.detail}"
            raise RecoverableError("EMC-1842", what) from exc
        if found is None or found.role is not ParticipantRole.HUB:
            return False
        is_next = found.next_node != ZERO_ADDRESS and found.next_from_epoch <= params.epoch_of(round_index)
        return key == (found.next_node if is_next else found.node)

    async def _is_same_account(self, key: Address, other: Address) -> bool:
        """Whether two keys are of one participant, whether or not they were ever in force."""
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
