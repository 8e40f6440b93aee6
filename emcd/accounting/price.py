"""What a call costs, and what is set aside before it. Source: DESIGN 2.4.

Rounding is up, once, over the sum: a fraction never works for free.
"""

from __future__ import annotations

from emcd.proto.address import hex_hash
from emcd.proto.params import ModelPrice, PriceTable
from emcd.types import Micro

_TOKENS_PER_PRICE = 1_000_000


def price_of(table: PriceTable, model_hash: bytes) -> ModelPrice:
    """The price of a model; the table's rows are keyed by the manifest hash as 0x-hex."""
    return table.price_of(hex_hash(model_hash))


def charge_call_ceil(price: ModelPrice, input_tokens: int, output_tokens: int) -> Micro:
    """Micro-credits of a successful call, at least the minimum. Raises: ValueError on negative tokens."""
    if input_tokens < 0 or output_tokens < 0:
        raise ValueError("tokens are counted from 0")
    exact = input_tokens * price.input_micro_per_mtok + output_tokens * price.output_micro_per_mtok
    return Micro(max(price.minimum_micro, -(-exact // _TOKENS_PER_PRICE)))


def reservation_ceil(price: ModelPrice, body_bytes: int, max_output_tokens: int) -> Micro:
    """The most a call can cost: every byte of the request an input token, every output token used.

    A token covers at least one byte of text, and the JSON around a message is longer than what a
    chat template adds to it.
    """
    return charge_call_ceil(price, body_bytes, max_output_tokens)


def affordable_output_tokens_floor(price: ModelPrice, budget_micro: int, input_tokens: int) -> int:
    """How many output tokens a budget pays beside these input tokens; -1 when not even those."""
    if budget_micro < charge_call_ceil(price, input_tokens, 0):
        return -1
    left = budget_micro * _TOKENS_PER_PRICE - input_tokens * price.input_micro_per_mtok
    return left // price.output_micro_per_mtok if price.output_micro_per_mtok else 2**63 - 1


def clamp_charge(charge_micro: int, reserved_micro: int) -> Micro:
    """A charge never exceeds its reservation."""
    return Micro(min(charge_micro, reserved_micro))
