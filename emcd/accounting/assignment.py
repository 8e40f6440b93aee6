"""Who probes whom, when, with what: nobody chooses it.

Source: DESIGN 2.6, VERIFICATION 5.4. The probers are drawn from the beacon, the same for everybody;
time and content of a probe are drawn from the prober's committed seed too, so that nobody else knows
them before it reveals. Each draw is keccak of a label and its inputs, taken modulo the bound: the bias
is below 2**-128 for any stake. Invariant: the slots of a node have different validators while there
are enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emcd.proto.address import address_bytes
from emcd.proto.bundle import SnapshotEntry
from emcd.proto.hashing import keccak
from emcd.proto.params import NetworkParams
from emcd.types import Address, ParticipantRole

WINDOW_START_PERCENT = 20
WINDOW_END_PERCENT = 85
"""Of a short round."""
WINDOW_START_MS = 240_000
WINDOW_END_MS = 90_000
"""Of a long one, counted from its end."""


@dataclass(frozen=True)
class ProbeAssignment:
    """Validator `validator` probes node `node`, as its probe number `slot` of the round."""

    validator: Address
    node: Address
    slot: int


def probed_nodes(participants: Iterable[SnapshotEntry], params: NetworkParams) -> tuple[Address, ...]:
    """The nodes that are probed: compute nodes with the minimum stake at the snapshot."""
    return tuple(
        entry.node
        for entry in participants
        if entry.role == ParticipantRole.COMPUTE and entry.stake_wei >= params.compute_minimum_wei
    )


def assign_probes(
    beacon_hash: bytes,
    index: int,
    nodes: Iterable[Address],
    validators: Iterable[tuple[Address, int]],
    params: NetworkParams,
) -> tuple[ProbeAssignment, ...]:
    """The probes of round `index`, sorted by node and slot.

    Args: `validators` are the epoch's frozen set with their power. A node gets fewer probes than
    `probes_per_node` when the set is smaller than that.
    """
    pool = sorted(
        ((node, power) for node, power in validators if power > 0), key=lambda item: address_bytes(item[0])
    )
    probes: list[ProbeAssignment] = []
    for node in sorted(set(nodes), key=address_bytes):
        probers = _draw_probers(beacon_hash, index, node, pool, params.probes_per_node)
        for slot, validator in enumerate(probers):
            probes.append(ProbeAssignment(validator, node, slot))
    return tuple(probes)


def draw_value(seed: bytes, beacon_hash: bytes, node: Address, slot: int, label: str, bound: int) -> int:
    """A parameter of a probe, 0 <= x < bound: neither validator, hub nor node chose it.

    Raises: ValueError when bound is not positive.
    """
    return _draw(
        b"probe:" + label.encode(), seed, beacon_hash, address_bytes(node), bytes([slot]), bound=bound
    )


def draw_leaf(seed: bytes, beacon_hash: bytes, node: Address, slot: int, leaf_count: int) -> int:
    """Which leaf of the validator's corpus the probe asks."""
    return draw_value(seed, beacon_hash, node, slot, "leaf", leaf_count)


def draw_time_ms(
    seed: bytes, beacon_hash: bytes, node: Address, slot: int, params: NetworkParams, round: int
) -> int:
    """When the probe is due, inside `probe_window_ms`."""
    first, last = probe_window_ms(params, round)
    return first + draw_value(seed, beacon_hash, node, slot, "time", max(1, last - first))


def probe_window_ms(params: NetworkParams, round: int) -> tuple[int, int]:
    """First moment at which a probe of the round is due, and the one after the last.

    Outside of it every call is a user's, and the nodes know it. So it begins as soon as the beacon is
    known to all, and ends when a probe could not end in the round any more.
    """
    start, length = params.round_start_ms(round), params.round_s * 1000
    first = min(length * WINDOW_START_PERCENT // 100, WINDOW_START_MS)
    last = max(length * WINDOW_END_PERCENT // 100, length - WINDOW_END_MS)
    return start + first, start + last


def _draw_probers(
    beacon_hash: bytes, index: int, node: Address, pool: Sequence[tuple[Address, int]], slots: int
) -> list[Address]:
    rest = list(pool)
    chosen: list[Address] = []
    for slot in range(min(slots, len(rest))):
        inputs = (beacon_hash, index.to_bytes(8, "big"), address_bytes(node), bytes([slot]))
        ticket = _draw(b"prober", *inputs, bound=sum(power for _, power in rest))
        for position, (validator, power) in enumerate(rest):  # noqa: B007
            if ticket < power:
                break
            ticket -= power
        chosen.append(validator)
        del rest[position]
    return chosen


def _draw(label: bytes, *parts: bytes, bound: int) -> int:
    if bound <= 0:
        raise ValueError("a draw needs something to draw from")
    tag = keccak(b"emcd:" + label)
    return int.from_bytes(keccak(tag + b"".join(parts)), "big") % bound
