"""The few statistics that the benchmarks report. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median as _median
from typing import NamedTuple


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; nan of none.

    Args:
        share: above 0, at most 1: 0.99 for the 99th percentile.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share}")
    if not values:
        return math.nan
    return sorted(values)[math.ceil(len(values) * share) - 1]


class Spread(NamedTuple):
    """Several rounds of one figure."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest; nan of none."""
    if not values:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(_median(values), min(values), max(values))


def ratio(ours: float, theirs: float) -> float:
    """How many times theirs ours is; nan when theirs is nothing."""
    return ours / theirs if theirs > 0 else math.nan


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """What y grows by while x grows by one: the least squares line; nan of fewer than two x."""
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} x and {len(ys)} y")
    if len(set(xs)) < 2:
        return math.nan
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return over / sum((x - x_mean) ** 2 for x in xs)
