"""Whatever is changed in a bundle, the audit finds it and says where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.errors import LocalProtocolError
from emcd.proto.bundle import Bundle, BundleHeader, CallEntry
from emcd.proto.bundle_codec import Section, encode_bundle
from emcd.proto.messages import Verdict
from emcd.types import ZERO_HASH
from tests.support.round_world import SealedBundle, World, address_of, edited

STRIDE = {Section.CALLS: 3, Section.BATCHES: 4}
ONLY_BY_HASH = {
    # What nothing in the bundle itself contradicts: the chain, the bundle before, or who filed it must.
    # One vote less is among it, while the rest of them is a quorum.
    "header.params.challenge_delay_rounds", "header.params.void_after_rounds", "header.params.carry_rounds",
    "header.params.unbonding_rounds", "header.params.day_s", "header.params.online_window_ms",
    "header.params.status_interval_ms", "header.params.close_within_ms", "header.params.validator_set_size",
    "header.params.router_round_micro", "header.params.suspension_rounds",
    "header.params.strike_window_rounds", "header.params.beacon_blocks", "header.params.version",
    "header.params.compute_minimum_wei", "header.params.router_minimum_wei", "header.params.hub_minimum_wei",
    "header.params.router_lock_days", "header.params.validator_lock_days", "header.params.hub_lock_days",
    "header.params.compute_locks", "header.params.recheck_bps",
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
def closed() -> SealedBundle:
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


def bundle_mutants(closed: SealedBundle) -> Iterator[tuple[str, Any]]:
    for where, header in mutants(closed.bundle.header, "header"):
        if where == "header.hub":
            yield where, with_hub(closed.bundle, header)
        else:
            yield where, edited(closed.bundle, header=header)
    for section in list(Section)[1:]:
        items = getattr(closed.bundle, section.label)
        for index, item in enumerate(items):
            rest = (*items[:index], *items[index + 1 :])
            yield section.label, edited(closed.bundle, **{section.label: rest})
            for where, changed in mutants(item, section.label) if index % STRIDE.get(section, 1) == 0 else ():
                if where in FOLLOWS:
                    continue
                changed = relinked(changed) if section is Section.CALLS else changed
                yield where, edited(closed.bundle, **{section.label: _sorted_like(section, (changed, *rest))})


FOLLOWS = {
    "calls.forward.hub",
    "calls.receipt.forward_hash",
    "calls.delivery.forward_hash",
    "calls.delivery.receipt_hash",
}
"""What is not in the bytes, because it follows from the rest."""


def relinked(call: CallEntry) -> CallEntry:
    """The call whose later records name its changed earlier ones, as a liar would have it."""
    receipt, forward_hash = call.receipt, call.forward.struct_hash()
    if receipt is not None:
        receipt = edited(receipt, forward_hash=forward_hash)
    receipt_hash = ZERO_HASH if receipt is None else receipt.struct_hash()
    delivery = edited(call.delivery, forward_hash=forward_hash, receipt_hash=receipt_hash)
    changed: CallEntry = edited(call, receipt=receipt, delivery=delivery)
    return changed


def with_hub(bundle: Bundle, header: BundleHeader) -> Bundle:
    """Everything that is the hub's is another's: a bundle does not say it twice."""
    calls = [edited(call, forward=edited(call.forward, hub=header.hub)) for call in bundle.calls]
    batches = [
        edited(batch, signer=header.hub) if batch.signer == bundle.header.hub else batch
        for batch in bundle.batches
    ]
    changed: Bundle = edited(bundle, header=header, calls=tuple(map(relinked, calls)), batches=tuple(batches))
    return changed


def _sorted_like(section: Section, items: tuple[Any, ...]) -> tuple[Any, ...]:
    from emcd.proto.bundle_codec import sort_key

    return tuple(sorted(items, key=lambda item: sort_key(section, item)))


def test_audit_every_changed_field_is_found(closed: SealedBundle) -> None:
    expected = Expectation(bundle_hash=closed.bundle_hash)
    by_hash: set[str] = set()
    by_content: set[str] = set()
    seen = unwritable = 0
    for where, bundle in bundle_mutants(closed):
        try:
            data = encode_bundle(bundle)
        except LocalProtocolError:
            unwritable += 1
            assert where.startswith(("calls", "batches"))
            continue
        outcome = audit_bundle(data, expected)
        seen += 1
        assert outcome.difference is not None, where
        assert outcome.difference.detail
        (by_hash if outcome.difference.code == "EMC-1907" else by_content).add(where)

    assert seen > 300
    assert unwritable < 20  # a batch less, or one of nobody's: calls would refer to what is not there
    assert by_hash - by_content == ONLY_BY_HASH
    assert by_hash & by_content <= SOMETIMES_BY_HASH


def test_audit_every_changed_byte_is_found_and_named(closed: SealedBundle) -> None:
    data = bytearray(closed.data)
    sections = {section.label for section in Section}
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        difference = audit_bundle(bytes(data)).difference
        assert difference is not None, at
        assert difference.section in sections
        data[at] ^= 1 << at % 8
    assert audit_bundle(bytes(data)).ok


def test_audit_of_what_the_hub_closes_agrees_in_everything(closed: SealedBundle) -> None:
    outcome = audit_bundle(closed.data, Expectation(bundle_hash=closed.bundle_hash))

    assert outcome.difference is None
    assert outcome.result == closed.result
    assert outcome.round_root == closed.round_root
    assert (outcome.calls, outcome.counted_calls) == (9, 9)
    assert closed.left_out == ()
