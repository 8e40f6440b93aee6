"""The formula of VERIFICATION 4 gives its table."""

from __future__ import annotations

import random

import pytest

from emcd.accounting.detection import (
    catch_chance,
    probability_caught,
    probability_caught_unpinned,
    probes_needed,
)

B = 0.99
NEEDED = {
    # cheated share: probes a round for .95 and .99 within 1, 3, 12 and 84 rounds
    1.0: ((1, 1, 1, 1), (1, 1, 1, 1)),
    0.5: ((5, 2, 1, 1), (7, 3, 1, 1)),
    0.2: ((14, 5, 2, 1), (21, 7, 2, 1)),
    0.1: ((29, 10, 3, 1), (45, 15, 4, 1)),
    0.05: ((60, 20, 5, 1), (91, 31, 8, 2)),
    0.02: ((150, 50, 13, 2), (231, 77, 20, 3)),
}
CAUGHT = {
    # with two probes a round: one strike within 1, 12, 84 rounds; two strikes within 12, 84
    1.0: ((1, 1, 1), (1, 1)),
    0.5: ((0.745, 1, 1), (1, 1)),
    0.2: ((0.357, 0.995, 1), (0.965, 1)),
    0.1: ((0.188, 0.918, 1), (0.702, 1)),
    0.05: ((0.097, 0.704, 1), (0.335, 0.998)),
    0.02: ((0.039, 0.381, 0.965), (0.081, 0.847)),
}


@pytest.mark.parametrize("f", NEEDED)
def test_probes_needed_are_those_of_the_table(f: float) -> None:
    found = tuple(tuple(probes_needed(p, f, B, 0, 0, r) for r in (1, 3, 12, 84)) for p in (0.95, 0.99))
    assert found == NEEDED[f]


@pytest.mark.parametrize("f", CAUGHT)
def test_chances_are_those_of_the_table(f: float) -> None:
    one = [probability_caught(f, B, 0, 0, 2, rounds) for rounds in (1, 12, 84)]
    two = [probability_caught(f, B, 0, 0, 2, rounds, strikes=2) for rounds in (12, 84)]
    assert (*one, *two) == pytest.approx((*CAUGHT[f][0], *CAUGHT[f][1]), abs=6e-4)


def test_recognition_ruins_it_as_the_table_says() -> None:
    found = [probability_caught(0.2, B, i, 0, 2, 12) for i in (0, 0.5, 0.8, 0.9, 0.95)]
    assert found == pytest.approx([0.995, 0.918, 0.621, 0.381, 0.212], abs=6e-4)
    assert probability_caught(0.2, B, 0, 0.5, 2, 12) == pytest.approx(found[1])


@pytest.mark.parametrize(("f", "strikes"), [(0.2, 1), (0.2, 2), (0.05, 1), (0.05, 2)])
def test_chance_is_the_share_of_simulated_nodes(f: float, strikes: int) -> None:
    draw, trials = random.Random(5), 3000
    caught = sum(sum(draw.random() < f * B for _ in range(24)) >= strikes for _ in range(trials))
    assert caught / trials == pytest.approx(probability_caught(f, B, 0, 0, 2, 12, strikes=strikes), abs=0.03)


def test_needed_probes_are_just_enough() -> None:
    for p in (0.5, 0.9, 0.99):
        for f in (0.01, 0.2, 0.9):
            m = probes_needed(p, f, B, 0.3, 0.1, 5)
            assert probability_caught(f, B, 0.3, 0.1, m, 5) >= p
            assert m == 1 or probability_caught(f, B, 0.3, 0.1, m - 1, 5) < p


def test_probes_that_are_not_pinned_catch_a_little_less() -> None:
    for f in (0.05, 0.2, 1.0):
        assert probability_caught_unpinned(f, B, 0, 0, 2, 12) < probability_caught(f, B, 0, 0, 2, 12)
    assert probability_caught_unpinned(0.05, B, 0, 0, 2, 12) == pytest.approx(0.695, abs=1e-3)


def test_less_probes_than_strikes_catch_nobody() -> None:
    assert probability_caught(1.0, 1.0, 0, 0, 1, 1, strikes=2) == 0
    assert probability_caught(1.0, 1.0, 0, 0, 1, 2, strikes=2) == 1
    assert probes_needed(0.5, 1.0, 1.0, 0, 0, 1) == 1


@pytest.mark.parametrize("arguments", [(0.95, 0, B, 0, 0, 1), (1.0, 0.5, B, 0, 0, 1), (0.9, 0.5, B, 1, 0, 1),
                                       (0.9, 0.5, B, 0, 0, 0), (0.9, 1.5, B, 0, 0, 1), (0.9, 0.5, B, -1, 0, 1)])  # fmt: skip
def test_what_no_probes_can_reach_is_refused(
    arguments: tuple[float, float, float, float, float, int],
) -> None:
    with pytest.raises(ValueError, match=r"chance|shares"):
        probes_needed(*arguments)


def test_chance_of_one_probe_is_the_product() -> None:
    assert catch_chance(0.5, 0.8, 0.25, 0.5) == pytest.approx(0.15)
