"""Statistics of tokens: against a second implementation; honest arithmetic passes, cheats do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from emcd.accounting.token_check import (
    TEXT_THRESHOLDS,
    FreeStep,
    Position,
    ProbeKind,
    Sampling,
    TextJudgement,
    TextStatistics,
    Thresholds,
    judge_statistics,
    judge_text,
    judged_names,
    measure_spread,
    measure_text,
)
from emcd.accounting.verdict import NumericClass
from emcd.proto.messages import Verdict
from tests.support import second_text_check as second
from tests.support.second_text_check import Answer, Asked, Floats

FP32, FP16, BF16 = NumericClass
SEEDED, GREEDY, FREE, FIRST = ProbeKind.SEEDED, ProbeKind.GREEDY, ProbeKind.FREE, ProbeKind.FIRST
STRAY = {FP32: 1e-6, FP16: 8e-4, BF16: 6e-3}
"""Standard deviation of an honest logit, so that d is about VERIFICATION 3's."""


def positions_of(rows: Floats, given: Answer, asked: Asked) -> list[Position]:
    positions = []
    for logits, token, reported in zip(rows, given.tokens, given.reported, strict=True):
        logprobs = second.log_softmax(logits)
        scaled = logits / asked.temperature if asked.temperature else logits
        total = float(scaled.max() + np.log(np.exp(scaled - scaled.max()).sum()))
        best = [(v, float(logits[v])) for v in second.ranked(logits)[:64]]
        own = {v: float(logprobs[v]) for v in reported}
        positions.append(Position(reported, own, token, float(logits[token]), best, total))
    return positions


def sampling_of(asked: Asked) -> Sampling:
    return Sampling(asked.temperature, asked.top_p, asked.top_k, asked.seed)


def judged(
    number: int,
    stray: float,
    asked: Asked,
    *,
    kind: ProbeKind = SEEDED,
    numeric_class: NumericClass = FP32,
    served: Asked | None = None,
    is_laundered: bool = False,
    tokens: int = 64,
    vocabulary: int = 300,
    judges_tokens: bool = True,
) -> TextJudgement:
    """A node whose logits stray so much serves, the true model judges."""
    rows = second.model_rows(number, tokens, vocabulary)
    node = rows + np.random.default_rng(10_000 + number).normal(0, stray, rows.shape)
    given = second.answer(node, served or asked)
    if is_laundered:
        given = second.launder(rows, given)
    return judge_text(
        kind,
        positions_of(rows, given, asked),
        sampling_of(asked),
        numeric_class=numeric_class,
        judges_tokens=judges_tokens,
    )


ASKED = (
    Asked(seed=1),
    Asked(0.4, seed=2),
    Asked(1.0, 0.9, seed=3),
    Asked(1.0, 1.0, 20, 4),
    Asked(0.7, 0.95, 40, 5),
    Asked(0.0),
)


@pytest.mark.parametrize("numeric_class", NumericClass)
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_honest_arithmetic_of_the_class_passes(numeric_class: NumericClass, asked: Asked) -> None:
    kind = GREEDY if asked.temperature == 0 else SEEDED
    for number in range(3):
        found = judged(number, STRAY[numeric_class], asked, kind=kind, numeric_class=numeric_class)
        assert found.verdict is Verdict.PASS, found


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("stray", [1e-6, 0.05])
@pytest.mark.parametrize("vocabulary", [12, 64, 200])
def test_statistics_are_those_of_the_second_implementation(
    asked: Asked, stray: float, vocabulary: int
) -> None:
    kind = GREEDY if asked.temperature == 0 else SEEDED
    for number in range(3):
        rows = second.model_rows(number, 20, vocabulary)
        node = rows + np.random.default_rng(number).normal(0, stray, rows.shape)
        given = second.answer(node, Asked(asked.temperature, 1.0, 0, asked.seed))
        expected = second.statistics(rows, given, asked, 2e-4, tokens=True)

        found = measure_text(
            kind, positions_of(rows, given, asked), sampling_of(asked), TEXT_THRESHOLDS[FP32]
        )

        for name, value in expected.items():
            assert found.value(name) / 1e12 == pytest.approx(value, rel=1e-9, abs=2e-12)


CHEATS = {
    "another temperature": (1e-6, Asked(seed=1), Asked(0.7, seed=1), False),
    "greedy": (1e-6, Asked(seed=1), Asked(0.0), False),
    "a silent top-k": (1e-6, Asked(seed=1), Asked(1.0, 1.0, 20, 1), False),
    "top-k not applied": (1e-6, Asked(1.0, 1.0, 10, 1), Asked(seed=1), False),
    "top-p not applied": (1e-6, Asked(1.0, 0.5, 0, 1), Asked(seed=1), False),
    "another seed": (1e-6, Asked(seed=1), Asked(seed=2), False),
    "cheaper weights": (0.2, Asked(seed=1), Asked(seed=1), False),
    "cheaper weights, laundered": (0.2, Asked(seed=1), Asked(seed=1), True),
    "cheaper weights, greedy and laundered": (0.2, Asked(0.0), Asked(0.0), True),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheat_is_gross(name: str) -> None:
    stray, asked, served, is_laundered = CHEATS[name]
    kind = GREEDY if asked.temperature == 0 else SEEDED
    for number in range(2):
        found = judged(number, stray, asked, kind=kind, served=served, is_laundered=is_laundered)
        assert found.verdict is Verdict.GROSS, found
        assert found.statistic_e12 >= 10 * 10**12


def test_laundered_answer_has_perfect_logprobs_and_other_tokens() -> None:
    found = judged(3, 0.2, Asked(seed=1), is_laundered=True)

    assert found.d == 0
    assert found.worst in ("m", "w")


@pytest.mark.parametrize(("stray", "numeric_class"), [(8e-4, FP32), (6e-3, FP32), (6e-3, FP16)])
def test_arithmetic_of_a_lower_class_is_class_and_never_gross(
    stray: float, numeric_class: NumericClass
) -> None:
    for number in range(2):
        found = judged(number, stray, Asked(seed=1), numeric_class=numeric_class)
        assert found.verdict is Verdict.CLASS
    assert judged(0, 6e-3, Asked(seed=1)).statistic_e12 > 10 * 10**12


def test_temperature_of_another_sampler_is_not_judged_by_its_tokens() -> None:
    asked, served = Asked(seed=1), Asked(0.7, seed=9)
    assert judged(1, 1e-6, asked, served=served).verdict is Verdict.GROSS
    assert judged(1, 1e-6, asked, served=served, judges_tokens=False).verdict is Verdict.PASS
    assert judged(1, 1e-6, asked, served=served, kind=FREE).verdict is Verdict.PASS
    assert judged(1, 0.5, asked, kind=FREE).verdict is Verdict.GROSS
    assert (
        judged(1, 0.5, Asked(0.0), kind=GREEDY, is_laundered=True, judges_tokens=False).verdict
        is Verdict.GROSS
    )


@pytest.mark.parametrize(
    ("kind", "judges_tokens", "names"),
    [
        (SEEDED, True, ("d", "m", "w")),
        (SEEDED, False, ("d",)),
        (GREEDY, False, ("d", "m", "w")),
        (FREE, True, ("d",)),
        (FIRST, True, ("first",)),
    ],
)
def test_kind_says_what_may_convict(kind: ProbeKind, judges_tokens: bool, names: tuple[str, ...]) -> None:
    assert judged_names(kind, judges_tokens=judges_tokens) == names


E = 10**8  # 1e-4, in 1e-12


@pytest.mark.parametrize(
    ("statistics", "verdict", "share"),
    [
        (TextStatistics(2 * E, E, 4 * E), Verdict.PASS, 10**12),
        (TextStatistics(2 * E + 1, 0, 0), Verdict.CLASS, None),
        (TextStatistics(30 * E, 5 * E, 20 * E), Verdict.CLASS, None),
        (TextStatistics(200 * E, 50 * E, 200 * E), Verdict.CLASS, None),
        (TextStatistics(200 * E + 1, 0, 0), Verdict.GROSS, None),
        (TextStatistics(0, E + 1, 0), Verdict.FAIL, 10**12),
        (TextStatistics(0, 10 * E - 1, 0), Verdict.FAIL, None),
        (TextStatistics(0, 10 * E, 0), Verdict.GROSS, 10**13),
        (TextStatistics(0, 0, 40 * E), Verdict.GROSS, 10**13),
        (TextStatistics(2 * E + 1, 51 * E, 0), Verdict.GROSS, None),
        (TextStatistics(3 * E, 6 * E, 0), Verdict.CLASS, None),
    ],
)
def test_bands_of_fp32(statistics: TextStatistics, verdict: Verdict, share: int | None) -> None:
    found = judge_statistics(SEEDED, statistics, numeric_class=FP32)

    assert found.verdict is verdict
    assert (found.statistic_e12 > 10**12) is (verdict is not Verdict.PASS) or found.statistic_e12 == 10**12
    assert share is None or abs(found.statistic_e12 - share) <= 10**4


def test_bf16_has_no_lower_class() -> None:
    statistics = TextStatistics(TEXT_THRESHOLDS[BF16].d_e12 + 1, 0, 0)
    assert judge_statistics(SEEDED, statistics, numeric_class=BF16).verdict is Verdict.FAIL


def test_thresholds_of_the_manifest_overrule_the_class() -> None:
    own = Thresholds(500 * E, 100 * E, 400 * E, 500 * E)
    judge = judge_statistics(SEEDED, TextStatistics(400 * E, 0, 0), numeric_class=FP32, thresholds=own)
    assert judge.verdict is Verdict.PASS
    over = judge_statistics(SEEDED, TextStatistics(501 * E, 0, 0), numeric_class=FP32, thresholds=own)
    assert over.verdict is Verdict.FAIL  # no class is wider than the manifest's own


def test_lower_class_is_no_narrower_than_the_manifest_and_the_own_spread() -> None:
    wide = Thresholds(2 * E, 100 * E, 400 * E, 2 * E)
    statistics = TextStatistics(3 * E, 50 * E, 0)
    assert judge_statistics(SEEDED, statistics, numeric_class=FP32, thresholds=wide).verdict is Verdict.CLASS
    narrow = judge_statistics(SEEDED, TextStatistics(3 * E, 51 * E, 0), numeric_class=FP32)
    assert narrow.verdict is Verdict.GROSS
    spread = TextStatistics(m_e12=11 * E)
    found = judge_statistics(SEEDED, TextStatistics(3 * E, 51 * E, 0), numeric_class=FP32, spread=spread)
    assert found.verdict is Verdict.CLASS


def test_own_spread_widens_every_threshold_five_times() -> None:
    statistics = TextStatistics(0, 40 * E, 0)
    narrow, wide = TextStatistics(m_e12=8 * E - 1), TextStatistics(m_e12=8 * E)
    assert judge_statistics(SEEDED, statistics, numeric_class=FP32).verdict is Verdict.GROSS
    assert judge_statistics(SEEDED, statistics, numeric_class=FP32, spread=narrow).verdict is Verdict.FAIL
    assert judge_statistics(SEEDED, statistics, numeric_class=FP32, spread=wide).verdict is Verdict.PASS


def test_spread_is_how_far_two_own_runs_lie_apart() -> None:
    asked = Asked(seed=4)
    rows = second.model_rows(5, 30)
    given = second.answer(rows, asked)
    again = positions_of(rows + np.random.default_rng(1).normal(0, 1e-3, rows.shape), given, asked)
    first = positions_of(rows, given, asked)
    thresholds = TEXT_THRESHOLDS[FP32]

    spread = measure_spread(SEEDED, first, again, sampling_of(asked), thresholds)
    none = measure_spread(SEEDED, first, first, sampling_of(asked), thresholds)

    assert (none.d_e12, none.m_e12, none.w_e12) == (0, 0, 0)
    assert 5e-4 < spread.d_e12 / 1e12 < 2e-3
    with pytest.raises(ValueError, match="not of the same tokens"):
        measure_spread(SEEDED, first, first[:-1], sampling_of(asked), thresholds)


def one(reported: dict[int, float], own: dict[int, float], chosen: int = 0) -> Position:
    return Position(reported, own, chosen, 0.0, [(0, 0.0), (1, -1.0)], 0.3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_reported_value_that_is_no_logprob_is_far_off(value: float) -> None:
    found = judge_text(FIRST, [one({0: value}, {0: -1.0})], Sampling(), numeric_class=BF16)
    assert (found.verdict, found.first) == (Verdict.GROSS, 100.0)


@pytest.mark.parametrize(
    "positions", [[], [one({}, {})], [one({3: -1.0}, {0: -1.0})]], ids=["none", "nothing", "no own"]
)
def test_positions_that_cannot_be_measured_are_refused(positions: list[Position]) -> None:
    with pytest.raises(ValueError, match=r"token"):
        measure_text(SEEDED, positions, Sampling(), TEXT_THRESHOLDS[FP32])


def test_worst_window_finds_a_foreign_stretch() -> None:
    asked = Asked(seed=1)
    rows = second.model_rows(1, 64)
    other = rows.copy()
    other[20:28] += np.random.default_rng(2).normal(0, 0.5, other[20:28].shape)
    given = second.launder(rows, second.answer(other, asked))

    found = judge_text(SEEDED, positions_of(rows, given, asked), sampling_of(asked), numeric_class=FP32)

    assert found.verdict is Verdict.GROSS
    assert found.w == pytest.approx(4 * found.m)


def test_z_sums_surprise_over_its_deviation() -> None:
    position = one({0: -1.0}, {0: -1.0})
    steps = [position._replace(free=FreeStep(2.0, 1.5, 4.0)), position._replace(free=FreeStep(3.0, 1.5, 5.0))]
    found = measure_text(FREE, steps, Sampling(), TEXT_THRESHOLDS[FP32])

    assert (found.z_sum, found.z_variance) == (2.0, 9.0)
    assert found.z == pytest.approx(2 / 3)
    assert measure_text(FREE, [position], Sampling(), TEXT_THRESHOLDS[FP32]).z == 0.0


def test_token_at_the_edge_of_a_cut_fines_nobody() -> None:
    """Two tokens of equal weight, one of which top-p leaves out: rounding decides which."""
    candidates = [(0, 1.0), (1, 1.0 - 1e-7), (2, -9.0)]
    total = math.log(math.fsum(math.exp(logit) for _, logit in candidates))
    for chosen in (0, 1):
        for sampling in (Sampling(1.0, 0.5, 0, 3), Sampling(1.0, 1.0, 1, 3)):
            position = Position({0: -0.7}, {0: -0.7}, chosen, candidates[chosen][1], candidates, total)
            assert measure_text(SEEDED, [position], sampling, TEXT_THRESHOLDS[FP32]).m_e12 == 0
            far = Position({0: -0.7}, {0: -0.7}, 2, -9.0, candidates, total)
            assert measure_text(SEEDED, [far], sampling, TEXT_THRESHOLDS[FP32]).m_e12 == 5 * 10**12
