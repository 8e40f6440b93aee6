"""What differs between two documents of the network's parameters, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from emcd.money import format_credits_floor, format_token_floor
from emcd.proto.parameters import ParameterSet
from emcd.proto.params import ModelPrice, ModelStanding, NetworkParams


def list_differences(before: ParameterSet, after: ParameterSet) -> tuple[str, ...]:
    """What differs between two documents, a sentence each; versions are not mentioned."""
    found = [
        f"{_title(name)}: {_shown(name, old)} becomes {_shown(name, new)}"
        for name in NetworkParams.__struct_fields__
        if name not in ("version", "compute_locks", "models")
        and (old := getattr(before.params, name)) != (new := getattr(after.params, name))
    ]
    found += _lock_differences(dict(before.params.compute_locks), dict(after.params.compute_locks))
    found += _standing_differences(dict(before.params.models), dict(after.params.models))
    old_prices = {"other models": before.prices.default, **dict(before.prices.models)}
    new_prices = {"other models": after.prices.default, **dict(after.prices.models)}
    for name in (*old_prices, *(name for name in new_prices if name not in old_prices)):
        found += _price_differences(name, old_prices.get(name), new_prices.get(name))
    return tuple(found)


def _title(name: str) -> str:
    for unit in ("_wei", "_micro", "_ms", "_s", "_bps"):
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def _shown(name: str, value: int | bytes) -> str:
    if isinstance(value, bytes):
        return f"{format_token_floor(int.from_bytes(value, 'big'))} token"
    if name.endswith("_micro"):
        return f"{format_credits_floor(value, 6)} credits"
    if name.endswith("_bps"):
        return f"{value // 100}.{value % 100:02d} %"
    for suffix, unit in (("_ms", "ms"), ("_s", "s"), ("_rounds", "rounds"), ("_days", "days")):
        if name.endswith(suffix):
            return f"{value} {unit}"
    return str(value)


def _lock_differences(before: dict[int, int], after: dict[int, int]) -> Iterator[str]:
    for days in sorted(before.keys() | after.keys()):
        old, new = before.get(days), after.get(days)
        if old is None and new is not None:
            yield f"compute lock of {days} days: new, with multiplier {_factor(new)}"
        elif new is None:
            yield f"compute lock of {days} days: gone"
        elif old is not None and old != new:
            yield f"compute lock of {days} days: multiplier {_factor(old)} becomes {_factor(new)}"


def _factor(bps: int) -> str:
    return f"{bps // 10_000}.{bps % 10_000:04d}"


_STANDINGS = {
    ModelStanding.SHADOW: "in shadow (a FAIL is written down and costs nothing)",
    ModelStanding.ENFORCED: "enforced (a FAIL costs the round, two suspend)",
    ModelStanding.DELISTED: "delisted (nobody may sell it)",
}


def _standing_differences(before: dict[str, int], after: dict[str, int]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        old, new = (ModelStanding(table.get(name, ModelStanding.SHADOW)) for table in (before, after))
        if old is not new:
            yield f"model {name}: {_STANDINGS[old]} becomes {_STANDINGS[new]}"


def _price_differences(name: str, before: ModelPrice | None, after: ModelPrice | None) -> Iterator[str]:
    label = "price of " + name
    if after is None:
        yield f"{label}: gone, the price of other models counts"
    elif before is None:
        prices = ", ".join(_credits(number) for number in _numbers(after))
        yield f"{label}: new, {prices} credits (a million tokens in, out, least a call)"
    else:
        units = ("a million input tokens", "a million output tokens", "least a call")
        for unit, old, new in zip(units, _numbers(before), _numbers(after), strict=True):
            if old != new:
                yield f"{label}, {unit}: {_credits(old)} credits becomes {_credits(new)}"


def _credits(micro: int) -> str:
    return format_credits_floor(micro, 6)


def _numbers(price: ModelPrice) -> tuple[int, int, int]:
    return price.input_micro_per_mtok, price.output_micro_per_mtok, price.minimum_micro
