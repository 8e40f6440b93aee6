"""What a validator probes in a round: drawn from seed and beacon, so that nobody chose it. Pure.

The same function makes the plan before the probes and checks it after the reveal. Slots are taken
in the order of (node, slot); a draw that hits a leaf drawn before goes on to the next free one.
The time is drawn from the seed too: one drawn from the beacon alone would tell every node when
its probe comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emcd.accounting.assignment import ProbeAssignment, draw_leaf, draw_time_ms, draw_value
from emcd.accounting.assignment import probe_window_ms as probe_window_ms  # noqa: PLC0414 (the prober's too)
from emcd.proto.address import address_bytes
from emcd.proto.params import NetworkParams
from emcd.types import Address

SEED_BYTES = 32


@dataclass(frozen=True)
class Slot:
    """One probe that the beacon gives to a validator."""

    node: Address
    slot: int


@dataclass(frozen=True)
class Draws:
    """The random numbers of one validator and round."""

    seed: bytes
    beacon_hash: bytes

    def below(self, slot: Slot, label: str, bound: int) -> int:
        """A number 0 <= x < bound for one purpose of one slot."""
        return draw_value(self.seed, self.beacon_hash, slot.node, slot.slot, label, bound)

    def leaf(self, slot: Slot, leaf_count: int) -> int:
        return draw_leaf(self.seed, self.beacon_hash, slot.node, slot.slot, leaf_count)

    def time_ms(self, slot: Slot, params: NetworkParams, round_index: int) -> int:
        return draw_time_ms(self.seed, self.beacon_hash, slot.node, slot.slot, params, round_index)


@dataclass(frozen=True)
class PlannedProbe:
    """A slot with what the seed draws for it; `leaf_index` is None when the corpus is exhausted."""

    slot: Slot
    due_at_ms: int
    leaf_index: int | None


def own_slots(assignments: Iterable[ProbeAssignment], validator: Address) -> tuple[Slot, ...]:
    """The slots of one validator, in the order of (node, slot)."""
    slots = {Slot(item.node, item.slot) for item in assignments if item.validator == validator}
    return tuple(sorted(slots, key=lambda slot: (address_bytes(slot.node), slot.slot)))


def draw_plan(
    draws: Draws, slots: Sequence[Slot], leaf_count: int, params: NetworkParams, round_index: int
) -> tuple[PlannedProbe, ...]:
    """Time and leaf of every slot, in the order given (that of `own_slots`)."""
    taken: set[int] = set()
    plan = []
    for slot in slots:
        due_at_ms = draws.time_ms(slot, params, round_index)
        plan.append(PlannedProbe(slot, due_at_ms, _take_leaf(draws, slot, leaf_count, taken)))
    return tuple(plan)


def pick_model(draws: Draws, slot: Slot, offered: Iterable[str], judged: Iterable[str]) -> str | None:
    """The model to probe a node for, among those it offers and the validator can judge."""
    choice = sorted(set(offered) & set(judged))
    return choice[draws.below(slot, "model", len(choice))] if choice else None


def _take_leaf(draws: Draws, slot: Slot, count: int, taken: set[int]) -> int | None:
    if len(taken) >= count:
        return None
    index = draws.leaf(slot, count)
    while index in taken:
        index = (index + 1) % count
    taken.add(index)
    return index
