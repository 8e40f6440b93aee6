"""What the verdicts of a bundle say of a node, a call or a validator: sentences for people.

Reads a bundle that passed its audit, of which the calls may be cut down to those of one node; rules by
the same functions as the audit and decides nothing anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from emcd.accounting.evidence_rule import NO_CALL
from emcd.accounting.recheck import draw_rechecks
from emcd.accounting.ruling import (
    Ballot,
    find_mistaken,
    find_ruling,
    is_passed,
    is_undone,
    is_work,
    read_ballot,
)
from emcd.accounting.terms import RoundTerms, make_terms
from emcd.proto.bundle import Bundle, CallEntry, ProbeResult
from emcd.proto.messages import Verdict
from emcd.proto.params import ModelStanding
from emcd.proto.records import format_call_id
from emcd.types import Address

_MEANINGS = {
    Verdict.PASS: "the answer is the model's",
    Verdict.FAIL: "the answer is not the model's",
    Verdict.GROSS: "the answer is far from the model's",
    Verdict.CLASS: "the answer is that of a lower precision than the model's manifest declares",
    Verdict.TEMPLATE: "tokens, text and counts of the answer do not fit each other, which strikes nobody",
    Verdict.ERROR: "there was no usable answer, which is no cheating",
    Verdict.OFFLINE: "the node was not there, which is no cheating",
}
_SHOWN_CALLS = 5


class _Judged(NamedTuple):
    """A revealed probe with everybody's ballots and what they come to."""

    prober: Address
    probe: ProbeResult
    ballots: dict[Address, Ballot]
    ruling: Verdict | None
    is_listed: bool
    """Whether it may be drawn to be judged again."""
    is_undone: bool
    """Whether its prober's work on it counts for none."""


def tell_probe(bundle: Bundle, call: CallEntry) -> tuple[bool, str] | None:
    """Whether a call counts as a passed probe, and why; None when no reveal names it."""
    found = [item for item in _judged(bundle) if item.probe.call_id == call.forward.call_id]
    if not found:
        return None
    item = found[0]
    verdict = Verdict(item.probe.verdict)
    standing = bundle.header.params.standing_of(call.forward.model_hash)
    passed = is_passed(verdict, item.ruling, standing)
    words = [
        f"a probe, found {_name(verdict, item.probe.statistic_e12)} by {item.prober}: {_MEANINGS[verdict]}"
    ]
    words += _tell_ruling(item)
    final = item.ruling or verdict
    if standing is ModelStanding.DELISTED:
        words.append("the model is delisted: its probes earn nothing, and no node is to blame")
    elif passed and final.is_strike:
        words.append(
            "the model is in shadow until its thresholds are calibrated: written down, costs nothing"
        )
    words.append("probes count by passing" if not passed else "it counts")
    return passed, "; ".join(words)


def tell_strikes(bundle: Bundle, node: Address) -> str:
    """Every word against a node's answers: probers' and voters', with statistic and call."""
    found = []
    for item in _judged(bundle):
        against = [
            f"{_name(ballot.verdict, ballot.statistic_e12)} by {voter}"
            for voter, ballot in sorted(item.ballots.items())
            if ballot.verdict.is_strike
        ]
        if item.probe.node == node and against:
            stands = f", {item.ruling.name} stands" if item.ruling and item.ruling.is_strike else ""
            found.append(f"{format_call_id(item.probe.call_id)}: {', '.join(against)}{stands}")
    return "; ".join(found)


def tell_work(bundle: Bundle, validator: Address) -> str:
    """What a validator had to do and which of its re-checks are missing."""
    terms = _terms(bundle)
    judged = list(_judged(bundle))
    listed = {item.probe.call_id: item.prober for item in judged if item.is_listed}
    reveals = [entry for entry in bundle.reveals if entry.reveal.validator == validator]
    drawn = {call_id for _, call_id in draw_rechecks(reveals, listed, terms.powers, terms.params)}
    done = {
        item.probe.call_id
        for item in judged
        if item.probe.call_id in drawn
        and validator in item.ballots
        and is_work(item.ballots[validator].verdict, item.ruling)
    }
    words = f"{len(done)} of {len(drawn)} re-checks done"
    return words + (f", missed: {_list_calls(drawn - done)}" if drawn - done else "")


def tell_mistakes(bundle: Bundle, validator: Address) -> str:
    """Which of a validator's words were proven wrong."""
    terms = _terms(bundle)
    found = [
        f"{_name(*item.ballots[validator][:2])} on {format_call_id(item.probe.call_id)}, where more than 2/3 of the"
        f" power say {item.ruling.name}"
        for item in _judged(bundle)
        if item.ruling is not None
        and validator in item.ballots
        and validator in find_mistaken(terms.powers, item.ballots, item.ruling, item.prober)
    ]
    return "; ".join(found)


def _judged(bundle: Bundle) -> Iterator[_Judged]:
    terms = _terms(bundle)
    votes: dict[bytes, dict[Address, Ballot]] = {}
    for entry in bundle.votes:
        votes.setdefault(entry.vote.call_id, {})[entry.vote.validator] = read_ballot(entry.vote)
    calls = {entry.forward.call_id: entry for entry in bundle.calls}
    for reveal in bundle.reveals:
        prober = reveal.reveal.validator
        for probe in reveal.probes:
            own = Ballot(Verdict(probe.verdict), probe.statistic_e12)
            ballots = {**votes.get(probe.call_id, {}), prober: own}
            call = calls.get(probe.call_id)
            is_answered = _is_answered(probe, call)
            ruling = find_ruling(terms, ballots) if is_answered or probe.call_id in votes else None
            standing = ModelStanding.SHADOW
            if call is not None:
                standing = bundle.header.params.standing_of(call.forward.model_hash)
            yield _Judged(
                prober,
                probe,
                ballots,
                ruling,
                is_answered and not Verdict(probe.verdict).is_strike,
                is_undone(terms, Verdict(probe.verdict), ballots, ruling, standing),
            )


def _is_answered(probe: ProbeResult, call: CallEntry | None) -> bool:
    """Whether the probe names an answer that others can judge; an ERROR needs its call to tell."""
    if probe.verdict != Verdict.ERROR:
        return probe.call_id != NO_CALL
    return call is not None and None not in (call.forward_ref, call.receipt_ref, call.delivery_ref)


def _terms(bundle: Bundle) -> RoundTerms:
    return make_terms(bundle.header, bundle.participants, bundle.validators)


def _tell_ruling(item: _Judged) -> list[str]:
    if item.ruling is Verdict.ERROR and item.is_undone:
        return ["its prober showed its evidence to nobody, so that it does not count"]
    if item.ruling is not None and item.ruling != item.probe.verdict:
        words = [f"more than 2/3 of the power say {item.ruling.name}: {_MEANINGS[item.ruling]}"]
        return words + (["its prober did no work on it"] if item.is_undone else [])
    if item.ruling is not None:
        return ["more than 2/3 of the power agree"]
    if Verdict(item.probe.verdict).is_strike:
        return ["less than 2/3 of the power agree: nobody is struck"]
    return []


def _name(verdict: Verdict, statistic_e12: int) -> str:
    return f"{verdict.name} (statistic {statistic_e12 / 1e12:.1e})"


def _list_calls(calls: set[bytes]) -> str:
    shown = ", ".join(map(format_call_id, sorted(calls)[:_SHOWN_CALLS]))
    return shown + (f" and {len(calls) - _SHOWN_CALLS} more" if len(calls) > _SHOWN_CALLS else "")
