"""The terms of one round: what its evidence is judged by, drawn from a header and its sections.

Invariant: made of a bundle alone, so that hub and auditor judge alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from emcd.accounting.assignment import ProbeAssignment, assign_probes, probed_nodes
from emcd.accounting.weights import is_lock_known
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle import BundleHeader, SnapshotEntry, ValidatorPower
from emcd.proto.eip712 import Domain
from emcd.proto.params import NetworkParams, PriceTable
from emcd.types import ZERO_HASH, Address, ParticipantRole

FORMAT_VERSION = 3
MAX_ROUNDS = 1 << 40
MAX_DURATION_S = 1 << 32
MAX_TIME_MS = 1 << 58
"""Times of a round can be compared and multiplied by small numbers in 64 bits."""
MAX_PROBES_PER_NODE = 16
_ROLES = frozenset(int(role) for role in ParticipantRole)


@dataclass(frozen=True)
class RoundTerms:
    """Who and what counts in the round."""

    round: int
    hub: Address
    domain: Domain
    beacon_hash: bytes
    params: NetworkParams
    prices: dict[int, PriceTable]
    powers: dict[Address, int]
    assignments: dict[tuple[Address, int], ProbeAssignment]
    prices_from: tuple[int, ...] = (0,)
    """The first round of each table of `prices`, both in ascending order."""

    @property
    def start_ms(self) -> int:
        return self.params.round_start_ms(self.round)

    @property
    def end_ms(self) -> int:
        return self.params.round_end_ms(self.round)

    def price_in_force(self, at_ms: int) -> PriceTable | None:
        """The table by which a call that started then is charged; None before the first one's round."""
        known = bisect_right(self.prices_from, self.params.round_at(at_ms))
        return tuple(self.prices.values())[known - 1] if known else None

    def is_quorum(self, power: int) -> bool:
        """More than 2/3 of all frozen power."""
        return 3 * power > 2 * sum(self.powers.values())


def make_terms(
    header: BundleHeader, participants: Iterable[SnapshotEntry], validators: Iterable[ValidatorPower]
) -> RoundTerms:
    """Raises: RemoteProtocolError EMC-1905 when the header contradicts itself."""
    require_header(header)
    powers = {entry.node: int.from_bytes(entry.power_wei, "big") for entry in validators}
    probes = assign_probes(
        header.beacon_block_hash,
        header.round,
        probed_nodes(participants, header.params),
        powers.items(),
        header.params,
    )
    return RoundTerms(
        header.round,
        header.hub,
        header.domain,
        header.beacon_block_hash,
        header.params,
        {table.version: table for table in header.prices},
        powers,
        {(probe.node, probe.slot): probe for probe in probes},
        header.prices_from,
    )


def require_participant(params: NetworkParams, entry: SnapshotEntry) -> None:
    """Raises: RemoteProtocolError EMC-1926 when the staking contract knows no such participant."""
    if entry.role not in _ROLES:
        raise RemoteProtocolError("EMC-1926", f"{entry.role} is no role")
    if not is_lock_known(params, entry.role, entry.lock_days):
        raise RemoteProtocolError("EMC-1926", f"{entry.lock_days} days are no lock of the staking contract")


def require_header(header: BundleHeader) -> None:
    """Raises: RemoteProtocolError EMC-1905."""
    fault = _header_fault(header) or _params_fault(header.params)
    if fault:
        raise RemoteProtocolError("EMC-1905", fault)


def _header_fault(header: BundleHeader) -> str:
    versions = [table.version for table in header.prices]
    if header.format_version != FORMAT_VERSION:
        return f"format version {header.format_version} is not {FORMAT_VERSION}"
    if header.round >= MAX_ROUNDS or header.params.round_end_ms(header.round) >= MAX_TIME_MS:
        return f"there is no round {header.round}"
    if header.previous_round >= header.round:
        return f"the previous round {header.previous_round} is not before round {header.round}"
    if (header.previous_round < 0) != (header.previous_bundle_hash == ZERO_HASH):
        return "previous_round and previous_bundle_hash name different bundles"
    if not versions or versions != sorted(set(versions)):
        return f"price tables {versions} are not sorted by version"
    starts = list(header.prices_from)
    if len(starts) != len(versions) or starts != sorted(set(starts)) or starts[-1] > header.round:
        return f"price tables {versions} can't be in force from rounds {starts} on"
    return ""


def _params_fault(params: NetworkParams) -> str:
    rounds = (
        params.epoch_rounds,
        params.challenge_delay_rounds,
        params.void_after_rounds,
        params.carry_rounds,
        params.suspension_rounds,
        params.strike_window_rounds,
    )
    if not 0 < params.round_s <= MAX_DURATION_S or params.genesis_time_s >= MAX_DURATION_S * 2:
        return f"rounds of {params.round_s} s from {params.genesis_time_s} are no clock"
    if params.epoch_rounds < 1 or max(rounds) >= MAX_ROUNDS:
        return "a duration in rounds is out of range"
    if not 1 <= params.probes_per_node <= MAX_PROBES_PER_NODE:
        return f"{params.probes_per_node} probes a node are not between 1 and {MAX_PROBES_PER_NODE}"
    return ""
