"""What more than 2/3 of the power say of a probe, and what follows for node, prober and voters.

Ballots are a prober's verdict and the votes of all others; the prober's word is its vote. They nest: who
says GROSS says FAIL too, and CLASS is the least of the strikes. Nothing less than the quorum of all
frozen power rules, and a set smaller than `minimum_judges` never does: then the prober's word stands for
the standard task, and nobody is struck.

Standing of the model (`NetworkParams.models`): in shadow FAIL and CLASS are written down and cost nothing,
until the thresholds are calibrated; GROSS strikes. Of a delisted model probes earn nothing and nobody is
struck or at fault, since what is wrong is the catalogue; calls that users paid stay paid: the node did
the work at the price it was promised, and the hub stops routing to the model from the same epoch on.

A mistake is a ballot that a ruling contradicts so far that no two honest judges can: a GROSS on one side,
or statistics more than a factor 2 apart. A node that answers exactly at a threshold splits honest judges,
who saw the same number: that fines nobody.
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
from emcd.proto.messages import Verdict
from emcd.proto.params import ModelStanding
from emcd.types import Address

CLEAR_FACTOR = 2


class Ballot(NamedTuple):
    """One validator's word on one call."""

    verdict: Verdict
    statistic_e12: int


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
        ballot = Ballot(Verdict(entry.vote.verdict), entry.vote.statistic_e12)
        cast.setdefault(entry.vote.call_id, {})[entry.vote.validator] = ballot
    done = Counter(outcome.done)
    passed: Counter[Address] = Counter()
    strikes: list[Strike] = []
    shadowed: list[Strike] = []
    mistaken: set[Address] = set()
    rulings: dict[bytes, Verdict | None] = {}
    for probe in outcome.probes:
        ballots = ballots_on(probe, cast.get(probe.call_id, {}))
        ruling = None if probe.verdict is Verdict.ERROR else find_ruling(terms, ballots)
        rulings[probe.call_id] = ruling
        standing = terms.params.standing_of(probe.model_hash)
        done[probe.prober] -= ruling is Verdict.ERROR
        passed[probe.node] += probe.counts and is_passed(probe.verdict, ruling, standing)
        if ruling is None or standing is ModelStanding.DELISTED:
            continue
        mistaken |= find_mistaken(terms.powers, ballots, ruling)
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
    powers: Mapping[Address, int], ballots: Mapping[Address, Ballot], ruling: Verdict
) -> set[Address]:
    """The authors of ballots that the ruling proves wrong."""
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
        and (ballot.verdict is Verdict.PASS or ballot.verdict.is_strike)
        and _is_clear(ballot, ruling, middle)
    }


def _is_clear(ballot: Ballot, ruling: Verdict, middle: int) -> bool:
    if Verdict.GROSS in (ruling, ballot.verdict):
        return True
    low, high = sorted((ballot.statistic_e12, middle))
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
    """Re-checks drawn and done, by validator.

    To say ERROR is easy, so it is work only where the quorum saw no evidence either.
    """
    listed = {
        probe.call_id: probe.prober
        for probe in outcome.probes
        if probe.verdict is Verdict.PASS
        and terms.params.standing_of(probe.model_hash) is not ModelStanding.DELISTED
    }
    drawn = draw_rechecks(reveals, listed, terms.powers, terms.params)
    rechecks = Counter(validator for validator, _ in drawn)
    rechecked: Counter[Address] = Counter()
    for validator, call_id in drawn:
        ballot = cast.get(call_id, {}).get(validator)
        if ballot is not None:
            rechecked[validator] += ballot.verdict is not Verdict.ERROR or rulings[call_id] is Verdict.ERROR
    return rechecks, +rechecked
