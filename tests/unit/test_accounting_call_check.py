"""The edges of the rules over columns; `tests/property/test_bundle_calls.py` compares the rest."""

from __future__ import annotations

from typing import Any

import pytest

from emcd.accounting.call_check import CallCheck
from emcd.accounting.call_rule import CallStanding, check_standing, hash_call, require_call
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.proto.bundle_calls import pack_group, unpack_group
from emcd.proto.bundle_table import CallRow, CallTable
from emcd.proto.eip712 import Domain
from emcd.proto.params import ModelPrice, PriceTable
from emcd.types import ZERO_HASH
from tests.support.round_world import STAKING, World, edited

WORLD = World(round=20)
PARAMS = WORLD.params
START = PARAMS.round_start_ms(20)
CALL = WORLD.make_call("node-1", START + 100)
TERMS = RoundTerms(20, WORLD.hub, Domain(1, STAKING), bytes(32), PARAMS, {1: PriceTable()}, {}, {}, (0,))


def changed(forward: Any = None, receipt: Any = None, delivery: Any = None, *, bare: bool = False) -> CallRow:
    """The call with changed fields, its records linked."""
    first = edited(CALL.forward, **(forward or {}))
    second = (
        None if bare else edited(CALL.receipt, **{"forward_hash": first.struct_hash(), **(receipt or {})})
    )
    receipt_hash = ZERO_HASH if second is None else second.struct_hash()
    links = {"forward_hash": first.struct_hash(), "receipt_hash": receipt_hash}
    return first, second, edited(CALL.delivery, **links, **(delivery or {}))


def is_flagged(row: CallRow, terms: RoundTerms = TERMS) -> bool:
    table = CallTable()
    group, _ = table.make_columns([row])
    return bool(CallCheck(terms).flag(group, table.directory)[0])


def is_refused(row: CallRow, terms: RoundTerms = TERMS) -> bool:
    try:
        require_call(terms, *row, hash_call(*row))
    except RemoteProtocolError:
        return True
    return False


def finished(at_ms: int, round_index: int | None = None) -> dict[str, int]:
    return {"finished_at_ms": at_ms, "round": PARAMS.round_at(at_ms) if round_index is None else round_index}


OLD = PARAMS.round_start_ms(8)


@pytest.mark.parametrize(
    ("row", "refused"),
    [
        (changed(), False),
        (changed(bare=True), False),
        (changed(delivery={"status": 4}), False),
        (changed(delivery={"status": 5}), True),
        (changed(delivery={"credits_micro": 1_500_001}), True),
        (changed(delivery={"credits_micro": 1_499_999, "vault_micro": 0}), True),
        (changed(delivery={"status": 3, "credits_micro": 1_499_999, "vault_micro": 0}), False),
        (changed(delivery={"status": 3, "credits_micro": 1_500_001}), True),
        (changed(delivery={"vault_micro": 1_500_001}), True),
        (changed(delivery={"status": 1}), True),
        (changed(delivery={"status": 1, "credits_micro": 0, "vault_micro": 0}), False),
        (changed(delivery={"credits_micro": 77, "vault_micro": 77}, bare=True), False),
        (
            changed(
                receipt={"input_tokens": 0, "output_tokens": 0},
                delivery={"credits_micro": 10_000, "vault_micro": 0},
            ),
            False,
        ),
        (
            changed(
                receipt={"input_tokens": 0, "output_tokens": 0},
                delivery={"credits_micro": 9_999, "vault_micro": 0},
            ),
            True,
        ),
        # 2**54 tokens at 10**10: the product is 0 modulo 2**64
        (
            changed(
                receipt={"input_tokens": 1 << 54, "output_tokens": 0},
                delivery={"credits_micro": 10_000, "vault_micro": 0},
            ),
            True,
        ),
        (
            changed(
                receipt={"input_tokens": 0, "output_tokens": 1 << 54},
                delivery={"credits_micro": 10_000, "vault_micro": 0},
            ),
            True,
        ),
        (changed(delivery=finished(START + 99)), True),
        (changed(delivery=finished(START + 100)), False),
        (changed(delivery=finished(PARAMS.round_end_ms(20) - 1)), False),
        (changed(delivery=finished(PARAMS.round_end_ms(20))), True),
        (changed(delivery=finished(START + 200, 19)), True),
        (changed(forward={"started_at_ms": OLD}, delivery=finished(OLD)), False),
        (changed(forward={"started_at_ms": OLD - 1}, delivery=finished(OLD - 1)), True),
        (changed(forward={"price_version": 2}), True),
        (changed(forward={"started_at_ms": PARAMS.genesis_time_s * 1000 - 1}), True),
        (changed(forward={"started_at_ms": PARAMS.genesis_time_s * 1000}), False),
    ],
)
def test_check_flags_what_the_rule_refuses_and_no_more(row: CallRow, refused: bool) -> None:
    assert is_refused(row) is refused
    assert is_flagged(row) is refused


@pytest.mark.parametrize(
    ("version", "at_ms", "refused"), [(1, -1, False), (2, -1, True), (1, 0, True), (2, 0, False)]
)
def test_check_price_is_the_one_in_force_when_the_call_started(
    version: int, at_ms: int, refused: bool
) -> None:
    """Table 2 is in force from round 20 on; 1 ms before, 1 was."""
    prices = {1: PriceTable(), 2: PriceTable(2, ModelPrice())}
    terms = RoundTerms(20, WORLD.hub, TERMS.domain, bytes(32), PARAMS, prices, {}, {}, (3, 20))
    row = changed(forward={"started_at_ms": START + at_ms, "price_version": version})
    assert is_refused(row, terms) is refused
    assert is_flagged(row, terms) is refused
    early = changed(forward={"started_at_ms": PARAMS.round_start_ms(3) - 1})
    assert is_refused(early, terms)
    assert is_flagged(early, terms)


END_MS = CALL.delivery.finished_at_ms


@pytest.mark.parametrize(
    ("row", "counts"),
    [
        (changed(), True),
        (changed(bare=True), False),
        (changed(delivery={"status": 3}), True),
        (changed(delivery={"status": 2, "credits_micro": 0, "vault_micro": 0}), False),
        (changed(receipt={"http_status": 199}), False),
        (changed(receipt={"http_status": 299}), True),
        (changed(receipt={"http_status": 300}), False),
        (changed(receipt={"started_at_ms": CALL.forward.started_at_ms - 30_000}), True),
        (changed(receipt={"started_at_ms": CALL.forward.started_at_ms - 30_001}), False),
        (changed(receipt={"finished_at_ms": END_MS + 30_000}), True),
        (changed(receipt={"finished_at_ms": END_MS + 30_001}), False),
        (changed(receipt={"started_at_ms": START + 140, "finished_at_ms": START + 139}), False),
        (changed(receipt={"started_at_ms": START + 140, "finished_at_ms": START + 140}), True),
        (changed(forward={"started_at_ms": 5}, receipt={"started_at_ms": 0, "finished_at_ms": 0}), True),
    ],
)
def test_check_counts_what_the_rule_counts(row: CallRow, counts: bool) -> None:
    group, _ = CallTable().make_columns([row])
    assert bool(CallCheck(TERMS).may_count(group)[0]) is counts
    assert (check_standing(*row, is_proven=True) is CallStanding.COUNTS) is counts


# ------------------------------------------------------------------ what has one encoding only


def number(value: int) -> bytes:
    """A column of one number."""
    return value.to_bytes(8, "big") + b"\x00"


def test_group_body_is_not_stated_where_it_is_the_response() -> None:
    group, _ = CallTable().make_columns([changed(delivery={"body_hash": b"\x07" * 32})])
    content = pack_group(group)
    assert content.endswith(b"\x07" * 32)
    assert CALL.receipt is not None
    with pytest.raises(RemoteProtocolError, match="stated where it is the response's"):
        unpack_group(content[:-32] + CALL.receipt.response_hash, 1)


@pytest.mark.parametrize("vault", [0, 1_500_000])
def test_group_vault_part_is_not_stated_where_it_is_all_or_nothing(vault: int) -> None:
    group, _ = CallTable().make_columns([changed(delivery={"vault_micro": 1_499_990})])
    content = pack_group(group)
    assert content.count(number(1_499_990)) == 1
    with pytest.raises(RemoteProtocolError, match="stated where it is all or nothing"):
        unpack_group(content.replace(number(1_499_990), number(vault)), 1)


@pytest.mark.parametrize(("flags", "text"), [(1 + 2 + 4, "all or nothing"), (1 + 2 + 12, "mean nothing")])
def test_group_flags_that_say_it_otherwise_are_refused(flags: int, text: str) -> None:
    """Nothing charged is all of it, not nothing of it."""
    row = changed(delivery={"status": 1, "credits_micro": 0, "vault_micro": 0, "body_hash": b"\x07" * 32})
    content = pack_group(CallTable().make_columns([row])[0])
    assert content.count(number(20) + number(3)) == 1
    with pytest.raises(RemoteProtocolError, match=text):
        unpack_group(content.replace(number(20) + number(3), number(20) + number(flags)), 1)


def test_group_call_with_neither_receipt_nor_body_is_refused() -> None:
    content = pack_group(CallTable().make_columns([changed(delivery={"body_hash": bytes(32)}, bare=True)])[0])
    assert content.count(number(20) + number(2)) == 1
    with pytest.raises(RemoteProtocolError, match="without a receipt it is stated"):
        unpack_group(content[:-32].replace(number(20) + number(2), number(20) + number(0)), 1)
