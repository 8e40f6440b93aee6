"""What the revealed probes of a round are: planned, done, backed by a call, and through which router.

A verdict on an answer needs the answer: it is backed by a call of the bundle with its node, its
request and its response; an ERROR needs the call alone, or none where the node answered nobody in the
round. Where the call has a proven answer an ERROR is a word on it like any other: it is voted on and
drawn to be judged again. One call backs one probe, that whose planned time is nearest to the call's
start; a planned time is drawn from the seed that its validator committed to, so that copying another's
probe gains nothing.

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
from emcd.accounting.tally import CallTally, NodeTally, ProbedCall
from emcd.accounting.terms import RoundTerms
from emcd.proto.address import address_bytes
from emcd.proto.bundle import ProbeResult, RevealEntry
from emcd.proto.messages import Verdict
from emcd.types import ZERO_ADDRESS, Address


@dataclass(frozen=True)
class BackedProbe:
    """A revealed probe that a call backs.

    `counts`: the call may earn. `is_answered`: its answer is proven, so that others can judge it too.
    """

    prober: Address
    node: Address
    call_id: bytes
    receipt_hash: bytes
    model_hash: bytes
    verdict: Verdict
    statistic_e12: int
    counts: bool
    is_answered: bool


@dataclass(frozen=True)
class ProbeOutcome:
    """The round's probes before anybody voted: planned and done by validator; by router those that it
    forwarded, and those of its nodes, which were due to it. `probes` are sorted by their calls."""

    planned: Counter[Address]
    done: Counter[Address]
    forwarded: Counter[Address]
    due: Counter[Address]
    probes: tuple[BackedProbe, ...]

    @property
    def votable(self) -> dict[bytes, bytes]:
        """The receipt hash by call id of every probe that was answered: what may be voted on."""
        return {probe.call_id: probe.receipt_hash for probe in self.probes if probe.is_answered}


def compute_probe_outcome(
    terms: RoundTerms, reveals: Iterable[RevealEntry], tally: CallTally, online: Set[Address]
) -> ProbeOutcome:
    """Args: `tally` with the calls that the reveals name, `online` nodes with a status."""
    probes = [(entry.reveal, probe) for entry in reveals for probe in entry.probes]
    backed = _backed(terms, [(reveal.seed, probe) for reveal, probe in probes], tally.probed)
    done: Counter[Address] = Counter()
    found: list[BackedProbe] = []
    routers: dict[bytes, Address] = {}
    for reveal, probe in probes:
        is_backed = (probe.node, probe.slot) in backed
        done[reveal.validator] += _is_done(probe, tally, is_backed=is_backed, is_online=probe.node in online)
        if is_backed:
            call = tally.probed[probe.call_id]
            routers[probe.call_id] = call.router
            found.append(_as_backed(reveal.validator, probe, call))
    found.sort(key=lambda item: item.call_id)
    planned = Counter(assignment.validator for assignment in terms.assignments.values())
    forwarded, due = _count_routes(found, routers)
    return ProbeOutcome(planned, +done, forwarded, due, tuple(found))


def _as_backed(prober: Address, probe: ProbeResult, call: ProbedCall) -> BackedProbe:
    return BackedProbe(
        prober,
        probe.node,
        probe.call_id,
        call.receipt_hash,
        call.model_hash,
        Verdict(probe.verdict),
        probe.statistic_e12,
        call.counts,
        call.is_proven,
    )


def _count_routes(
    probes: Iterable[BackedProbe], routers: Mapping[bytes, Address]
) -> tuple[Counter[Address], Counter[Address]]:
    """By router: probes it forwarded, and probes of the nodes that it had.

    Args: `routers` the router by call id, zero where the hub scheduled by itself.
    """
    probed: Counter[Address] = Counter()
    forwarded: Counter[Address] = Counter()
    nodes: dict[Address, set[Address]] = {}
    for probe in probes:
        router = routers[probe.call_id]
        probed[probe.node] += 1
        if router != ZERO_ADDRESS and probe.counts:
            forwarded[router] += 1
            nodes.setdefault(router, set()).add(probe.node)
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
    if probe.node != call.node or probe.request_hash != call.request_hash or probe.verdict == Verdict.OFFLINE:
        return False
    return probe.verdict == Verdict.ERROR or (call.is_proven and probe.response_hash == call.response_hash)


def _is_done(probe: ProbeResult, tally: CallTally, *, is_backed: bool, is_online: bool) -> bool:
    """Whether the prober did its part.

    That no call came about is easily said: who answered others in the round could have been asked.
    """
    if probe.verdict == Verdict.OFFLINE:
        return not is_online
    if probe.verdict == Verdict.ERROR and not is_backed:
        return not tally.nodes.get(probe.node, NodeTally()).counted_calls
    return is_backed
