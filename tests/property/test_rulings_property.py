"""Whatever dishonest validators say: no order matters, nobody is framed, none of the honest pays for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emcd.accounting.probe_outcome import BackedProbe
from emcd.accounting.ruling import Rulings
from emcd.accounting.terms import RoundTerms
from emcd.proto.messages import Verdict
from emcd.proto.params import ModelStanding
from tests.support.ballot_box import NODE, probe_of, rule, terms_of, votes_of
from tests.support.round_world import address_of

TAU = 10**12
WORDS = [v for v in Verdict if v is not Verdict.OFFLINE]
words = st.tuples(st.sampled_from(WORDS), st.integers(0, 2**64 - 1))


@st.composite
def networks(draw: st.DrawFn) -> tuple[dict[str, int], frozenset[str]]:
    """Powers, and who of them is dishonest: less than 1/3 of the power."""
    powers = {f"v{n}": draw(st.integers(1, 50)) for n in range(draw(st.integers(4, 9)))}
    total, bad, held = sum(powers.values()), set(), 0
    for name in draw(st.permutations(sorted(powers))):
        if 3 * (held + powers[name]) < total:
            bad.add(name)
            held += powers[name]
    return powers, frozenset(bad)


def judge_at(statistic: int, threshold: int) -> tuple[Verdict, int]:
    """What an honest validator says of a statistic as it measures it."""
    if statistic <= threshold:
        return Verdict.PASS, statistic
    return (Verdict.GROSS if statistic >= 10 * threshold else Verdict.FAIL), statistic


@st.composite
def elections(draw: st.DrawFn, truths: st.SearchStrategy[int]) -> tuple[RoundTerms, frozenset[str], Rulings]:
    """Probes of one truth each, measured with noise by the honest, who may be silent; anything by the rest."""
    powers, bad = draw(networks())
    terms = terms_of(powers, standing=draw(st.sampled_from([ModelStanding.SHADOW, ModelStanding.ENFORCED])))
    probes: list[BackedProbe] = []
    votes = []
    for number in range(draw(st.integers(1, 3))):
        truth = draw(truths)
        prober = draw(st.sampled_from(sorted(powers)))
        ballots = {}
        for name in powers:
            noise = draw(st.integers(-truth // 100, truth // 100))
            ballots[name] = draw(words) if name in bad else judge_at(truth + noise, TAU)
        probes.append(probe_of(prober, *ballots[prober], call=f"call {number}"))
        said = {n: w for n, w in ballots.items() if n != prober and draw(st.integers(0, 9))}
        votes += votes_of(said, f"call {number}")
    return terms, bad, rule(terms, probes, votes, tuple(powers))


honest_truths = st.integers(0, TAU * 98 // 100)
any_truths = st.one_of(
    honest_truths, st.integers(TAU * 98 // 100, TAU * 102 // 100), st.integers(TAU, 200 * TAU)
)


@given(elections(honest_truths))
def test_rulings_frame_no_honest_node(election: tuple[RoundTerms, frozenset[str], Rulings]) -> None:
    _, _, rulings = election

    assert rulings.strikes == rulings.shadowed == ()


@given(elections(any_truths))
def test_rulings_fine_no_honest_validator(election: tuple[RoundTerms, frozenset[str], Rulings]) -> None:
    """Even when the node answers right at a threshold, where honest judges differ."""
    _, bad, rulings = election

    assert rulings.mistaken <= {address_of(name) for name in bad}


@given(networks(), st.data())
def test_rulings_fine_nobody_who_saw_the_number_at_the_threshold(
    network: tuple[dict[str, int], frozenset[str]], data: st.DataObject
) -> None:
    powers, _ = network
    most, few = data.draw(st.permutations([TAU - 1, TAU + 1]))
    odd = data.draw(st.sampled_from(sorted(powers)))
    ballots = {name: judge_at(few if name == odd else most, TAU) for name in powers}
    prober = data.draw(st.sampled_from(sorted(powers)))
    said = {name: word for name, word in ballots.items() if name != prober}

    rulings = rule(terms_of(powers), [probe_of(prober, *ballots[prober])], votes_of(said))

    assert rulings.mistaken == frozenset()


@given(networks(), st.sampled_from([Verdict.ERROR, Verdict.TEMPLATE]), st.data())
def test_rulings_fine_nobody_for_an_answer_that_can_not_be_judged(
    network: tuple[dict[str, int], frozenset[str]], truth: Verdict, data: st.DataObject
) -> None:
    """All the honest say so, whoever probed, and whatever the others say: it is work, it passes nothing."""
    powers, bad = network
    ballots = {name: data.draw(words) if name in bad else (truth, 0) for name in powers}
    prober = data.draw(st.sampled_from(sorted(powers.keys() - bad)))
    said = {name: word for name, word in ballots.items() if name != prober}

    rulings = rule(terms_of(powers), [probe_of(prober, *ballots[prober])], votes_of(said))

    assert rulings.mistaken == rulings.struck == frozenset()
    assert rulings.passed == {}
    assert rulings.done == {address_of(prober): 1}


@given(networks(), st.sampled_from([Verdict.ERROR, Verdict.TEMPLATE]), st.integers(1, 200 * TAU), st.data())
def test_rulings_judge_what_a_bought_prober_calls_unusable(
    network: tuple[dict[str, int], frozenset[str]], word: Verdict, truth: int, data: st.DataObject
) -> None:
    """A good answer passes, a cheat's strikes, and the prober has neither work nor credits, whatever it adds."""
    powers, bad = network
    prober = data.draw(st.sampled_from(sorted(bad or powers)))
    said = {name: judge_at(truth, TAU) for name in powers if name != prober and name not in bad}
    lie = (word, data.draw(st.integers(0, 2**64 - 1)))
    terms = terms_of(powers)

    rulings = rule(terms, [probe_of(prober, *lie)], votes_of(said))

    if terms.is_quorum(sum(powers[name] for name in said)):
        assert rulings.passed[NODE] == (truth <= TAU)
        assert rulings.struck == (set() if truth <= TAU else {NODE})
        assert rulings.mistaken == {address_of(prober)}
        assert rulings.done == {}
    else:
        assert rulings.mistaken == rulings.struck == frozenset()


@given(networks(), st.integers(TAU, 200 * TAU), st.data())
def test_rulings_fine_nobody_who_saw_the_same_number_as_the_quorum(
    network: tuple[dict[str, int], frozenset[str]], truth: int, data: st.DataObject
) -> None:
    """Own runs may lie further apart on one machine, so that it calls the number a PASS."""
    powers, _ = network
    odd = data.draw(st.sampled_from(sorted(powers)))
    ballots = {name: (Verdict.PASS if name == odd else Verdict.GROSS, truth) for name in powers}
    prober = data.draw(st.sampled_from(sorted(powers)))
    said = {name: ballot for name, ballot in ballots.items() if name != prober}

    rulings = rule(terms_of(powers), [probe_of(prober, *ballots[prober])], votes_of(said))

    assert rulings.mistaken == frozenset()


@given(networks(), st.integers(20 * TAU, 200 * TAU))
def test_rulings_strike_a_cheat_when_all_the_honest_speak(
    network: tuple[dict[str, int], frozenset[str]], truth: int
) -> None:
    """And who called it a PASS loses its round."""
    powers, bad = network
    ballots = {name: (Verdict.PASS, 7) if name in bad else judge_at(truth, TAU) for name in powers}
    for prober in (min(powers), *sorted(bad)[:1]):
        probe = probe_of(prober, *ballots[prober])
        said = {name: word for name, word in ballots.items() if name != prober}
        rulings = rule(terms_of(powers), [probe], votes_of(said))

        assert rulings.struck == {NODE}
        assert rulings.mistaken == {address_of(name) for name in bad}
        assert rulings.passed[NODE] == 0


@given(
    networks(),
    st.dictionaries(st.sampled_from([f"v{n}" for n in range(9)]), words, min_size=1),
    words,
    st.randoms(use_true_random=False),
)
def test_rulings_do_not_depend_on_any_order(network, ballots, own, random) -> None:  # type: ignore[no-untyped-def]
    powers, _ = network
    terms = terms_of(powers)
    probes = [
        probe_of("v0", *own, call="a"),
        probe_of("v1", *own, call="b"),
        probe_of("v2", Verdict.PASS, call="c"),
    ]
    votes = [v for call in "abc" for v in votes_of({n: w for n, w in ballots.items() if n in powers}, call)]
    reveals = sorted(powers)
    first = rule(terms, probes, votes, reveals)

    for items in (probes, votes, reveals):
        random.shuffle(items)

    assert rule(terms, probes, votes, reveals) == first
