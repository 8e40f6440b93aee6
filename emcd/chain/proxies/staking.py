"""The staking contract: bindings, stakes, validator sets, slashing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emcd.chain.blocks import BlockRef
from emcd.chain.call import Call
from emcd.chain.proxies.contract import Contract
from emcd.chain.proxies.signatures import Signatures, pack_signatures
from emcd.chain.rpc import Rpc
from emcd.money import decode_wei, encode_wei
from emcd.proto.bundle import SnapshotEntry, ValidatorPower
from emcd.proto.messages import Binding, Slash
from emcd.types import ZERO_ADDRESS, Address, Epoch, ParticipantRole, Round, Wei

PAGE = 100


@dataclass(frozen=True)
class Participant:
    """A bound node as the contract gives it at a block.

    `stake_wei` is what weighs now: 0 while unbonding, and for a validator before its first epoch
    (then it is `pending_wei`). `multiplier_bps` is the lock's, or that of 0 days when it is over.
    `node` is the key in force, `account` the first one that it had: its identity for ever. While a
    rotation waits, `next_node` signs from `next_from_epoch` on; otherwise that is 0.
    """

    node: Address
    wallet: Address
    role: ParticipantRole
    stake_wei: Wei
    pending_wei: Wei
    lock_days: int
    multiplier_bps: int
    active_from_epoch: Epoch
    exit_round: Round
    nonce: int
    endpoint: str
    lock_end_s: int
    unbonding_wei: Wei
    account: Address = ZERO_ADDRESS
    next_node: Address = ZERO_ADDRESS
    next_from_epoch: int = 0


class ValidatorSet(tuple[ValidatorPower, ...]):
    """An epoch's frozen validators by ascending node address."""

    @property
    def members(self) -> tuple[tuple[Address, Wei], ...]:
        return tuple((power.node, decode_wei(power.power_wei)) for power in self)

    @property
    def total_wei(self) -> Wei:
        return Wei(sum(wei for _, wei in self.members))

    def power_of(self, node: Address) -> Wei:
        """0 for a node that is not in the set."""
        return dict(self.members).get(node, Wei(0))


class StakingProxy(Contract):
    """Staking."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        super().__init__(rpc, "Staking", address)

    async def find_participant(self, node: Address, *, at: BlockRef | None = None) -> Participant | None:
        """The binding and stake of any key that the node ever had, or None when it is not bound."""
        raw = await self.view_one("participant", node, at=at)
        return None if raw["wallet"] == ZERO_ADDRESS else _participant(raw)

    async def fetch_nonce(self, node: Address, *, at: BlockRef | None = None) -> int:
        """The last nonce the node's bindings used; it survives a release."""
        return int((await self.view_one("participant", node, at=at))["nonce"])

    async def fetch_participants(self, *, at: BlockRef) -> list[Participant]:
        """Every bound node at one block, by ascending node address."""
        count = await self.view_one("participantCount", at=at)
        found: list[Participant] = []
        for offset in range(0, count, PAGE):
            found += [_participant(raw) for raw in await self.view_one("participants", offset, PAGE, at=at)]
        return sorted(found, key=lambda p: int(p.node, 16))

    async def fetch_validator_set(self, epoch: int, *, at: BlockRef | None = None) -> ValidatorSet:
        """Final for an epoch that has begun; a preview for a later one."""
        nodes, powers, _ = await self.view("validatorSet", epoch, at=at)
        members = zip(nodes, powers, strict=True)
        return ValidatorSet(ValidatorPower(node, encode_wei(power)) for node, power in members if power)

    async def fetch_snapshot(self, at: BlockRef, epoch: int = 0) -> tuple[SnapshotEntry, ...]:
        """Every staked node and every hub at a snapshot block as bundles have it; nobody suspended.

        A binding is free, so a node with no stake at all takes no room in a bundle: in a result it is
        a node that is not bound.

        `lock_days` of a compute node is 0 when its lock is over: what a lock multiplies is said by the
        parameters of the round. A node is named by its key in force in `epoch`, that of the round: the
        snapshot of an epoch's first round may be a block of the epoch before.
        """
        found = await self.fetch_participants(at=at)
        entries = [_snapshot_entry(p, at.timestamp_s, epoch) for p in found if _is_listed(p)]
        return tuple(sorted(entries, key=lambda entry: int(entry.node, 16)))

    async def fetch_current_round(self, *, at: BlockRef | None = None) -> Round:
        return Round(await self.view_one("currentRound", at=at))

    async def fetch_total_staked(self, *, at: BlockRef | None = None) -> Wei:
        return Wei(await self.view_one("totalStakedWei", at=at))

    async def fetch_signed_power(
        self, epoch: int, digest: bytes, signatures: Signatures, *, at: BlockRef | None = None
    ) -> tuple[Wei, Wei]:
        """The power behind signatures over a digest: (signed, total)."""
        signed, total = await self.view("signedPower", epoch, digest, pack_signatures(signatures), at=at)
        return Wei(signed), Wei(total)

    async def fetch_evidence_used(self, evidence_hash: bytes, *, at: BlockRef | None = None) -> bool:
        return bool(await self.view_one("evidenceUsed", evidence_hash, at=at))

    def submit_bind(self, binding: Binding, node_signature: bytes) -> Call:
        """Sent by the binding's wallet."""
        fields = (binding.node, binding.wallet, binding.role, binding.nonce, binding.deadline)
        return self.call("bind", fields, node_signature)

    def submit_rotate_key(self, node: Address, following: Binding, following_signature: bytes) -> Call:
        """Sent by the wallet; the binding is signed by the next key, with a nonce above the account's."""
        fields = (following.node, following.wallet, following.role, following.nonce, following.deadline)
        return self.call("rotateKey", node, fields, following_signature)

    def submit_cancel_rotation(self, node: Address) -> Call:
        """Sent by the wallet, before the rotation is in force."""
        return self.call("cancelRotation", node)

    def submit_approve_wallet(self, node: Address, new_wallet: Address) -> Call:
        return self.call("approveWallet", node, new_wallet)

    def submit_release(self, node: Address) -> Call:
        return self.call("release", node)

    def submit_set_endpoint(self, node: Address, endpoint: str) -> Call:
        """Sent by the node's key or its wallet."""
        return self.call("setEndpoint", node, endpoint)

    def submit_stake(self, node: Address, amount_wei: int, lock_days: int) -> Call:
        """Sent by the wallet, after approving the amount to this contract."""
        return self.call("stake", node, amount_wei, lock_days)

    def submit_top_up(self, node: Address, amount_wei: int) -> Call:
        return self.call("topUp", node, amount_wei)

    def submit_extend(self, node: Address, lock_days: int) -> Call:
        return self.call("extend", node, lock_days)

    def submit_request_exit(self, node: Address) -> Call:
        return self.call("requestExit", node)

    def submit_withdraw(self, node: Address) -> Call:
        return self.call("withdraw", node)

    def submit_enroll(self, node: Address) -> Call:
        return self.call("enroll", node)

    def submit_freeze_set(self, epoch: int) -> Call:
        return self.call("freezeSet", epoch)

    def submit_slash(self, order: Slash, signatures: Signatures) -> Call:
        fields = (order.node, order.bps, order.evidence_hash, order.epoch)
        return self.call("slash", fields, pack_signatures(signatures))


def _participant(raw: dict[str, object]) -> Participant:
    values: Sequence[object] = list(raw.values())
    node, wallet, role, *rest = values
    return Participant(node, wallet, ParticipantRole(role), *rest)  # type: ignore[arg-type]


def _is_listed(participant: Participant) -> bool:
    staked_wei = participant.stake_wei + participant.pending_wei + participant.unbonding_wei
    return staked_wei > 0 or participant.role is ParticipantRole.HUB


def _snapshot_entry(participant: Participant, at_s: int, epoch: int) -> SnapshotEntry:
    days, node = participant.lock_days, participant.node
    if participant.next_node != ZERO_ADDRESS and participant.next_from_epoch <= epoch:
        node = participant.next_node
    if participant.role is ParticipantRole.COMPUTE and participant.lock_end_s <= at_s:
        days = 0
    return SnapshotEntry(
        node,
        participant.wallet,
        int(participant.role),
        encode_wei(participant.stake_wei),
        days,
        0,
    )
