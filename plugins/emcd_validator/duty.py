"""Which probes of a peer this validator has to judge anew. Pure.

Every strike, whoever called it one; of the other answers (PASS, TEMPLATE and ERROR about a call) those
that its own seed draws, and those that somebody says something else of; and every answer of a peer that did not
stand by its results: whoever shows them late, or other ones than it reveals, may have written them with
a look at other seeds. Whether the answer to an ERROR is proven shows with the evidence, or in the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from emcd.accounting.evidence_rule import NO_CALL
from emcd.proto.bundle import ProbeResult, RevealEntry
from emcd.proto.messages import Verdict
from emcd_validator.entry import Held


def is_mistrusted(held: Held, reveal: RevealEntry, reveal_at_ms: int) -> bool:
    """Whether a peer's reveal is not of results that were held before seeds were served."""
    peer = reveal.reveal.validator
    said = held.results.get(peer)
    if said is None or held.results_at_ms[peer] > reveal_at_ms:
        return True
    return said.results.probes_hash != reveal.reveal.probes_hash


def list_accused(held: Held) -> frozenset[bytes]:
    """The calls that some vote calls other than a PASS, or that were called unusable and have a vote."""
    unusable = {
        probe.call_id
        for entry in held.reveals.values()
        for probe in entry.probes
        if probe.verdict in (Verdict.TEMPLATE, Verdict.ERROR)
    }
    return frozenset(
        call_id
        for (call_id, _), entry in held.votes.items()
        if entry.vote.verdict != Verdict.PASS or call_id in unusable
    )


def list_duties(
    reveal: RevealEntry, *, accused: Set[bytes], is_drawn: Callable[[bytes], bool], judges_all: bool
) -> tuple[ProbeResult, ...]:
    """The probes to vote on, the strikes first."""
    answered = [probe for probe in reveal.probes if _is_answer(probe)]
    strikes = [probe for probe in answered if Verdict(probe.verdict).is_strike]
    others = [probe for probe in answered if not Verdict(probe.verdict).is_strike]
    called = [probe for probe in others if probe.call_id in accused]
    random = [
        probe for probe in others if probe.call_id not in accused and (judges_all or is_drawn(probe.call_id))
    ]
    return (*strikes, *called, *random)


def list_votable(held: Held) -> frozenset[bytes]:
    """The calls of revealed probes that may have been answered: what anybody may vote on."""
    return frozenset(
        probe.call_id for entry in held.reveals.values() for probe in entry.probes if _is_answer(probe)
    )


def _is_answer(probe: ProbeResult) -> bool:
    return probe.call_id != NO_CALL and probe.verdict != Verdict.OFFLINE
