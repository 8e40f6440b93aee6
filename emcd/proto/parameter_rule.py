"""Which parameters a network can run on, and which no quorum may change. Pure.

What protects stakers and claimants from the very quorum that signs changes is fixed for the life
of a deployment: the clock, unbonding, the challenge delay, the fee in the contract's code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from emcd.money import BPS, WEI_PER_TOKEN
from emcd.proto.params import ModelPrice, ModelStanding, NetworkParams, PriceTable

FIXED = (
    "genesis_time_s",
    "round_s",
    "epoch_rounds",
    "day_s",
    "unbonding_rounds",
    "challenge_delay_rounds",
    "void_after_rounds",
    "publish_fee_wei",
)
"""What the contracts hold in their code, never to be changed."""
MAX_SET_SIZE = 31
MAX_PROBES_PER_NODE = 16
MAX_CARRY_ROUNDS = 20
"""Hubs and validators keep calls and statements 24 rounds."""
MAX_ROUNDS = 10_000
MAX_MINIMUM_WEI = 10_000_000 * WEI_PER_TOKEN
MAX_ROUND_MICRO = 10**15
MAX_PRICE_MICRO = 10**15
MAX_LOCKS = 32
MAX_LOCK_DAYS = 3_650
MAX_MULTIPLIER_BPS = 1_000_000
MAX_MODEL_PRICES = 128
MAX_CATALOGUE = 128
MAX_BEACON_BLOCKS = 64
_MANIFEST = re.compile(r"0x[0-9a-f]{64}")
_MINIMA = ("compute_minimum_wei", "router_minimum_wei", "validator_minimum_wei")


def list_faults(params: NetworkParams, prices: PriceTable) -> list[str]:
    """Why no network can run on these numbers; empty when one can."""
    return [*_clock_faults(params), *_rule_faults(params), *_price_faults(prices)]


def list_fixed_changes(before: NetworkParams, after: NetworkParams) -> list[str]:
    """What a later version must not change and does."""
    return [
        f"{name} never changes in a deployment"
        for name in FIXED
        if getattr(before, name) != getattr(after, name)
    ]


def _clock_faults(params: NetworkParams) -> Iterator[str]:
    for name in ("version", "round_s", "epoch_rounds", "day_s", "online_window_ms", "status_interval_ms"):
        if getattr(params, name) < 1:
            yield f"{name} is less than 1"
    for name in params.__struct_fields__:
        value = getattr(params, name)
        if isinstance(value, int) and not 0 <= value < 1 << 63:
            yield f"{name} is not between 0 and 2**63"
        if name.endswith("_rounds") and not 0 < value <= MAX_ROUNDS:
            yield f"{name} is not between 1 and {MAX_ROUNDS}"
    if params.challenge_delay_rounds + params.void_after_rounds > params.unbonding_rounds:
        yield "challenge_delay_rounds and void_after_rounds together are longer than unbonding_rounds"
    if params.carry_rounds > MAX_CARRY_ROUNDS:
        yield f"carry_rounds is more than {MAX_CARRY_ROUNDS}"
    if 2 * params.status_interval_ms > params.online_window_ms:
        yield "online_window_ms is shorter than two status intervals"
    if not 0 < params.close_within_ms <= params.round_s * 1000:
        yield "close_within_ms is not within a round"
    if not 1 <= params.beacon_blocks <= MAX_BEACON_BLOCKS:
        yield f"beacon_blocks is not between 1 and {MAX_BEACON_BLOCKS}"


def _rule_faults(params: NetworkParams) -> Iterator[str]:
    size = params.validator_set_size
    if size % 3 != 1 or not 1 <= size <= MAX_SET_SIZE:
        yield f"validator_set_size {size} is not 3F + 1 and at most {MAX_SET_SIZE}"
    if not 1 <= params.minimum_judges <= max(size, 1):
        yield f"minimum_judges {params.minimum_judges} is not between 1 and the set's size"
    if not 1 <= params.probes_per_node <= MAX_PROBES_PER_NODE:
        yield f"probes_per_node {params.probes_per_node} is not between 1 and {MAX_PROBES_PER_NODE}"
    for name in (*_MINIMA, "hub_minimum_wei", "publish_fee_wei"):
        value = getattr(params, name)
        if len(value) != 32 or int.from_bytes(value, "big") > MAX_MINIMUM_WEI:
            yield f"{name} is more than {MAX_MINIMUM_WEI} wei"
        elif name in _MINIMA and not any(value):
            yield f"{name} is 0"
    for name in ("standard_task_micro", "validator_round_micro", "router_round_micro"):
        if getattr(params, name) > MAX_ROUND_MICRO:
            yield f"{name} is more than {MAX_ROUND_MICRO}"
    for name in ("router_lock_days", "validator_lock_days", "hub_lock_days"):
        if getattr(params, name) > MAX_LOCK_DAYS:
            yield f"{name} is more than {MAX_LOCK_DAYS}"
    if params.recheck_bps > BPS:
        yield f"recheck_bps is more than {BPS}"
    yield from _lock_faults(params.compute_locks)
    yield from _catalogue_faults(params.models)


def _lock_faults(locks: tuple[tuple[int, int], ...]) -> Iterator[str]:
    days = [row[0] for row in locks]
    multipliers = [row[1] for row in locks]
    if days[:1] != [0] or days != sorted(set(days)) or len(days) > MAX_LOCKS or days[-1] > MAX_LOCK_DAYS:
        yield f"compute_locks {days} do not ascend from 0 to at most {MAX_LOCK_DAYS} days"
    elif (
        multipliers != sorted(multipliers) or not 1 <= multipliers[0] <= multipliers[-1] <= MAX_MULTIPLIER_BPS
    ):
        yield f"the multipliers {multipliers} do not ascend from 1 to at most {MAX_MULTIPLIER_BPS}"


def _catalogue_faults(models: tuple[tuple[str, int], ...]) -> Iterator[str]:
    names = [name for name, _ in models]
    if names != sorted(set(names)) or len(names) > MAX_CATALOGUE:
        yield f"the models are not sorted by manifest, each once, at most {MAX_CATALOGUE}"
    for name, standing in models:
        if not _MANIFEST.fullmatch(name):
            yield f"{name[:80]!r} is no manifest hash of 0x and 64 lower-case hex digits"
        if standing not in (ModelStanding.ENFORCED, ModelStanding.DELISTED):
            yield f"the model {name[:80]} is not enforced (1) or delisted (2); one in shadow is not named"


def _price_faults(prices: PriceTable) -> Iterator[str]:
    if not 1 <= prices.version < 1 << 32:
        yield f"there is no price table version {prices.version}"
    names = [name for name, _ in prices.models]
    if names != sorted(set(names)) or len(names) > MAX_MODEL_PRICES:
        yield f"the models' prices are not sorted by manifest, each once, at most {MAX_MODEL_PRICES}"
    for name, price in (("default", prices.default), *prices.models):
        if name != "default" and not _MANIFEST.fullmatch(name):
            yield f"{name[:80]!r} is no manifest hash of 0x and 64 lower-case hex digits"
        if not all(0 <= number <= MAX_PRICE_MICRO for number in _numbers(price)):
            yield f"the price {name[:80]} is not between 0 and {MAX_PRICE_MICRO}"


def _numbers(price: ModelPrice) -> tuple[int, int, int]:
    return price.input_micro_per_mtok, price.output_micro_per_mtok, price.minimum_micro
