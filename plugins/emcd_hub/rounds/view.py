"""A round as the chain has it: snapshot, beacon, frozen set, where the validators serve.

Invariant: everything of one view is read at the blocks it names; it is read anew when the chain no
longer has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from emcd.accounting.assignment import assign_probes, probed_nodes
from emcd.accounting.suspension import Conduct
from emcd.accounting.terms import RoundTerms
from emcd.accounting.weights import settle_locks
from emcd.chain import BlockRef, Chain
from emcd.errors import RecoverableError
from emcd.proto.bundle import SnapshotEntry, ValidatorPower
from emcd.proto.eip712 import Domain
from emcd.proto.params import NetworkParams
from emcd.types import Address


@dataclass(frozen=True, kw_only=True)
class RoundView:
    """`participants` are not suspended here: that follows from the bundle a round builds on."""

    round: int
    snapshot_block: int
    snapshot_hash: bytes
    beacon_block: int
    beacon_hash: bytes
    participants: tuple[SnapshotEntry, ...]
    validators: tuple[ValidatorPower, ...]
    endpoints: Mapping[Address, str]

    @property
    def powers(self) -> dict[Address, int]:
        return {entry.node: int.from_bytes(entry.power_wei, "big") for entry in self.validators}

    def suspended(self, conducts: Mapping[Address, Conduct]) -> tuple[SnapshotEntry, ...]:
        """The participants with the suspensions that stand after an earlier bundle."""
        return tuple(
            msgspec.structs.replace(entry, suspended_until_round=conducts[entry.node].suspended_until_round)
            if entry.node in conducts
            else entry
            for entry in self.participants
        )

    def terms(self, params: NetworkParams, domain: Domain, hub: Address) -> RoundTerms:
        """What statements of validators about the round are judged by; it says nothing of calls."""
        nodes = probed_nodes(self.participants, params)
        probes = assign_probes(self.beacon_hash, self.round, nodes, self.powers.items(), params)
        return RoundTerms(
            self.round,
            hub,
            domain,
            self.beacon_hash,
            params,
            {},
            self.powers,
            {(probe.node, probe.slot): probe for probe in probes},
            (),
        )


async def fetch_view(chain: Chain, index: int, params: NetworkParams) -> RoundView:
    """Read a round's view. Raises: RecoverableError while its beacon is not confirmed."""
    start_s = params.round_start_ms(index) // 1000
    snapshot = await chain.block_at(start_s)
    beacon = await _fetch_beacon(chain, start_s, params.beacon_blocks)
    validators = await chain.staking.fetch_validator_set(params.epoch_of(index), at=beacon)
    members = {entry.node for entry in validators}
    found = await chain.staking.fetch_participants(at=beacon)
    return RoundView(
        round=index,
        snapshot_block=snapshot.number,
        snapshot_hash=snapshot.hash,
        beacon_block=beacon.number,
        beacon_hash=beacon.hash,
        participants=settle_locks(
            params, await chain.staking.fetch_snapshot(snapshot, params.epoch_of(index))
        ),
        validators=tuple(entry for entry in validators if any(entry.power_wei)),
        endpoints={item.node: item.endpoint for item in found if item.node in members and item.endpoint},
    )


async def is_current(chain: Chain, view: RoundView) -> bool:
    """Whether the chain still has the view's blocks. Raises: RecoverableError."""
    snapshot = await chain.fetch_block(view.snapshot_block)
    beacon = await chain.fetch_block(view.beacon_block)
    return (snapshot.hash, beacon.hash) == (view.snapshot_hash, view.beacon_hash)


async def _fetch_beacon(chain: Chain, start_s: int, blocks: int) -> BlockRef:
    """The block `blocks` after the first one with timestamp >= start."""
    before = await chain.block_at(start_s - 1)
    number = before.number + 1 + blocks
    if (await chain.confirmed_head()).number < number:
        raise RecoverableError("EMC-1750", f"the beacon of the round from {start_s} s is block {number}")
    return await chain.fetch_block(number)
