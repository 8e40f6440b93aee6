"""Whatever is changed in a bundle, the audit finds it and says where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.accounting.round_close import ClosedRound
from emcd.proto.bundle_codec import Section, encode_bundle
from emcd.proto.messages import Verdict
from tests.support.round_world import World, address_of, edited

STRIDE = {Section.CALLS: 3, Section.BATCHES: 4}
ONLY_BY_HASH = {
    # What nothing in the bundle itself contradicts: the chain, the bundle before, or who filed it must.
    # One vote less is among it, while the rest of them is a quorum.
    "header.params.challenge_delay_rounds", "header.params.void_after_rounds", "header.params.carry_rounds",
    "header.params.unbonding_rounds", "header.params.day_s", "header.params.online_window_ms",
    "header.params.status_interval_ms", "header.params.close_within_ms", "header.params.validator_set_size",
    "header.params.router_round_micro", "header.params.suspension_rounds",
    "header.params.strike_window_rounds", "header.params.beacon_blocks", "header.params.version",
    "header.params.compute_minimum_wei", "header.params.router_minimum_wei",
    "header.distributor", "header.snapshot_block", "header.snapshot_block_hash", "header.beacon_block",
    "header.previous_bundle_hash",
    "participants.suspended_until_round",
    "votes",
    "deposits.index", "deposits.account", "deposits.amount_wei", "deposits.credits_micro", "deposits.block",
    "deposits.tx_hash", "deposits",
}  # fmt: skip
SOMETIMES_BY_HASH = {
    # What a participant that gets nothing is said to be.
    "participants.wallet", "participants.lock_days", "participants.stake_wei",
}  # fmt: skip


@pytest.fixture(scope="module")
def closed() -> ClosedRound:
    world = World(node_names=("node-1", "node-2"), verdicts={"node-2": Verdict.FAIL}, calls_per_node=2)
    world.calls.append(world.make_call("node-1", world.params.round_start_ms(world.round), tokens=(0, 0)))
    return world.close()


def other_value(value: Any) -> Any:
    """A value of the same kind that is not the same."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    if isinstance(value, str):
        return address_of("somebody else") if value.startswith("0x") else value + "x"
    if isinstance(value, tuple):
        return value[:-1]
    return None


def mutants(struct: msgspec.Struct, path: str) -> Iterator[tuple[str, Any]]:
    """Every struct that differs in one field, its nested structs included."""
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        where = f"{path}.{name}"
        if isinstance(value, msgspec.Struct):
            for inner, changed in mutants(value, where):
                yield inner, edited(struct, **{name: changed})
            if name.endswith("_ref"):
                yield where, edited(struct, **{name: None})
        elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            for inner, changed in mutants(value[0], where):
                yield inner, edited(struct, **{name: (changed, *value[1:])})
        if not isinstance(value, msgspec.Struct) and other_value(value) != value:
            yield where, edited(struct, **{name: other_value(value)})


def bundle_mutants(closed: ClosedRound) -> Iterator[tuple[str, Any]]:
    for where, header in mutants(closed.bundle.header, "header"):
        yield where, edited(closed.bundle, header=header)
    for section in list(Section)[1:]:
        items = getattr(closed.bundle, section.label)
        for index, item in enumerate(items):
            rest = (*items[:index], *items[index + 1 :])
            yield section.label, edited(closed.bundle, **{section.label: rest})
            for where, changed in mutants(item, section.label) if index % STRIDE.get(section, 1) == 0 else ():
                yield where, edited(closed.bundle, **{section.label: _sorted_like(section, (changed, *rest))})


def _sorted_like(section: Section, items: tuple[Any, ...]) -> tuple[Any, ...]:
    from emcd.proto.bundle_codec import sort_key

    return tuple(sorted(items, key=lambda item: sort_key(section, item)))


def test_audit_every_changed_field_is_found(closed: ClosedRound) -> None:
    expected = Expectation(bundle_hash=closed.bundle_hash)
    by_hash: set[str] = set()
    by_content: set[str] = set()
    seen = 0
    for where, bundle in bundle_mutants(closed):
        outcome = audit_bundle(encode_bundle(bundle), expected)
        seen += 1
        assert outcome.difference is not None, where
        assert outcome.difference.detail
        (by_hash if outcome.difference.code == "EMC-1907" else by_content).add(where)

    assert seen > 300
    assert by_hash - by_content == ONLY_BY_HASH
    assert by_hash & by_content <= SOMETIMES_BY_HASH


def test_audit_every_changed_byte_is_found_and_named(closed: ClosedRound) -> None:
    data = bytearray(closed.data)
    sections = {section.label for section in Section}
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        difference = audit_bundle(bytes(data)).difference
        assert difference is not None, at
        assert difference.section in sections
        data[at] ^= 1 << at % 8
    assert audit_bundle(bytes(data)).ok


def test_audit_of_what_the_hub_closes_agrees_in_everything(closed: ClosedRound) -> None:
    outcome = audit_bundle(closed.data, Expectation(bundle_hash=closed.bundle_hash))

    assert outcome.difference is None
    assert outcome.result == closed.result
    assert outcome.round_root == closed.round_root
    assert (outcome.calls, outcome.counted_calls) == (9, 9)
    assert closed.left_out == ()
