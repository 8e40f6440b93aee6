"""The statistic of a probe and what it says. Source: VERIFICATION 2 and 5.3.

Thresholds belong to the numeric class that the manifest declares. A statistic above its tau but
within that of a lower class is CLASS: precision misdeclared, never GROSS. Invariant: pure
functions of public data, so honest validators agree but for their own noise, which is far below
tau.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from enum import StrEnum

from emcd.proto.messages import Verdict

STATISTIC_SCALE = 10**12
MAX_STATISTIC_E12 = 2**64 - 1
GROSS_FACTOR = 10
SPREAD_FACTOR = 5


class NumericClass(StrEnum):
    """The declared precision of a model's arithmetic; TF32 counts as fp16."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


EMBED_TAU_E12 = {
    NumericClass.FP32: 100_000_000,  # 1e-4
    NumericClass.FP16: 3_000_000_000,  # 3e-3
    NumericClass.BF16: 20_000_000_000,  # 2e-2
}


def relative_l2(reference: Sequence[float], answer: Sequence[float]) -> float:
    """|answer - reference| / |reference|.

    Raises: ValueError when the lengths differ, a number is not finite or the reference is zero.
    """
    if len(reference) != len(answer):
        raise ValueError(f"the answer has {len(answer)} numbers, the reference {len(reference)}")
    if not all(map(math.isfinite, answer)) or not all(map(math.isfinite, reference)):
        raise ValueError("a number is not finite")
    norm = math.hypot(*reference)
    if norm == 0:
        raise ValueError("the reference is zero")
    return math.dist(reference, answer) / norm


def statistic_e12(value: float) -> int:
    """The statistic as an integer: times 10**12, rounded down, at most 2**64 - 1.

    Raises: ValueError when it is negative or NaN.
    """
    if math.isnan(value) or value < 0:
        raise ValueError(f"{value} is no statistic")
    scaled = value * STATISTIC_SCALE
    return math.floor(scaled) if scaled < MAX_STATISTIC_E12 else MAX_STATISTIC_E12


def max_statistic_e12(references: Sequence[Sequence[float]], answers: Sequence[Sequence[float]]) -> int:
    """The worst of several inputs. Raises: ValueError as `relative_l2`, or when the counts differ."""
    if not references or len(references) != len(answers):
        raise ValueError(f"{len(references)} vectors were asked for, {len(answers)} came")
    return max(statistic_e12(relative_l2(a, b)) for a, b in zip(references, answers, strict=True))


def judge(
    numeric_class: NumericClass, statistic: int, *, tau_e12: int | None = None, spread_e12: int = 0
) -> Verdict:
    """PASS, CLASS, FAIL or GROSS.

    Args: `tau_e12` is the manifest's calibrated threshold instead of the class's own; `spread_e12`
    how far the validator's own reruns lie apart: nothing fails within 5 times that.
    """
    tau = EMBED_TAU_E12[numeric_class] if tau_e12 is None else tau_e12
    bound = max(tau, SPREAD_FACTOR * spread_e12)
    if statistic <= bound:
        return Verdict.PASS
    if any(bound < statistic <= lower for lower in EMBED_TAU_E12.values() if lower > tau):
        return Verdict.CLASS
    return Verdict.GROSS if statistic >= GROSS_FACTOR * bound else Verdict.FAIL


def decode_float32(data: bytes) -> tuple[float, ...]:
    """Little-endian float32 numbers, as in the base64 form of an embedding.

    Raises: ValueError when the length is no multiple of 4.
    """
    if len(data) % 4:
        raise ValueError(f"{len(data)} bytes are no row of float32")
    return struct.unpack(f"<{len(data) // 4}f", data)
