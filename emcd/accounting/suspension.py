"""Strikes and suspensions over rounds. Source: VERIFICATION 4, "Deterrence".

A GROSS that stands convicts at once; FAIL and CLASS when two of them stand within the strike window.
A conviction in round k suspends rounds k+1 .. k+`suspension_rounds`, and twice as long each time it
follows the last suspension within the window. Precision that was declared wrong (CLASS) suspends like a
FAIL, but is never slashed. The table is folded over the chain of accepted bundles, in order, so that hub
and validators hold the same one. Invariant: it holds nobody without a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from emcd.proto.messages import Verdict
from emcd.proto.params import NetworkParams
from emcd.types import Address

STRIKES_TO_CONVICT = 2
_MAX_DOUBLINGS = 16


@dataclass(frozen=True)
class Strike:
    """A FAIL, GROSS or CLASS of a node that more than 2/3 of the power confirm."""

    node: Address
    call_id: bytes
    verdict: Verdict


@dataclass(frozen=True)
class Conduct:
    """A node's record: rounds of its strikes in the window, suspensions in a row, and until when.

    `strike_rounds` are those of FAILs, `class_rounds` those of CLASSes. It is suspended in every round
    below `suspended_until_round`.
    """

    strike_rounds: tuple[int, ...] = ()
    suspensions: int = 0
    suspended_until_round: int = 0
    class_rounds: tuple[int, ...] = ()


class Conviction(Enum):
    """What a round's strikes come to; CLASS is suspended alone, the others are slashed too."""

    NONE = "none"
    CLASS = "class"
    FAILS = "fails"
    GROSS = "gross"


def advance_conduct(
    conducts: Mapping[Address, Conduct], index: int, strikes: Iterable[Strike], params: NetworkParams
) -> dict[Address, Conduct]:
    """The table after round `index` with the strikes that stand in its bundle."""
    by_node = group_verdicts(strikes)
    after: dict[Address, Conduct] = {}
    for node in conducts.keys() | by_node.keys():
        conduct = _advance(conducts.get(node, Conduct()), index, by_node.get(node, []), params)
        if conduct != Conduct():
            after[node] = conduct
    return after


def group_verdicts(strikes: Iterable[Strike]) -> dict[Address, list[Verdict]]:
    """The verdicts of a round's strikes by node."""
    by_node: dict[Address, list[Verdict]] = {}
    for strike in strikes:
        by_node.setdefault(strike.node, []).append(strike.verdict)
    return by_node


def find_conviction(
    before: Conduct, index: int, verdicts: Sequence[Verdict], params: NetworkParams
) -> Conviction:
    """What these strikes of round `index` come to for a node with this record."""
    if Verdict.GROSS in verdicts:
        return Conviction.GROSS
    fails, classes = _in_window(before, index, verdicts, params)
    if not verdicts or len(fails) + len(classes) < STRIKES_TO_CONVICT:
        return Conviction.NONE
    return Conviction.FAILS if len(fails) >= STRIKES_TO_CONVICT else Conviction.CLASS


def _in_window(
    before: Conduct, index: int, verdicts: Sequence[Verdict], params: NetworkParams
) -> tuple[list[int], list[int]]:
    """The rounds of FAILs and of CLASSes that still weigh, this round's among them."""
    oldest = index - params.strike_window_rounds + 1
    fails = [item for item in before.strike_rounds if item >= oldest]
    classes = [item for item in before.class_rounds if item >= oldest]
    fails += [index] * sum(verdict is Verdict.FAIL for verdict in verdicts)
    classes += [index] * sum(verdict is Verdict.CLASS for verdict in verdicts)
    return fails, classes


def _advance(before: Conduct, index: int, verdicts: Sequence[Verdict], params: NetworkParams) -> Conduct:
    fails, classes = _in_window(before, index, verdicts, params)
    fresh = before.suspended_until_round <= index - params.strike_window_rounds + 1
    suspensions = 0 if fresh else before.suspensions
    until = 0 if fresh else before.suspended_until_round
    if find_conviction(before, index, verdicts, params) is Conviction.NONE:
        return Conduct(tuple(fails), suspensions, until, tuple(classes))
    length = params.suspension_rounds * 2 ** min(suspensions, _MAX_DOUBLINGS)
    return Conduct((), suspensions + 1, max(until, index + 1 + length))
