"""The statistics that the benchmarks report, and the sums of a profile."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.parts import sum_parts
from tests.bench.statistic import percentile, ratio, slope, spread

VALUES = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


@pytest.mark.parametrize("share", [0, -0.5, 1.01, 99])
def test_percentile_of_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        percentile([1.0], share)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.001, 1), (0.01, 1)]
)
def test_percentile_of_a_hundred_is_the_one_at_its_rank(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 0.5))


@given(VALUES, st.floats(0.001, 1))
def test_percentile_is_reached_by_its_share_and_by_no_smaller_value(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


@given(VALUES)
def test_spread_holds_its_median_between_its_ends(values: list[float]) -> None:
    found = spread(values)
    assert (found.low, found.high) == (min(values), max(values))
    assert found.low <= found.median <= found.high


def test_spread_of_three_ignores_the_outlier_in_its_median() -> None:
    assert spread([10, 1000, 11]) == (11, 10, 1000)


def test_spread_of_nothing_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in spread([]))


def test_ratio_to_nothing_is_not_a_number() -> None:
    assert ratio(10, 4) == 2.5
    assert math.isnan(ratio(10, 0))


def test_slope_of_uneven_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x and 1 y"):
        slope([1, 2], [1])


def test_slope_of_one_moment_is_not_a_number() -> None:
    assert math.isnan(slope([5, 5], [1, 2]))
    assert math.isnan(slope([], []))


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30, unique=True), st.integers(-50, 50))
def test_slope_of_a_line_is_its_own(xs: list[int], rise: int) -> None:
    assert slope(xs, [3 + rise * x for x in xs]) == pytest.approx(rise, abs=1e-6)


def test_slope_of_noise_around_a_level_is_small() -> None:
    assert abs(slope(range(100), [50 + (-1) ** n for n in range(100)])) < 0.01


def test_sum_parts_gives_a_sample_to_its_innermost_part_and_leaves_waiting_out() -> None:
    loop = "run (trio/_core/_run.py:1);serve (emcd_hub/calls/gateway.py:9)"
    lines = [
        f"{loop};commit (emcd/ledger/writer.py:5);execute (sqlite3/x.py:1) 5",
        f"{loop};receive (emcd/net/http_transport.py:87) 3",
        f"{loop} 2",
        "main (elsewhere.py:1) 1",
        "bootstrap (threading.py:1);Writer._run (emcd/ledger/writer.py:94) 100",
        "",
    ]
    expected = {"ledger": 5, "HTTP": 3, "calls and records": 2, "other": 1}
    assert sum_parts(lines) == expected
