"""A round as this validator sees it on the chain: who takes part, who judges, what the beacon is. Pure.

It is what the hub's bundle is compared with, and what peers' statements are checked against.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from emcd.accounting.assignment import ProbeAssignment, assign_probes, probed_nodes
from emcd.accounting.suspension import Conduct
from emcd.accounting.terms import RoundTerms
from emcd.chain import Participant
from emcd.proto.bundle import SnapshotEntry, ValidatorPower
from emcd.proto.eip712 import Domain
from emcd.proto.params import NetworkParams
from emcd.types import Address, Hash


@dataclass(frozen=True, kw_only=True)
class RoundView:
    """Snapshot, frozen set and beacon of a round; `endpoints` are those of the set's members."""

    round: int
    snapshot_block: int
    snapshot_hash: Hash
    beacon_block: int
    beacon_hash: Hash
    participants: tuple[SnapshotEntry, ...]
    validators: tuple[ValidatorPower, ...]
    endpoints: Mapping[Address, str]

    @property
    def members(self) -> frozenset[Address]:
        """The frozen set."""
        return frozenset(entry.node for entry in self.validators)

    def assignments(self, params: NetworkParams) -> tuple[ProbeAssignment, ...]:
        """Who probes whom in the round."""
        powers = [(entry.node, int.from_bytes(entry.power_wei, "big")) for entry in self.validators]
        return assign_probes(
            self.beacon_hash, self.round, probed_nodes(self.participants, params), powers, params
        )

    def terms(self, params: NetworkParams, domain: Domain, hub: Address) -> RoundTerms:
        """What statements about the round are judged by; it says nothing of calls."""
        return RoundTerms(
            self.round,
            hub,
            domain,
            self.beacon_hash,
            params,
            {},
            {entry.node: int.from_bytes(entry.power_wei, "big") for entry in self.validators},
            {(item.node, item.slot): item for item in self.assignments(params)},
            (),
        )

    def suspended(self, conduct: Mapping[Address, Conduct]) -> tuple[SnapshotEntry, ...]:
        """The participants with the suspensions that earlier bundles gave them."""
        return tuple(
            msgspec.structs.replace(entry, suspended_until_round=conduct[entry.node].suspended_until_round)
            if entry.node in conduct
            else entry
            for entry in self.participants
        )


def list_endpoints(found: Iterable[Participant], members: Iterable[ValidatorPower]) -> dict[Address, str]:
    """Where the members of the set serve what they sign."""
    nodes = {entry.node for entry in members}
    return {item.node: item.endpoint for item in found if item.node in nodes and item.endpoint}
