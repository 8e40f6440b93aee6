"""Strikes and suspensions over rounds. Source: VERIFICATION 4, "Deterrence".

A GROSS that stands convicts at once, FAILs when two stand within the strike window. A conviction
in round k suspends rounds k+1 .. k+`suspension_rounds`, and twice as long each time it follows
the last suspension within the window. The table is folded over the chain of accepted bundles, in
order, so that hub and validators hold the same one. Invariant: it holds nobody without a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emcd.proto.messages import Verdict
from emcd.proto.params import NetworkParams
from emcd.types import Address

FAILS_TO_CONVICT = 2
_MAX_DOUBLINGS = 16


@dataclass(frozen=True)
class Strike:
    """A FAIL or GROSS of a node that more than 2/3 of the power confirm."""

    node: Address
    call_id: bytes
    verdict: Verdict


@dataclass(frozen=True)
class Conduct:
    """A node's record: rounds of its FAILs in the window, suspensions in a row, and until when.

    It is suspended in every round below `suspended_until_round`.
    """

    strike_rounds: tuple[int, ...] = ()
    suspensions: int = 0
    suspended_until_round: int = 0


def advance_conduct(
    conducts: Mapping[Address, Conduct], index: int, strikes: Iterable[Strike], params: NetworkParams
) -> dict[Address, Conduct]:
    """The table after round `index` with the strikes that stand in its bundle."""
    by_node: dict[Address, list[Verdict]] = {}
    for strike in strikes:
        by_node.setdefault(strike.node, []).append(strike.verdict)
    after: dict[Address, Conduct] = {}
    for node in conducts.keys() | by_node.keys():
        conduct = _advance(conducts.get(node, Conduct()), index, by_node.get(node, []), params)
        if conduct != Conduct():
            after[node] = conduct
    return after


def _advance(before: Conduct, index: int, verdicts: list[Verdict], params: NetworkParams) -> Conduct:
    oldest = index - params.strike_window_rounds + 1
    fails = [item for item in before.strike_rounds if item >= oldest]
    fails += [index] * sum(verdict is Verdict.FAIL for verdict in verdicts)
    fresh = before.suspended_until_round <= oldest
    row = Conduct(
        tuple(fails), 0 if fresh else before.suspensions, 0 if fresh else before.suspended_until_round
    )
    if Verdict.GROSS not in verdicts and not (Verdict.FAIL in verdicts and len(fails) >= FAILS_TO_CONVICT):
        return row
    length = params.suspension_rounds * 2 ** min(row.suspensions, _MAX_DOUBLINGS)
    until = max(row.suspended_until_round, index + 1 + length)
    return Conduct((), row.suspensions + 1, until)
