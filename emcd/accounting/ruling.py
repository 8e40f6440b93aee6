"""What more than 2/3 of the power say of a probe, and what follows for node, prober and voters.

Ballots are a prober's verdict and the votes of all others; the prober's word is its vote. They nest: who
says GROSS says FAIL too, and CLASS is the least of the strikes. Nothing less than the quorum of all
frozen power rules, and a set smaller than `minimum_judges` never does: then the prober's word stands for
the standard task, and nobody is struck.

Standing of the model (`NetworkParams.models`): in shadow FAIL and CLASS are written down and cost nothing,
until the thresholds are calibrated; GROSS strikes. Of a delisted model probes earn nothing and nobody is
struck or at fault, since what is wrong is the catalogue; calls that users paid stay paid: the node did
the work at the price it was promised, and the hub stops routing to the model from the same epoch on.

To say that an answer can't be judged is a word on it too. A prober's ERROR or TEMPLATE is work done unless
the quorum rules PASS or a strike, or saw no evidence of it.

A mistake is a ballot that a ruling contradicts so far that no two honest judges can: statistics more than
a factor 2 apart, where a prober's ERROR or TEMPLATE has none, which is 0. A node that answers exactly at a
threshold splits honest judges, who saw the same number: that fines nobody, however their own runs differ.
Invariants: no order of ballots changes anything; with less than 1/3 of the power dishonest no strike
stands, and no mistake is proven, against what all the honest say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from emcd.accounting.probe_outcome import BackedProbe, ProbeOutcome
from emcd.accounting.recheck import draw_rechecks
from emcd.accounting.suspension import Strike
from emcd.accounting.terms import RoundTerms
from emcd.proto.bundle import RevealEntry, VoteEntry
from emcd.proto.messages import Verdict, Vote
from emcd.proto.params import ModelStanding
from emcd.types import ZERO_HASH, Address

CLEAR_FACTOR = 2


class Ballot(NamedTuple):
    """One validator's word on one call; `saw_nothing`: ERROR, since no evidence was shown."""

    verdict: Verdict
    statistic_e12: int
    saw_nothing: bool = False


def read_ballot(vote: Vote) -> Ballot:
    """A vote as a ballot."""
    verdict = Verdict(vote.verdict)
    saw_nothing = verdict is Verdict.ERROR and vote.receipt_hash == ZERO_HASH
    return Ballot(verdict, vote.statistic_e12, saw_nothing)


@dataclass(frozen=True)
class Rulings:
    """What the round's verdicts come to.

    Attributes:
        planned, done: by validator, probes and re-checks together; rechecks, rechecked: of them re-checks.
        passed: by node, the probes that count for the standard task.
        strikes: those that count; shadowed: FAIL and CLASS of models in shadow, which cost nothing.
        mistaken: validators whose word was proven wrong.
    """

    planned: Counter[Address]
    done: Counter[Address]
    rechecks: Counter[Address]
    rechecked: Counter[Address]
    passed: Counter[Address]
    strikes: tuple[Strike, ...]
    shadowed: tuple[Strike, ...]
    mistaken: frozenset[Address]

    @cached_property
    def struck(self) -> frozenset[Address]:
        """The nodes with a strike that counts."""
        return frozenset(strike.node for strike in self.strikes)


def compute_rulings(
    terms: RoundTerms, outcome: ProbeOutcome, reveals: Iterable[RevealEntry], votes: Iterable[VoteEntry]
) -> Rulings:
    """Rule on every probe that a call backs.

    Args: `votes` passed `require_vote`: one a call and voter, about calls of `outcome.votable`.
    """
    cast: dict[bytes, dict[Address, Ballot]] = {}
    for entry in votes:
        cast.setdefault(entry.vote.call_id, {})[entry.vote.validator] = read_ballot(entry.vote)
    done = Counter(outcome.done)
    passed: Counter[Address] = Counter()
    strikes: list[Strike] = []
    shadowed: list[Strike] = []
    mistaken: set[Address] = set()
    rulings: dict[bytes, Verdict | None] = {}
    for probe in outcome.probes:
        ballots = ballots_on(probe, cast.get(probe.call_id, {}))
        ruling = find_ruling(terms, ballots) if probe.is_answered else None
        rulings[probe.call_id] = ruling
        standing = terms.params.standing_of(probe.model_hash)
        done[probe.prober] -= is_undone(terms, probe.verdict, ballots, ruling, standing)
        passed[probe.node] += probe.counts and is_passed(probe.verdict, ruling, standing)
        if ruling is None or standing is ModelStanding.DELISTED:
            continue
        mistaken |= find_mistaken(terms.powers, ballots, ruling, probe.prober)
        if ruling.is_strike:
            kept = strikes if is_counted(ruling, standing) else shadowed
            kept.append(Strike(probe.node, probe.call_id, ruling))
    rechecks, rechecked = _count_rechecks(terms, outcome, reveals, cast, rulings)
    planned = outcome.planned + rechecks
    return Rulings(
        planned,
        +(done + rechecked),
        rechecks,
        rechecked,
        +passed,
        tuple(strikes),
        tuple(shadowed),
        frozenset(mistaken),
    )


def ballots_on(probe: BackedProbe, votes: Mapping[Address, Ballot]) -> dict[Address, Ballot]:
    """The votes and the prober's own word."""
    return {**votes, probe.prober: Ballot(probe.verdict, probe.statistic_e12)}


def find_ruling(terms: RoundTerms, ballots: Mapping[Address, Ballot]) -> Verdict | None:
    """What more than 2/3 of the frozen power say: a strike, PASS, ERROR (no evidence is shown), or nothing."""
    if len(terms.powers) < terms.params.minimum_judges:
        return None
    power: Counter[Verdict] = Counter()
    for voter, ballot in ballots.items():
        power[ballot.verdict] += terms.powers[voter]
    reached = 0
    for strike in (Verdict.GROSS, Verdict.FAIL, Verdict.CLASS):
        reached += power[strike]
        if terms.is_quorum(reached):
            return strike
    return next((v for v in (Verdict.PASS, Verdict.ERROR) if terms.is_quorum(power[v])), None)


def is_undone(
    terms: RoundTerms,
    verdict: Verdict,
    ballots: Mapping[Address, Ballot],
    ruling: Verdict | None,
    standing: ModelStanding,
) -> bool:
    """Whether the prober's work on an answer is none.

    It showed no evidence, or found nothing to judge where the quorum did.
    """
    if ruling is Verdict.ERROR:
        unseen = sum(terms.powers[voter] for voter, ballot in ballots.items() if ballot.saw_nothing)
        return verdict is not Verdict.ERROR or terms.is_quorum(unseen)
    is_evasive = verdict in (Verdict.TEMPLATE, Verdict.ERROR)
    return is_evasive and ruling is not None and standing is not ModelStanding.DELISTED


def is_work(verdict: Verdict, ruling: Verdict | None) -> bool:
    """Whether a re-checker's vote is work done.

    To say ERROR is easy, so it is only where the quorum says it too; TEMPLATE where none rules otherwise.
    """
    if verdict is Verdict.TEMPLATE:
        return ruling in (None, Verdict.ERROR)
    return verdict is Verdict.PASS or verdict.is_strike or verdict is ruling is Verdict.ERROR


def is_counted(ruling: Verdict, standing: ModelStanding) -> bool:
    """Whether a strike costs its node anything."""
    if standing is ModelStanding.SHADOW:
        return ruling is Verdict.GROSS
    return standing is ModelStanding.ENFORCED


def is_passed(verdict: Verdict, ruling: Verdict | None, standing: ModelStanding) -> bool:
    """Whether the probe counts for the node's standard task.

    The ruling before the prober's word; TEMPLATE, ERROR and OFFLINE pass nothing and strike nobody.
    """
    final = ruling or verdict
    if standing is ModelStanding.DELISTED:
        return False
    return final is Verdict.PASS or (final.is_strike and not is_counted(final, standing))


def find_mistaken(
    powers: Mapping[Address, int], ballots: Mapping[Address, Ballot], ruling: Verdict, prober: Address
) -> set[Address]:
    """The authors of ballots that the ruling proves wrong.

    A voter that says ERROR or TEMPLATE is not at fault: it may not have been shown what others were.
    """
    if ruling is Verdict.ERROR:
        return set()
    agreeing = {
        voter: ballot
        for voter, ballot in ballots.items()
        if (ballot.verdict.is_strike if ruling.is_strike else ballot.verdict is Verdict.PASS)
    }
    middle = _median(powers, agreeing)
    return {
        voter
        for voter, ballot in ballots.items()
        if voter not in agreeing
        and (ballot.verdict is Verdict.PASS or ballot.verdict.is_strike or voter == prober)
        and _is_clear(ballot, middle)
    }


def _is_clear(ballot: Ballot, middle: int) -> bool:
    has_statistic = ballot.verdict is Verdict.PASS or ballot.verdict.is_strike
    low, high = sorted((ballot.statistic_e12 if has_statistic else 0, middle))
    return high > CLEAR_FACTOR * low


def _median(powers: Mapping[Address, int], ballots: Mapping[Address, Ballot]) -> int:
    """The statistic in the middle of the power: one of the honest, who are more than half of a quorum."""
    rows = sorted((ballot.statistic_e12, powers[voter]) for voter, ballot in ballots.items())
    half, reached = sum(power for _, power in rows), 0
    for statistic, power in rows:
        reached += 2 * power
        if reached >= half:
            return statistic
    return 0


def _count_rechecks(
    terms: RoundTerms,
    outcome: ProbeOutcome,
    reveals: Iterable[RevealEntry],
    cast: Mapping[bytes, Mapping[Address, Ballot]],
    rulings: Mapping[bytes, Verdict | None],
) -> tuple[Counter[Address], Counter[Address]]:
    """Re-checks drawn and done, by validator."""
    listed = {
        probe.call_id: probe.prober
        for probe in outcome.probes
        if probe.is_answered
        and not probe.verdict.is_strike
        and terms.params.standing_of(probe.model_hash) is not ModelStanding.DELISTED
    }
    drawn = draw_rechecks(reveals, listed, terms.powers, terms.params)
    rechecks = Counter(validator for validator, _ in drawn)
    rechecked: Counter[Address] = Counter()
    for validator, call_id in drawn:
        ballot = cast.get(call_id, {}).get(validator)
        if ballot is not None:
            rechecked[validator] += is_work(ballot.verdict, rulings[call_id])
    return rechecks, +rechecked
