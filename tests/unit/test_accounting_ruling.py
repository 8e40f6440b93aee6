"""What ballots come to: strikes, passes, mistakes, re-checks."""

from __future__ import annotations

from collections import Counter

import pytest

from emcd.accounting.recheck import draw_rechecks, is_recheck
from emcd.accounting.ruling import Rulings
from emcd.proto.messages import Verdict
from emcd.proto.params import ModelStanding
from tests.support.ballot_box import (
    NODE,
    Ballots,
    call_id,
    probe_of,
    reveal_of,
    rule,
    terms_of,
    unseen_of,
    votes_of,
)
from tests.support.round_world import address_of

PASS, FAIL, GROSS, CLASS = Verdict.PASS, Verdict.FAIL, Verdict.GROSS, Verdict.CLASS
TEMPLATE, ERROR = Verdict.TEMPLATE, Verdict.ERROR
SIX = {f"v{n}": 1 for n in range(6)}
"""More than 2/3 of six are five."""


def ruled(
    prober: Verdict,
    others: str,
    *,
    standing: ModelStanding = ModelStanding.ENFORCED,
    statistics: tuple[int, ...] = (100,) * 6,
    **params: int,
) -> Rulings:
    """v0 probes; `others` are the first letters of what v1, v2 ... vote, a dash for none."""
    words = {"P": PASS, "F": FAIL, "G": GROSS, "C": CLASS, "T": TEMPLATE, "E": ERROR}
    ballots: Ballots = {
        f"v{n}": (words[letter], statistics[n]) for n, letter in enumerate(others, 1) if letter != "-"
    }
    terms = terms_of(SIX, standing=standing, **params)
    return rule(terms, [probe_of("v0", prober, statistics[0])], votes_of(ballots))


@pytest.mark.parametrize(
    ("prober", "others", "stands"),
    [
        (GROSS, "GGGG-", GROSS),
        (GROSS, "GGGF-", FAIL),
        (GROSS, "GGFCC", CLASS),
        (FAIL, "FFFC-", CLASS),
        (CLASS, "CCCC-", CLASS),
        (GROSS, "GGG--", None),
        (GROSS, "GGGPP", None),
        (PASS, "FFFFF", FAIL),
        (PASS, "GGGG-", None),
        (TEMPLATE, "TTTTT", None),
        (TEMPLATE, "FFFFF", FAIL),
        (FAIL, "TTEEE", None),
    ],
)
def test_ruling_needs_more_than_two_thirds_and_nests(
    prober: Verdict, others: str, stands: Verdict | None
) -> None:
    assert [strike.verdict for strike in ruled(prober, others).strikes] == ([stands] if stands else [])


def test_ruling_of_too_few_judges_is_none() -> None:
    assert ruled(GROSS, "GGGGG", minimum_judges=6).strikes
    rulings = ruled(GROSS, "GGGGG", minimum_judges=7)
    assert rulings.strikes == ()
    assert ruled(PASS, "GGGGG", minimum_judges=7).mistaken == frozenset()


@pytest.mark.parametrize(
    ("prober", "others", "standing", "passed", "strikes", "shadowed"),
    [
        (FAIL, "FFFFF", ModelStanding.SHADOW, 1, 0, 1),
        (CLASS, "CCCCC", ModelStanding.SHADOW, 1, 0, 1),
        (GROSS, "GGGGG", ModelStanding.SHADOW, 0, 1, 0),
        (GROSS, "-----", ModelStanding.SHADOW, 0, 0, 0),
        (FAIL, "-----", ModelStanding.SHADOW, 1, 0, 0),
        (TEMPLATE, "-----", ModelStanding.SHADOW, 0, 0, 0),
        (FAIL, "FFFFF", ModelStanding.ENFORCED, 0, 1, 0),
        (CLASS, "CCCCC", ModelStanding.ENFORCED, 0, 1, 0),
        (PASS, "-----", ModelStanding.ENFORCED, 1, 0, 0),
        (FAIL, "-----", ModelStanding.ENFORCED, 0, 0, 0),
        (TEMPLATE, "-----", ModelStanding.ENFORCED, 0, 0, 0),
        (ERROR, "-----", ModelStanding.ENFORCED, 0, 0, 0),
        (GROSS, "GGGGG", ModelStanding.DELISTED, 0, 0, 0),
        (PASS, "PPPPP", ModelStanding.DELISTED, 0, 0, 0),
    ],
)
def test_ruling_costs_what_the_standing_of_the_model_says(
    prober: Verdict, others: str, standing: ModelStanding, passed: int, strikes: int, shadowed: int
) -> None:
    rulings = ruled(prober, others, standing=standing)

    assert (rulings.passed[NODE], len(rulings.strikes), len(rulings.shadowed)) == (passed, strikes, shadowed)
    assert rulings.done[address_of("v0")] == 1


def test_ruling_pass_against_the_probers_fail_pays_the_node_and_not_the_prober() -> None:
    rulings = ruled(GROSS, "PPPPP", statistics=(10**15, 1, 1, 1, 1, 1))

    assert rulings.passed[NODE] == 1
    assert rulings.mistaken == {address_of("v0")}


def test_ruling_strike_against_the_probers_pass_pays_nobody() -> None:
    rulings = ruled(PASS, "GGGGG", statistics=(1, *(10**15,) * 5))

    assert rulings.passed[NODE] == 0
    assert rulings.mistaken == {address_of("v0")}
    assert rulings.struck == {NODE}


@pytest.mark.parametrize(
    ("prober", "others", "statistics", "mistaken"),
    [
        (PASS, "FFFFF", (1, 300, 300, 300, 300, 300), "0"),
        (PASS, "FFFFF", (149, 300, 300, 300, 300, 300), "0"),
        (PASS, "FFFFF", (150, 300, 300, 300, 300, 300), ""),
        (FAIL, "PPPPP", (200, 100, 100, 100, 100, 100), ""),
        (FAIL, "PPPPP", (201, 100, 100, 100, 100, 100), "0"),
        (CLASS, "PPPPP", (201, 100, 100, 100, 100, 100), "0"),
        (GROSS, "PPPPP", (100, 100, 100, 100, 100, 100), ""),
        (GROSS, "PGGGG", (30 * 10**12,) * 6, ""),
        (GROSS, "PGGGG", (30 * 10**12, 14 * 10**12, *(30 * 10**12,) * 4), "1"),
        (TEMPLATE, "PPPPP", (100, 100, 100, 100, 100, 100), "0"),
        (TEMPLATE, "GGGGG", (100, 100, 100, 100, 100, 100), "0"),
        (ERROR, "PPPPP", (100, 100, 100, 100, 100, 100), "0"),
        (ERROR, "FFFCC", (100, 100, 100, 100, 100, 100), "0"),
        (ERROR, "PPPPP", (100, 0, 0, 0, 0, 0), ""),
        (ERROR, "PPPP-", (100, 100, 100, 100, 100, 0), ""),
        (ERROR, "EEEEE", (0, 0, 0, 0, 0, 0), ""),
        (PASS, "TPPPP", (100, 100, 100, 100, 100, 100), ""),
        (FAIL, "PPPPP", (1, 0, 0, 0, 0, 0), "0"),
        (FAIL, "TFFFF", (9, 1, 9, 9, 9, 9), ""),
        (FAIL, "EFFFF", (9, 0, 9, 9, 9, 9), ""),
        (FAIL, "PFFFC", (300, 1, 300, 300, 300, 300), "1"),
        (PASS, "FFFF-", (1, 300, 300, 300, 300, 0), ""),
        (PASS, "PPPPF", (0, 0, 1, 1, 1, 300), "5"),
    ],
)
def test_mistake_is_a_word_that_the_ruling_clearly_contradicts(
    prober: Verdict, others: str, statistics: tuple[int, ...], mistaken: str
) -> None:
    rulings = ruled(prober, others, statistics=statistics)

    assert rulings.mistaken == {address_of(f"v{n}") for n in mistaken}


def test_mistake_about_a_model_in_shadow_counts_and_about_a_delisted_one_does_not() -> None:
    far = (1, *(10**15,) * 5)
    assert ruled(PASS, "FFFFF", statistics=far, standing=ModelStanding.SHADOW).mistaken
    assert not ruled(PASS, "GGGGG", statistics=far, standing=ModelStanding.DELISTED).mistaken


def test_evidence_that_nobody_is_shown_undoes_the_probe() -> None:
    rulings = ruled(PASS, "EEEEE")

    assert rulings.done == rulings.passed == {}
    assert rulings.mistaken == frozenset()
    assert ruled(PASS, "EEEE-").done == {address_of("v0"): 1}


def test_probers_own_vote_does_not_undo_its_word() -> None:
    votes = votes_of({f"v{n}": (GROSS, 100) for n in range(1, 5)} | {"v0": (PASS, 100)})

    assert rule(terms_of(SIX), [probe_of("v0", GROSS)], votes).struck == {NODE}


def test_probers_error_about_a_call_is_work_whatever_power_it_has() -> None:
    terms = terms_of({**SIX, "v0": 100})

    assert rule(terms, [probe_of("v0", ERROR)], []).done == {address_of("v0"): 1}
    assert rule(terms, [probe_of("v0", PASS)], []).done == {address_of("v0"): 1}


@pytest.mark.parametrize("prober", [ERROR, TEMPLATE])
@pytest.mark.parametrize(
    ("others", "done", "passed", "struck"),
    [
        ("PPPPP", 0, 1, False),
        ("PPPP-", 1, 0, False),
        ("GGGGG", 0, 0, True),
        ("FFCCC", 0, 0, True),
        ("FFPPP", 1, 0, False),
        ("TTTTT", 1, 0, False),
        ("-----", 1, 0, False),
    ],
)
def test_word_that_an_answer_is_unusable_is_work_until_the_quorum_judges_it(
    prober: Verdict, others: str, done: int, passed: int, struck: bool
) -> None:
    rulings = ruled(prober, others)

    assert rulings.done[address_of("v0")] == done
    assert rulings.passed[NODE] == passed
    assert rulings.struck == ({NODE} if struck else set())
    assert rulings.mistaken == ({address_of("v0")} if not done else set())


def test_error_whose_evidence_nobody_is_shown_is_no_work_and_one_that_all_saw_is() -> None:
    prober, others = address_of("v0"), [f"v{n}" for n in range(1, 6)]
    probe = probe_of("v0", ERROR)

    assert rule(terms_of(SIX), [probe], unseen_of(others)).done == {}
    assert rule(terms_of(SIX), [probe], unseen_of(others)).mistaken == frozenset()
    assert rule(terms_of(SIX), [probe], unseen_of(others[:4])).done == {prober: 1}
    assert ruled(ERROR, "EEEEE").done == {prober: 1}


def test_error_without_a_proven_answer_is_ruled_by_nobody() -> None:
    probe = probe_of("v0", ERROR, is_answered=False)
    rulings = rule(terms_of(SIX, recheck_bps=10_000), [probe], [], tuple(SIX))

    assert rulings.done == rulings.planned == {address_of("v0"): 1}


@pytest.mark.parametrize("prober", [ERROR, TEMPLATE])
def test_error_about_a_delisted_model_is_at_fault_for_nothing(prober: Verdict) -> None:
    rulings = ruled(prober, "PPPPP", standing=ModelStanding.DELISTED)

    assert rulings.done == {address_of("v0"): 1}
    assert rulings.passed == {}
    assert rulings.mistaken == frozenset()


# --------------------------------------------------------------------------- re-checks


def test_recheck_falls_on_one_in_ten_of_the_passes_by_power() -> None:
    names = ("prober", "small", "large", "none", "stranger")
    terms = terms_of({"prober": 5, "small": 1, "large": 3, "none": 0})
    passed = {call_id(f"call {n}"): address_of("prober") for n in range(6000)}
    found = draw_rechecks([reveal_of(name) for name in names], passed, terms.powers, terms.params)
    drawn = Counter(validator for validator, _ in found)

    assert drawn.keys() == {address_of("small"), address_of("large")}
    assert 110 < drawn[address_of("small")] < 190
    assert 390 < drawn[address_of("large")] < 510


def test_recheck_of_the_only_power_is_nobodys() -> None:
    terms = terms_of({"prober": 5, "other": 0})
    assert not is_recheck(
        bytes(32), call_id("x"), address_of("other"), address_of("prober"), terms.powers, terms.params
    )


@pytest.mark.parametrize(
    ("word", "done"),
    [(PASS, True), (FAIL, True), (CLASS, True), (TEMPLATE, True), (ERROR, False), (Verdict.OFFLINE, False),
     (None, False)],
)  # fmt: skip
def test_recheck_that_is_drawn_and_not_done_costs_its_share(word: Verdict | None, done: bool) -> None:
    terms = terms_of({"v0": 1, "v1": 1, "v2": 1, "v3": 1}, recheck_bps=10_000)
    call = next(
        name
        for name in (f"call {n}" for n in range(200))
        if [v for v, _ in draw_rechecks(
            [reveal_of(f"v{n}") for n in range(4)], {call_id(name): address_of("v0")}, terms.powers, terms.params
        )] == [address_of("v1")]
    )  # fmt: skip
    probes = [probe_of("v0", PASS, call=call), probe_of("v1", PASS, call="its own")]
    votes = votes_of({"v1": (word, 100)}, call) if word else []

    rulings = rule(terms, probes, votes, reveals=("v0", "v1"))

    mine = address_of("v1")
    assert (rulings.planned[mine], rulings.done[mine]) == (2, 1 + done)
    assert (rulings.rechecks[mine], rulings.rechecked[mine]) == (1, int(done))
    assert rule(terms, probes, votes, reveals=("v0",)).planned[mine] == 1


@pytest.mark.parametrize("prober", [PASS, FAIL, GROSS, CLASS, TEMPLATE, ERROR])
def test_recheck_is_drawn_alike_for_all_answers_but_strikes(prober: Verdict) -> None:
    terms = terms_of(SIX, recheck_bps=10_000)
    rechecks = {
        verdict: rule(
            terms, [probe_of("v0", verdict, call=f"call {n}") for n in range(50)], [], tuple(SIX)
        ).rechecks
        for verdict in (PASS, prober)
    }

    assert rechecks[prober] == ({} if prober.is_strike else rechecks[PASS])
    assert sum(rechecks[PASS].values()) > 25


@pytest.mark.parametrize("word", [TEMPLATE, ERROR])
def test_recheck_that_finds_nothing_to_judge_where_the_quorum_does_is_not_done(word: Verdict) -> None:
    terms = terms_of(SIX, recheck_bps=10_000)
    probes = [probe_of("v0", PASS, call=f"call {n}") for n in range(50)]
    votes = [
        vote
        for n in range(50)
        for vote in votes_of({f"v{k}": (word if k == 1 else PASS, 100) for k in range(1, 6)}, f"call {n}")
    ]

    rulings = rule(terms, probes, votes, tuple(SIX))

    assert rulings.rechecks[address_of("v1")] > 0
    assert rulings.rechecked[address_of("v1")] == 0
    assert rulings.rechecked[address_of("v2")] == rulings.rechecks[address_of("v2")] > 0


def test_recheck_of_a_delisted_model_is_not_drawn() -> None:
    probes = [probe_of("v0", PASS, call=f"call {n}") for n in range(50)]
    drawn = {
        standing: rule(terms_of(SIX, recheck_bps=10_000, standing=standing), probes, [], tuple(SIX)).rechecks
        for standing in ModelStanding
    }

    assert drawn[ModelStanding.DELISTED] == {}
    assert sum(drawn[ModelStanding.SHADOW].values()) == sum(drawn[ModelStanding.ENFORCED].values()) > 25


def test_recheck_that_saw_no_evidence_is_done_when_nobody_saw_any() -> None:
    terms = terms_of(SIX, recheck_bps=10_000)
    probes = [probe_of("v0", PASS, call=f"call {n}") for n in range(50)]
    votes = [v for n in range(50) for v in votes_of({f"v{k}": (ERROR, 0) for k in range(1, 6)}, f"call {n}")]

    rulings = rule(terms, probes, votes, tuple(SIX))

    assert rulings.rechecks == rulings.rechecked
    assert rulings.done[address_of("v0")] == 0
    assert rulings.passed == {}
