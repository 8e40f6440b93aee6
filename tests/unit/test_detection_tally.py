"""What the detection benchmark counts: shares with bounds, groups of answers, rounds until suspended."""

from __future__ import annotations

import math

import pytest

from emcd.proto.messages import Verdict
from emcd.proto.params import mainnet_params
from emcd_validator.judge import Judgement
from tests.bench.detection_report import detection_lines
from tests.bench.detection_tally import Tally, formula, share_bounds, simulate_rounds

PARAMS = mainnet_params(0)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(0, 10_000, 0.0, 0.000384), (200, 200, 0.98116, 1.0), (50, 100, 0.40383, 0.59617), (0, 0, 0.0, 1.0)],
)
def test_share_bounds_are_wilsons(hits: int, of: int, low: float, high: float) -> None:
    assert share_bounds(hits, of) == pytest.approx((low, high), abs=1e-5)


def test_tally_counts_strikes_groups_and_what_differs() -> None:
    tally = Tally(threshold=1e-4)
    verdicts = [Verdict.PASS, Verdict.GROSS, Verdict.PASS, Verdict.PASS, Verdict.PASS] + [Verdict.PASS] * 3
    for place, verdict in enumerate(verdicts):
        tally.add(
            Judgement(verdict, statistic_e12=2 * 10**8 if verdict.is_strike else 10**6), changed=place < 2
        )
    shown = tally.show()

    assert (shown["caught"]["rate"], shown["caught"]["n"]) == (0.125, 8)
    assert (shown["caught_of_changed"]["rate"], shown["caught_of_changed"]["n"]) == (0.5, 2)
    assert (shown["caught_within_4"]["rate"], shown["caught_within_4"]["n"]) == (0.5, 2)
    assert shown["verdicts"] == {"PASS": 7, "GROSS": 1}
    assert shown["thresholds"] == pytest.approx({"least": 0.01, "median": 0.01, "most": 2.0})


@pytest.mark.parametrize(
    ("cheated", "rounds", "chance"),
    [(0.2, 1, 0.36), (0.2, 12, 0.995), (0.05, 12, 0.708), (0.05, 84, 0.9998), (1, 1, 1)],
)
def test_formula_is_that_of_the_design(cheated: float, rounds: int, chance: float) -> None:
    assert formula(cheated, cheated, rounds, PARAMS) == pytest.approx(chance, abs=1e-3)


def test_formula_of_two_strikes_needs_two() -> None:
    assert formula(0.5, 0.0, 1, PARAMS) == pytest.approx(0.25)
    assert formula(1.0, 0.0, 1, PARAMS) == 1.0
    assert formula(0.2, 0.0, 12, PARAMS) == pytest.approx(0.967, abs=1e-3)


@pytest.mark.parametrize("verdicts", [[Verdict.GROSS], [Verdict.FAIL], [Verdict.CLASS, Verdict.FAIL]])
@pytest.mark.parametrize("cheated", [0.2, 1.0])
def test_simulated_rounds_are_those_of_the_formula(verdicts: list[Verdict], cheated: float) -> None:
    found = simulate_rounds(verdicts, cheated, PARAMS, nodes=600)
    for rounds in ("1", "12"):
        share = found["within"][rounds]
        assert abs(share["rate"] - share["formula"]) < 5 * math.sqrt(0.25 / 600)


def test_node_that_never_cheats_is_never_suspended() -> None:
    found = simulate_rounds([Verdict.GROSS], 0.0, PARAMS, nodes=3)
    assert found["median"] > 84
    assert found["within"]["84"]["rate"] == 0


def test_tables_show_every_row() -> None:
    tally = Tally()
    tally.add(Judgement(Verdict.GROSS, 10**13))
    row = {**tally.show(), "is_caught": True, "first": tally.show()["caught"]}
    found = {
        "honest": {"text": {"all": tally.show(), "ways": {"alone": tally.show()}}},
        "text": {"a cheat": row},
        "vectors": {"another": {**row, "is_caught": False}},
        "rounds": {"a cheat": [simulate_rounds([Verdict.GROSS], 1.0, PARAMS, nodes=2)]},
        "cost": {"a model": {"write_ms": 40.0, "judge_ms": 4.0, "share": 0.1}},
    }
    text = "\n".join(detection_lines(found))

    assert "| text: alone" in text
    assert "| another (out of reach)" in text
    assert "| a cheat, on 100% of its calls" in text
    assert "10.0%" in text
