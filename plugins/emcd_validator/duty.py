"""Which probes of a peer this validator has to judge anew. Pure.

Every strike, whoever called it one; the PASSes that its own seed draws; and every PASS of a peer that
did not stand by its results: whoever shows them late, or other ones than it reveals, may have written
them with a look at other seeds.
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
    """The calls that some vote calls a strike, or without evidence."""
    return frozenset(
        call_id
        for (call_id, _), entry in held.votes.items()
        if entry.vote.verdict == Verdict.ERROR or Verdict(entry.vote.verdict).is_strike
    )


def list_duties(
    reveal: RevealEntry, *, accused: Set[bytes], is_drawn: Callable[[bytes], bool], all_passes: bool
) -> tuple[ProbeResult, ...]:
    """The probes to vote on, the strikes first."""
    answered = [probe for probe in reveal.probes if probe.call_id != NO_CALL]
    strikes = [probe for probe in answered if Verdict(probe.verdict).is_strike]
    passes = [probe for probe in answered if probe.verdict == Verdict.PASS]
    called = [probe for probe in passes if probe.call_id in accused]
    random = [
        probe for probe in passes if probe.call_id not in accused and (all_passes or is_drawn(probe.call_id))
    ]
    return (*strikes, *called, *random)


def list_votable(held: Held) -> frozenset[bytes]:
    """The calls of revealed probes that were answered: what anybody may vote on."""
    return frozenset(
        probe.call_id
        for entry in held.reveals.values()
        for probe in entry.probes
        if probe.call_id != NO_CALL and probe.verdict not in (Verdict.ERROR, Verdict.OFFLINE)
    )
