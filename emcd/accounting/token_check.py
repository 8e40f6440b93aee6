"""What the tokens and logprobs of an answer say of the model that made them. Source: VERIFICATION 3, 5.2, 5.3.

`d` compares the reported logprobs with the judge's own: another model, other arithmetic. `m` asks
whether the tokens are those that the declared sampler draws, or at temperature 0 the best ones: logprobs
can be bought from the true model with one prefill, the choice of tokens can't. `w` is the worst window
of `m`: a small part of an answer from elsewhere. `first` is `d` of a single position, with thresholds of
its own; `z` compares what a foreign sampler drew with what it should draw, and only makes suspicious.

Invariants: pure functions of public numbers; a value is rounded down to 1e-12 before it is compared; a
token that arithmetic of the declared class may have let in by rounding is never called out of bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from emcd.accounting.gumbel import CANDIDATES, gumbel_noises
from emcd.accounting.verdict import (
    GROSS_FACTOR,
    SPREAD_FACTOR,
    STATISTIC_SCALE,
    NumericClass,
    statistic_e12,
)
from emcd.proto.messages import Verdict

MARGIN_CAP = 5.0
WINDOW_TOKENS = 16
_DIFFERENCE_CAP = 100.0
_LEAST_TOLERANCE = 1e-3
_LOGIT_TOLERANCE_FACTOR = 5
"""A single token's logit strays further than the mean over the best ones, which is what `d` bounds."""


class ProbeKind(StrEnum):
    """What a probe may be judged by."""

    EMBED = "embed"
    SEEDED = "gen.seeded"
    GREEDY = "gen.greedy"
    FREE = "gen.free"
    FIRST = "first"


class Thresholds(NamedTuple):
    """What an honest answer stays below, times 10**12."""

    d_e12: int
    m_e12: int
    w_e12: int
    first_e12: int


TEXT_THRESHOLDS = {
    NumericClass.FP32: Thresholds(200_000_000, 100_000_000, 400_000_000, 200_000_000),
    NumericClass.FP16: Thresholds(3_000_000_000, 500_000_000, 2_000_000_000, 6_000_000_000),
    NumericClass.BF16: Thresholds(20_000_000_000, 5_000_000_000, 20_000_000_000, 40_000_000_000),
}


@dataclass(frozen=True)
class Sampling:
    """What the request asks of the sampler; `top_p` outside of (0, 1) and `top_k` below 1 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


class FreeStep(NamedTuple):
    """One drawn token under the judge's own distribution, cut as the request asks.

    Args: `variance` of the surprisal, whose mean is `entropy`; all natural logarithms.
    """

    surprisal: float
    entropy: float
    variance: float


class Position(NamedTuple):
    """One output token as the node reported it and as the judge's own prefill sees it.

    Args:
        reported: natural logprobs by id, as the node gave them; not empty.
        own: the judge's logprobs of at least these ids.
        chosen, chosen_logit: the token of the answer, and the judge's own logit of it.
        candidates: the judge's 64 best (id, logit), by logit descending, then id ascending.
        log_total: own logsumexp of logits / temperature over the vocabulary; of the logits at 0.
        free: for `gen.free` alone.
    """

    reported: Mapping[int, float]
    own: Mapping[int, float]
    chosen: int
    chosen_logit: float
    candidates: Sequence[tuple[int, float]]
    log_total: float
    free: FreeStep | None = None


@dataclass(frozen=True)
class TextStatistics:
    """Statistics of one answer, times 10**12; those of a spread are how far two own runs lie apart."""

    d_e12: int = 0
    m_e12: int = 0
    w_e12: int = 0
    first_e12: int = 0
    z_sum: float = 0.0
    z_variance: float = 0.0
    positions: int = 0

    def value(self, name: str) -> int:
        """The statistic of a name of `judged_names`."""
        return {"d": self.d_e12, "m": self.m_e12, "w": self.w_e12, "first": self.first_e12}[name]

    @property
    def z(self) -> float:
        """How surprising the tokens are, in standard deviations; 0 where nothing was to be drawn."""
        return self.z_sum / math.sqrt(self.z_variance) if self.z_variance > 0 else 0.0


@dataclass(frozen=True)
class TextJudgement:
    """The verdict on one answer.

    Attributes:
        statistic_e12: the largest of the judged statistics as a share of its threshold, times 10**12.
        judged: the statistics that counted; `worst` is the one that `statistic_e12` is about.
    """

    verdict: Verdict
    statistic_e12: int
    statistics: TextStatistics
    judged: tuple[str, ...]
    worst: str

    @property
    def d(self) -> float:
        return self.statistics.d_e12 / STATISTIC_SCALE

    @property
    def m(self) -> float:
        return self.statistics.m_e12 / STATISTIC_SCALE

    @property
    def w(self) -> float:
        return self.statistics.w_e12 / STATISTIC_SCALE

    @property
    def first(self) -> float:
        return self.statistics.first_e12 / STATISTIC_SCALE


def judged_names(kind: ProbeKind, *, judges_tokens: bool = True) -> tuple[str, ...]:
    """The statistics that may convict.

    Args: `judges_tokens`: the manifest's sampler is `emcd-gumbel-v1`; the best token of temperature 0
    needs no sampler and is always judged.
    """
    if kind is ProbeKind.FIRST:
        return ("first",)
    if kind is ProbeKind.GREEDY or (kind is ProbeKind.SEEDED and judges_tokens):
        return ("d", "m", "w")
    return ("d",)


def measure_text(
    kind: ProbeKind, positions: Sequence[Position], sampling: Sampling, thresholds: Thresholds
) -> TextStatistics:
    """The statistics of an answer.

    Args: `thresholds`: how far the declared arithmetic may stray, for tokens at the edge of a cut.
    Raises: ValueError without positions, or when a position lacks an own logprob.
    """
    if not positions:
        raise ValueError("an answer without tokens has no statistic")
    differences = [_logprob_difference(position.reported, position.own) for position in positions]
    margins = _margins(kind, positions, sampling, thresholds)
    steps = [position.free for position in positions if position.free is not None]
    return _summary(differences, margins, steps)


def measure_spread(
    kind: ProbeKind,
    positions: Sequence[Position],
    again: Sequence[Position],
    sampling: Sampling,
    thresholds: Thresholds,
) -> TextStatistics:
    """How far two own runs of the same tokens lie apart, in each statistic.

    Raises: ValueError as `measure_text`, or when the runs are not of the same tokens.
    """
    if [item.chosen for item in positions] != [item.chosen for item in again] or not positions:
        raise ValueError("the runs are not of the same tokens")
    differences = [_logprob_difference(a.own, b.own) for a, b in zip(positions, again, strict=True)]
    first, second = (_margins(kind, run, sampling, thresholds) for run in (positions, again))
    return _summary(differences, [abs(a - b) for a, b in zip(first, second, strict=True)], ())


def judge_text(
    kind: ProbeKind,
    positions: Sequence[Position],
    sampling: Sampling,
    *,
    numeric_class: NumericClass,
    thresholds: Thresholds | None = None,
    judges_tokens: bool = True,
    spread: TextStatistics | None = None,
) -> TextJudgement:
    """PASS, CLASS, FAIL or GROSS of an answer whose shape, text and token count are right.

    Args: `thresholds` the manifest's own instead of the class's; `spread` how far own reruns lie
    apart: nothing fails within 5 times that.
    """
    own = TEXT_THRESHOLDS[numeric_class] if thresholds is None else thresholds
    statistics = measure_text(kind, positions, sampling, own)
    return judge_statistics(
        kind,
        statistics,
        numeric_class=numeric_class,
        thresholds=own,
        judges_tokens=judges_tokens,
        spread=spread,
    )


def judge_statistics(
    kind: ProbeKind,
    statistics: TextStatistics,
    *,
    numeric_class: NumericClass,
    thresholds: Thresholds | None = None,
    judges_tokens: bool = True,
    spread: TextStatistics | None = None,
) -> TextJudgement:
    """The same of statistics that were measured before: the verdict stands without a second run."""
    own = TEXT_THRESHOLDS[numeric_class] if thresholds is None else thresholds
    names = judged_names(kind, judges_tokens=judges_tokens)
    slack = spread or TextStatistics()
    bounds = {name: max(_tau(own, name), SPREAD_FACTOR * slack.value(name)) for name in names}
    shares = {name: statistics.value(name) * STATISTIC_SCALE // max(1, _tau(own, name)) for name in names}
    worst = max(names, key=lambda name: shares[name])
    verdict = _band(statistics, bounds, numeric_class)
    return TextJudgement(verdict, min(shares[worst], 2**64 - 1), statistics, names, worst)


def _band(statistics: TextStatistics, bounds: Mapping[str, int], numeric_class: NumericClass) -> Verdict:
    """CLASS needs the logprobs themselves to be those of a lower class.

    Exact logprobs with other tokens are no arithmetic: laundered, they are FAIL or GROSS.
    """
    if all(statistics.value(name) <= bound for name, bound in bounds.items()):
        return Verdict.PASS
    distance = next(iter(bounds))  # d, or first
    if statistics.value(distance) > bounds[distance]:
        classes = list(NumericClass)
        for lower in classes[classes.index(numeric_class) + 1 :]:
            row = TEXT_THRESHOLDS[lower]
            if all(statistics.value(name) <= max(_tau(row, name), bound) for name, bound in bounds.items()):
                return Verdict.CLASS
    is_gross = any(statistics.value(name) >= GROSS_FACTOR * bound for name, bound in bounds.items())
    return Verdict.GROSS if is_gross else Verdict.FAIL


def _tau(thresholds: Thresholds, name: str) -> int:
    value: int = getattr(thresholds, f"{name}_e12")
    return value


def _summary(
    differences: Sequence[float], margins: Sequence[float], steps: Sequence[FreeStep]
) -> TextStatistics:
    count = len(differences)
    return TextStatistics(
        statistic_e12(math.fsum(differences) / count),
        statistic_e12(math.fsum(margins) / count),
        statistic_e12(_worst_window(margins)),
        statistic_e12(differences[0]),
        math.fsum(step.surprisal - step.entropy for step in steps),
        math.fsum(step.variance for step in steps),
        count,
    )


def _worst_window(margins: Sequence[float]) -> float:
    size = min(WINDOW_TOKENS, len(margins))
    windows = (margins[start : start + size] for start in range(len(margins) - size + 1))
    return max(math.fsum(window) for window in windows) / size


def _logprob_difference(reported: Mapping[int, float], own: Mapping[int, float]) -> float:
    """Mean over the reported ids; what is no number counts as far off."""
    if not reported or not reported.keys() <= own.keys():
        raise ValueError("every reported token needs an own logprob, and one must be reported")
    gaps = [abs(value - own[token]) for token, value in reported.items()]
    return math.fsum(min(_DIFFERENCE_CAP, gap) for gap in gaps) / len(gaps)


def _margins(
    kind: ProbeKind, positions: Sequence[Position], sampling: Sampling, thresholds: Thresholds
) -> list[float]:
    if kind is ProbeKind.GREEDY or sampling.temperature <= 0:
        return [_cut(position.candidates[0][1] - position.chosen_logit) for position in positions]
    if kind is not ProbeKind.SEEDED:
        return [0.0] * len(positions)
    tolerance = max(_LEAST_TOLERANCE, thresholds.d_e12 / STATISTIC_SCALE)
    return [_seeded_margin(position, sampling, t, tolerance) for t, position in enumerate(positions)]


def _seeded_margin(position: Position, sampling: Sampling, t: int, tolerance: float) -> float:
    """How far the chosen token's score is behind the best one that may be drawn. Source: Token-DiFR."""
    if _is_outside(position, sampling, tolerance):
        return MARGIN_CAP
    temperature = sampling.temperature
    allowed = _surely_allowed(position, sampling, tolerance)
    noises = gumbel_noises(sampling.seed, t, [position.chosen, *(token for token, _ in allowed)])
    score = position.chosen_logit + temperature * noises[0]
    best = (logit + temperature * noise for (_, logit), noise in zip(allowed, noises[1:], strict=True))
    return _cut(max(best, default=score) - score)


def _rank_limit(sampling: Sampling) -> int:
    return min(CANDIDATES, sampling.top_k) if sampling.top_k > 0 else CANDIDATES


def _surely_allowed(position: Position, sampling: Sampling, tolerance: float) -> list[tuple[int, float]]:
    """The candidates that every honest run of the class lets in; maybe none.

    One at the edge of a cut may have been left out elsewhere, and so can't outbid the chosen token:
    whatever is behind it by less than the class's arithmetic strays may have been ahead of it.
    """
    slack = _LOGIT_TOLERANCE_FACTOR * tolerance
    ranked = position.candidates[:CANDIDATES]
    limit = _rank_limit(sampling)
    if limit < len(ranked) or len(ranked) == CANDIDATES:
        edge = ranked[min(limit, len(ranked) - 1)][1] + slack
        inside = [item for item in ranked if item[1] > edge]
    else:
        inside = list(ranked)
    if not 0 < sampling.top_p < 1:
        return inside
    shares = [math.exp(logit / sampling.temperature - position.log_total) for _, logit in ranked]
    allowed: list[tuple[int, float]] = []
    ahead, reached = 0, 0.0
    for index, item in enumerate(inside):
        while ahead < len(ranked) and ranked[ahead][1] > item[1] - slack:
            reached += shares[ahead]
            ahead += 1
        if reached - shares[index] + tolerance >= sampling.top_p and (index or ahead > 1):
            break
        allowed.append(item)
    return allowed


def _is_outside(position: Position, sampling: Sampling, tolerance: float) -> bool:
    """Whether no honest run of the class can have drawn the chosen token.

    Those that are ahead by more than the class's arithmetic strays are counted; if they fill the cut,
    nothing lets the token in.
    """
    edge = position.chosen_logit + _LOGIT_TOLERANCE_FACTOR * tolerance
    ahead = [logit for _, logit in position.candidates[:CANDIDATES] if logit > edge]
    if len(ahead) >= _rank_limit(sampling):
        return True
    if not 0 < sampling.top_p < 1:
        return False
    reached = math.fsum(math.exp(logit / sampling.temperature - position.log_total) for logit in ahead)
    return reached > sampling.top_p + tolerance


def _cut(margin: float) -> float:
    return min(MARGIN_CAP, max(0.0, margin))
