from __future__ import annotations

import pytest

from emcd.accounting.price import (
    affordable_output_tokens_floor,
    charge_call_ceil,
    clamp_charge,
    price_of,
    reservation_ceil,
)
from emcd.proto.address import hex_hash
from emcd.proto.hashing import keccak
from emcd.proto.params import ModelPrice, PriceTable

PRICE = ModelPrice(input_micro_per_mtok=3, output_micro_per_mtok=7, minimum_micro=2)


def test_charge_default_price_is_ten_thousand_credits_a_million_tokens() -> None:
    assert charge_call_ceil(ModelPrice(), 1_000_000, 0) == 10_000 * 10**6
    assert charge_call_ceil(ModelPrice(), 0, 1_000_000) == 10_000 * 10**6


@pytest.mark.parametrize(
    ("inputs", "outputs", "micro"),
    [(0, 0, 2), (1, 0, 2), (1_000_000, 0, 3), (1_000_001, 0, 4), (500_000, 500_000, 5), (0, 10**9, 7000)],
)
def test_charge_is_rounded_up_once_and_never_below_the_minimum(inputs: int, outputs: int, micro: int) -> None:
    assert charge_call_ceil(PRICE, inputs, outputs) == micro


@pytest.mark.parametrize("tokens", [(-1, 0), (0, -1)])
def test_charge_negative_tokens_are_refused(tokens: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        charge_call_ceil(PRICE, *tokens)


def test_price_model_with_own_row_has_its_own_price() -> None:
    own = keccak(b"model")
    table = PriceTable(models=((hex_hash(own), PRICE),))

    assert price_of(table, own) == PRICE
    assert price_of(table, keccak(b"another")) == table.default


def test_reservation_covers_a_token_for_every_byte() -> None:
    assert reservation_ceil(PRICE, 2_000_000, 1_000_000) == charge_call_ceil(PRICE, 2_000_000, 1_000_000)


def test_clamp_charge_stays_within_the_reservation() -> None:
    assert clamp_charge(10, 7) == 7
    assert clamp_charge(6, 7) == 6


@pytest.mark.parametrize(("budget", "inputs"), [(1, 0), (2, 1_000_000)])
def test_affordable_tokens_budget_below_the_input_is_minus_one(budget: int, inputs: int) -> None:
    assert affordable_output_tokens_floor(PRICE, budget, inputs) == -1


def test_affordable_tokens_free_output_has_no_end() -> None:
    assert affordable_output_tokens_floor(ModelPrice(1, 0, 0), 5, 3) == 2**63 - 1
