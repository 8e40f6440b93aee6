"""Parameters and prices changed by name: the tables of a deployment's plan, and `--set NAME=VALUE`. Pure.

Names are `params.FIELD`, `prices.default.FIELD`, `prices.models.MANIFEST.FIELD`,
`params.compute_locks.DAYS` and `params.models.MANIFEST`, whose value is a standing: shadow, enforced
or delisted. An amount may be given in token: `compute_minimum_token` sets `compute_minimum_wei`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from emcd.config.fault import did_you_mean
from emcd.money import decode_wei, encode_wei, format_token_floor, parse_token
from emcd.proto.parameters import ParameterSet
from emcd.proto.params import ModelPrice, ModelStanding, NetworkParams, PriceTable

_FIELDS = NetworkParams.__struct_fields__
_AMOUNTS = tuple(name for name in _FIELDS if name.endswith("_wei"))
_IN_TOKEN = {name.removesuffix("_wei") + "_token": name for name in _AMOUNTS}
_PRICE_FIELDS = ModelPrice.__struct_fields__
_LOCKS = "compute_locks"
_CATALOGUE = "models"
_STANDINGS = {standing.name.lower(): standing for standing in ModelStanding}
_NUMBERED = ("version",)
_GONE = "none"


def flatten(table: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Every value of nested TOML tables with its name."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{where}.{key}")
        else:
            yield f"{where}.{key}", value


def parse_assignment(text: str) -> tuple[str, str]:
    """NAME=VALUE. Raises: ValueError."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise ValueError(f"{text!r} is not NAME=VALUE")
    return name.strip(), value.strip()


def assign(parameters: ParameterSet, name: str, value: Any) -> ParameterSet:
    """The set with one value changed. Raises: ValueError saying what is wrong with name or value."""
    head, _, rest = name.partition(".")
    if head == "prices":
        return ParameterSet(parameters.params, _assign_price(parameters.prices, rest, value))
    return ParameterSet(
        _assign_param(parameters.params, rest if head == "params" else name, value), parameters.prices
    )


def _assign_param(params: NetworkParams, name: str, value: Any) -> NetworkParams:
    head, _, rest = name.partition(".")
    if head == _LOCKS and rest:
        locks = _assign_lock(dict(params.compute_locks), rest, value)
        return msgspec.structs.replace(params, compute_locks=locks)
    if head == _CATALOGUE and rest:
        models = _assign_standing(dict(params.models), rest, value)
        return msgspec.structs.replace(params, models=models)
    if name in _IN_TOKEN:
        return msgspec.structs.replace(params, **{_IN_TOKEN[name]: encode_wei(parse_token(str(value)))})
    known = (*(field for field in _FIELDS if field not in (*_NUMBERED, _LOCKS, _CATALOGUE)), *_IN_TOKEN)
    if name not in known:
        raise ValueError(f"there is no parameter {name!r}{did_you_mean(name, known)}")
    number = _number(value)
    return msgspec.structs.replace(params, **{name: encode_wei(number) if name in _AMOUNTS else number})


def _assign_lock(locks: dict[int, int], days: str, value: Any) -> tuple[tuple[int, int], ...]:
    if not days.isascii() or not days.isdigit():
        raise ValueError(f"a lock is named by its days, not {days!r}")
    if value == _GONE:
        locks.pop(int(days), None)
    else:
        locks[int(days)] = _number(value)
    return tuple(sorted(locks.items()))


def _assign_standing(models: dict[str, int], manifest: str, value: Any) -> tuple[tuple[str, int], ...]:
    standing = _STANDINGS.get(str(value))
    if standing is None:
        known = ", ".join(_STANDINGS)
        raise ValueError(
            f"a model's standing is {known}, not {value!r}{did_you_mean(str(value), _STANDINGS)}"
        )
    models[manifest] = standing
    return tuple((name, row) for name, row in sorted(models.items()) if row != ModelStanding.SHADOW)


def _assign_price(prices: PriceTable, name: str, value: Any) -> PriceTable:
    head, _, rest = name.partition(".")
    if head == "default":
        return msgspec.structs.replace(prices, default=_set_price(prices.default, rest, value))
    if head != "models" or not rest:
        raise ValueError("prices are named default.FIELD or models.MANIFEST.FIELD")
    manifest, _, field = rest.partition(".")
    models = dict(prices.models)
    if not field and value == _GONE:
        models.pop(manifest, None)
    else:
        models[manifest] = _set_price(models.get(manifest, prices.default), field, value)
    return msgspec.structs.replace(prices, models=tuple(sorted(models.items())))


def _set_price(price: ModelPrice, field: str, value: Any) -> ModelPrice:
    if field not in _PRICE_FIELDS:
        raise ValueError(
            f"a price has {', '.join(_PRICE_FIELDS)}, not {field!r}{did_you_mean(field, _PRICE_FIELDS)}"
        )
    return msgspec.structs.replace(price, **{field: _number(value)})


def _number(value: Any) -> int:
    text = str(value).replace("_", "")
    if isinstance(value, bool) or not text.isascii() or not text.isdigit():
        raise ValueError(f"{value!r} is no whole number")
    return int(text)


def list_values(parameters: ParameterSet) -> list[tuple[str, str]]:
    """Every value by the name that `assign` takes, amounts in token."""
    rows = []
    for name in _FIELDS:
        value = getattr(parameters.params, name)
        if name in _AMOUNTS:
            token = format_token_floor(decode_wei(value), 18).replace(",", "").rstrip("0").rstrip(".")
            rows.append((f"params.{name.removesuffix('_wei')}_token", token))
        elif name == _LOCKS:
            rows += [(f"params.{_LOCKS}.{days}", str(bps)) for days, bps in value]
        elif name == _CATALOGUE:
            rows += [(f"params.{_CATALOGUE}.{row[0]}", ModelStanding(row[1]).name.lower()) for row in value]
        else:
            rows.append((f"params.{name}", str(value)))
    for label, price in (("default", parameters.prices.default), *_named(parameters.prices)):
        rows += [(f"prices.{label}.{field}", str(getattr(price, field))) for field in _PRICE_FIELDS]
    return rows


def _named(prices: PriceTable) -> list[tuple[str, ModelPrice]]:
    return [(f"models.{manifest}", price) for manifest, price in prices.models]
