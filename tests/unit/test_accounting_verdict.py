from __future__ import annotations

import math
import struct

import pytest

from emcd.accounting.verdict import (
    MAX_STATISTIC_E12,
    NumericClass,
    decode_float32,
    judge,
    max_statistic_e12,
    relative_l2,
    statistic_e12,
)
from emcd.proto.messages import Verdict

FP32, FP16, BF16 = NumericClass.FP32, NumericClass.FP16, NumericClass.BF16


@pytest.mark.parametrize(
    ("numeric_class", "statistic", "verdict"),
    [
        (FP32, 0.0, Verdict.PASS),
        (FP32, 1.33e-6, Verdict.PASS),  # honest PyTorch fp32
        (FP32, 1e-4, Verdict.PASS),
        (FP32, 1.93e-3, Verdict.CLASS),  # honest fp16, declared as fp32
        (FP32, 1.30e-2, Verdict.CLASS),  # honest bf16, declared as fp32
        (FP32, 4.5e-2, Verdict.GROSS),  # fp8 weights
        (FP32, 0.77, Verdict.GROSS),  # a layer left out
        (FP16, 1.93e-3, Verdict.PASS),
        (FP16, 1.30e-2, Verdict.CLASS),
        (FP16, 2.2e-2, Verdict.FAIL),  # int8 weights, per channel
        (FP16, 7.7e-2, Verdict.GROSS),  # dynamic int8
        (BF16, 1.30e-2, Verdict.PASS),
        (BF16, 7.7e-2, Verdict.FAIL),
        (BF16, 0.21, Verdict.GROSS),
    ],
)
def test_judge_measured_configurations(
    numeric_class: NumericClass, statistic: float, verdict: Verdict
) -> None:
    assert judge(numeric_class, statistic_e12(statistic)) is verdict


@pytest.mark.parametrize(
    ("statistic", "verdict"),
    [(20_000_000_000, Verdict.PASS), (20_000_000_001, Verdict.FAIL), (199_999_999_999, Verdict.FAIL),
     (200_000_000_000, Verdict.GROSS), (MAX_STATISTIC_E12, Verdict.GROSS)],
)  # fmt: skip
def test_judge_bands_end_where_they_should(statistic: int, verdict: Verdict) -> None:
    assert judge(BF16, statistic) is verdict


def test_judge_within_five_times_the_spread_never_fails() -> None:
    assert judge(BF16, 100_000_000_000, spread_e12=20_000_000_000) is Verdict.PASS
    assert judge(BF16, 100_000_000_001, spread_e12=20_000_000_000) is Verdict.FAIL


def test_judge_manifest_threshold_replaces_that_of_the_class() -> None:
    assert judge(BF16, 5_000, tau_e12=400) is Verdict.CLASS
    assert judge(BF16, 5_000, tau_e12=5_000) is Verdict.PASS


def test_relative_l2_is_the_distance_over_the_norm() -> None:
    assert relative_l2([3.0, 4.0], [3.0, 4.5]) == pytest.approx(0.1)
    assert relative_l2([1e-200, 0.0], [1e-200, 0.0]) == 0.0


@pytest.mark.parametrize(
    ("reference", "answer"),
    [([1.0], [1.0, 2.0]), ([0.0, 0.0], [1.0, 1.0]), ([1.0], [math.nan]), ([1.0], [math.inf]), ([], [])],
)
def test_relative_l2_of_what_is_no_answer_is_refused(reference: list[float], answer: list[float]) -> None:
    with pytest.raises(ValueError):
        relative_l2(reference, answer)


def test_statistic_is_cut_and_capped() -> None:
    assert statistic_e12(1.9999999e-12) == 1
    assert statistic_e12(1e300) == MAX_STATISTIC_E12
    assert statistic_e12(math.inf) == MAX_STATISTIC_E12


@pytest.mark.parametrize("value", [-1e-9, math.nan])
def test_statistic_of_no_distance_is_refused(value: float) -> None:
    with pytest.raises(ValueError):
        statistic_e12(value)


def test_max_statistic_is_the_worst_of_the_inputs() -> None:
    assert max_statistic_e12([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.5]]) == 500_000_000_000


@pytest.mark.parametrize(("references", "answers"), [([], []), ([[1.0]], []), ([[1.0]], [[1.0], [1.0]])])
def test_max_statistic_other_count_is_refused(
    references: list[list[float]], answers: list[list[float]]
) -> None:
    with pytest.raises(ValueError):
        max_statistic_e12(references, answers)


def test_decode_float32_is_little_endian() -> None:
    assert decode_float32(struct.pack("<3f", 1.0, -0.5, 2.0)) == (1.0, -0.5, 2.0)
    with pytest.raises(ValueError):
        decode_float32(b"123")
