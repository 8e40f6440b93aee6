"""What the revealed probes of a round come to: who did its part, what nodes passed, which strikes stand.

A verdict on an answer needs the answer: it is backed by a call of the bundle with its node, its
request and its response; an ERROR needs the call alone, or none. One call backs one probe, that
whose planned time is nearest to the call's start; a planned time is drawn from the seed that its
validator committed to, so that copying another's probe gains nothing.

A router earns by the probes alone: the hub names the router of a call, and so could favour one with
calls that nobody asked for, but it does not know which calls are probes, and the node's receipt is over
the forward that names the router. A node is a router's when a probe of it was answered through it; of
the probes of these nodes that a call backs, those count that it forwarded and that were answered: while
it is down its nodes are elsewhere. What only the hub or only a prober says does not count against it.
Source: DESIGN 2.4 and 2.6, VERIFICATION 4 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from emcd.accounting.assignment import draw_time_ms
from emcd.accounting.evidence_rule import NO_CALL
from emcd.accounting.suspension import Strike
from emcd.accounting.tally import ProbedCall
from emcd.accounting.terms import RoundTerms
from emcd.proto.address import address_bytes
from emcd.proto.bundle import ProbeResult, RevealEntry, VoteEntry
from emcd.proto.messages import Verdict
from emcd.types import ZERO_ADDRESS, Address


@dataclass(frozen=True)
class Accusation:
    """A backed FAIL or GROSS of a prober."""

    prober: Address
    node: Address
    call_id: bytes
    receipt_hash: bytes
    verdict: Verdict


@dataclass(frozen=True)
class ProbeOutcome:
    """Counts of the round: probes planned and done by validator, passed by node; by router those that it
    forwarded, and those of its nodes, which were due to it."""

    planned: Counter[Address]
    done: Counter[Address]
    passed: Counter[Address]
    forwarded: Counter[Address]
    due: Counter[Address]
    accusations: tuple[Accusation, ...]

    @property
    def struck(self) -> dict[bytes, bytes]:
        """The receipt hash of every accused call, by call id: what may be voted on."""
        return {item.call_id: item.receipt_hash for item in self.accusations}


def compute_probe_outcome(
    terms: RoundTerms,
    reveals: Iterable[RevealEntry],
    calls: Mapping[bytes, ProbedCall],
    online: Set[Address],
) -> ProbeOutcome:
    """Args: `calls` those that the reveals name (`CallTally.probed`), `online` nodes with a status."""
    probes = [(entry.reveal, probe) for entry in reveals for probe in entry.probes]
    backed = _backed(terms, [(reveal.seed, probe) for reveal, probe in probes], calls)
    done: Counter[Address] = Counter()
    passed: Counter[Address] = Counter()
    probed: Counter[Address] = Counter()
    routes: list[tuple[Address, ProbedCall]] = []
    accusations = []
    for reveal, probe in probes:
        verdict = Verdict(probe.verdict)
        is_backed = (probe.node, probe.slot) in backed
        done[reveal.validator] += _is_done(
            verdict, probe, is_backed=is_backed, is_online=probe.node in online
        )
        if not is_backed:
            continue
        call = calls[probe.call_id]
        probed[probe.node] += 1
        routes.append((probe.node, call))
        passed[probe.node] += verdict is Verdict.PASS and call.counts
        if verdict.is_strike:
            accusations.append(
                Accusation(reveal.validator, probe.node, probe.call_id, call.receipt_hash, verdict)
            )
    planned = Counter(assignment.validator for assignment in terms.assignments.values())
    forwarded, due = _count_routes(routes, probed)
    accused = tuple(sorted(accusations, key=lambda item: item.call_id))
    return ProbeOutcome(planned, +done, +passed, forwarded, due, accused)


def list_standing_strikes(
    terms: RoundTerms, outcome: ProbeOutcome, votes: Iterable[VoteEntry]
) -> tuple[Strike, ...]:
    """The accusations that more than 2/3 of the frozen power confirm; the prober's word is its vote.

    A set with fewer members than `minimum_judges` convicts nobody.
    """
    if len(terms.powers) < terms.params.minimum_judges:
        return ()
    cast: dict[bytes, dict[Address, Verdict]] = {}
    for entry in votes:
        cast.setdefault(entry.vote.call_id, {})[entry.vote.validator] = Verdict(entry.vote.verdict)
    strikes = []
    for item in outcome.accusations:
        ballots = {**cast.get(item.call_id, {}), item.prober: item.verdict}
        gross = sum(terms.powers[voter] for voter, verdict in ballots.items() if verdict is Verdict.GROSS)
        strike = sum(terms.powers[voter] for voter, verdict in ballots.items() if verdict.is_strike)
        if terms.is_quorum(gross):
            strikes.append(Strike(item.node, item.call_id, Verdict.GROSS))
        elif terms.is_quorum(strike):
            strikes.append(Strike(item.node, item.call_id, Verdict.FAIL))
    return tuple(strikes)


def _count_routes(
    routes: Iterable[tuple[Address, ProbedCall]], probed: Mapping[Address, int]
) -> tuple[Counter[Address], Counter[Address]]:
    """By router: probes it forwarded, and probes of the nodes that it had.

    Args: `routes` node and call of the probes that a call backs, `probed` how many those are by node.
    """
    forwarded: Counter[Address] = Counter()
    nodes: dict[Address, set[Address]] = {}
    for node, call in routes:
        if call.router != ZERO_ADDRESS and call.counts:
            forwarded[call.router] += 1
            nodes.setdefault(call.router, set()).add(node)
    due = Counter({router: sum(probed[node] for node in its) for router, its in nodes.items()})
    return forwarded, due


def _backed(
    terms: RoundTerms, probes: Iterable[tuple[bytes, ProbeResult]], calls: Mapping[bytes, ProbedCall]
) -> set[tuple[Address, int]]:
    """Node and slot of the probes that a call backs; each comes with its validator's seed."""
    nearest: dict[bytes, tuple[int, bytes, int, Address]] = {}
    for seed, probe in probes:
        call = calls.get(probe.call_id)
        if call is None or not _matches(probe, call):
            continue
        due_at_ms = draw_time_ms(seed, terms.beacon_hash, probe.node, probe.slot, terms.params, terms.round)
        claim = (abs(due_at_ms - call.started_at_ms), address_bytes(probe.node), probe.slot, probe.node)
        if probe.call_id not in nearest or claim < nearest[probe.call_id]:
            nearest[probe.call_id] = claim
    return {(node, slot) for _, _, slot, node in nearest.values()}


def _matches(probe: ProbeResult, call: ProbedCall) -> bool:
    if probe.node != call.node or probe.request_hash != call.request_hash:
        return False
    return probe.verdict == Verdict.ERROR or (call.is_proven and probe.response_hash == call.response_hash)


def _is_done(verdict: Verdict, probe: ProbeResult, *, is_backed: bool, is_online: bool) -> bool:
    if verdict is Verdict.OFFLINE:
        return not is_online
    if verdict is Verdict.ERROR:
        return is_backed or probe.call_id == NO_CALL
    return is_backed
