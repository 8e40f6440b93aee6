"""Which price table a call may name: the one in force in the round in which it started."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.accounting.audit import audit_bundle
from emcd.accounting.expectation import Expectation
from emcd.accounting.terms import make_terms
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle_codec import encode_bundle
from emcd.proto.params import ModelPrice, PriceTable
from tests.support.round_world import World, edited

OLD = PriceTable(1, ModelPrice(5, 5, 5))
NEW = PriceTable(2, ModelPrice(10_000_000_000, 10_000_000_000, 10_000))
LATER = PriceTable(4, ModelPrice(7, 7, 7))
ROUND = 20
BOTH = {"prices": (OLD, NEW), "prices_from": (0, ROUND)}


def world(prices: PriceTable = NEW) -> World:
    return World(round=ROUND, prices=prices, node_names=("node-1",), calls_per_node=2)


CLOSED = world().close(BOTH)


def audit(facts: dict[str, Any] | None = None, **expected: Any) -> str:
    data = CLOSED.data if facts is None else world().close(facts).data
    difference = audit_bundle(data, Expectation(**expected)).difference
    return "" if difference is None else f"{difference.code} {difference.detail}"


def test_calls_by_the_table_in_force_pass() -> None:
    assert not CLOSED.left_out
    assert CLOSED.header.prices == (OLD, NEW)
    assert CLOSED.header.prices_from == (0, ROUND)
    assert audit(prices=(OLD, NEW), prices_from=(0, ROUND)) == ""


@pytest.mark.parametrize(
    ("prices", "starts", "code"),
    [
        ((OLD, NEW), (0, ROUND), "EMC-1914"),  # the new table is in force by now
        ((NEW, LATER), (0, ROUND), "EMC-1914"),  # the table that they name is not there
        ((OLD,), (ROUND,), ""),
    ],
)
def test_calls_by_another_table_are_left_out_of_a_bundle(
    prices: tuple[PriceTable, ...], starts: tuple[int, ...], code: str
) -> None:
    closed = world(OLD).close({"prices": prices, "prices_from": starts})
    codes = {item.code for item in closed.left_out if item.section.name == "CALLS"}

    assert codes == ({code} if code else set())


def test_table_in_force_is_that_of_the_round_in_which_a_call_starts() -> None:
    terms = make_terms(CLOSED.header, CLOSED.bundle.participants, CLOSED.bundle.validators)
    start_ms = terms.params.round_start_ms

    assert terms.price_in_force(start_ms(ROUND)) == NEW
    assert terms.price_in_force(start_ms(ROUND) - 1) == OLD
    assert terms.price_in_force(start_ms(0)) == OLD
    assert terms.price_in_force(start_ms(0) - 1) is None


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"prices": (OLD, NEW), "prices_from": (0, ROUND - 1)}, "prices_from is [0, 19], expected [0, 20]"),
        ({"prices": (NEW,), "prices_from": (0,)}, "prices_from is [0], expected [20]"),
        ({"prices": (LATER,), "prices_from": (0,)}, "price table 4 is not one in force"),
        (
            {"prices": (edited(NEW, default=ModelPrice(1, 1, 1)),), "prices_from": (20,)},
            "table 2 is not one in force",
        ),
        ({"prices": (OLD,), "prices_from": (0,)}, "the price tables up to 2 are not all in the bundle"),
    ],
)
def test_audit_refuses_another_schedule_than_the_chains(facts: dict[str, Any], words: str) -> None:
    found = audit(facts, prices=(OLD, NEW), prices_from=(0, ROUND))

    assert found.startswith("EMC-1906")
    assert words in found


def test_audit_takes_a_bundle_that_leaves_out_tables_too_old_for_any_call() -> None:
    facts = {"prices": (NEW,), "prices_from": (ROUND,)}
    assert audit(facts, prices=(OLD, NEW), prices_from=(0, ROUND)) == ""


@pytest.mark.parametrize(
    "starts",
    [(), (0,), (0, 0), (ROUND, 0), (0, ROUND + 1), (0, 1, 2)],
)
def test_audit_refuses_a_header_whose_tables_have_no_sound_beginnings(starts: tuple[int, ...]) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1905"):
        world().close({"prices": (OLD, NEW), "prices_from": starts})
    lie = edited(CLOSED.bundle, header=edited(CLOSED.header, prices_from=starts))
    difference = audit_bundle(encode_bundle(lie)).difference

    assert difference is not None
    assert difference.code == "EMC-1905"
