"""Which nodes get no users' calls, since validators convicted them.

The facts are those of the newest closed round's bundle: until when its conduct suspends whom. A
suspended node stays connected and is probed, and who names it still reaches it; it earns nothing in
that time whatever it does. Without closed rounds nobody is suspended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from emcd.accounting.suspension import Conduct
from emcd.clock import Clock
from emcd.ledger import Connection, Ledger
from emcd.proto.messages import Verdict
from emcd.proto.params import NetworkParams
from emcd.types import Address
from emcd_hub.nodes.board import NodeBoard
from emcd_hub.rounds.bundle_row import find_conducts, find_newest_round, list_results
from emcd_hub.rounds.evidence_row import list_reveals


class NodeVerdicts(NamedTuple):
    """What a closed round says of a node. `reason`: why it earned nothing, "" where it did."""

    round: int
    verdicts: tuple[str, ...]
    reason: str


def suspended_in(conducts: Mapping[Address, Conduct], index: int) -> set[Address]:
    """The nodes that are suspended in a round."""
    return {node for node, conduct in conducts.items() if index < conduct.suspended_until_round}


def read_verdicts(con: Connection, index: int) -> dict[Address, NodeVerdicts]:
    """What a closed round says of each of its nodes: verdicts by slot, as their validators revealed them."""
    known = {verdict.value: verdict.name for verdict in Verdict}
    found: dict[Address, list[tuple[int, str]]] = {}
    for entry in list_reveals(con, index):
        for probe in entry.probes:
            word = known.get(probe.verdict, str(probe.verdict))
            found.setdefault(probe.node, []).append((probe.slot, word))
    reasons = {row.node: row.entry.reason for row in list_results(con, index)}
    return {
        node: NodeVerdicts(
            index, tuple(word for _, word in sorted(found.get(node, []))), reasons.get(node, "")
        )
        for node in found.keys() | reasons.keys()
    }


class SuspensionWatch:
    """Tells the board whom the rounds suspend."""

    def __init__(self, *, board: NodeBoard, ledger: Ledger, clock: Clock, params: NetworkParams) -> None:
        self._board = board
        self._ledger = ledger
        self._clock = clock
        self._params = params
        self._read_round = -1
        self._conducts: Mapping[Address, Conduct] = {}
        self._verdicts: Mapping[Address, NodeVerdicts] = {}

    def find_conduct(self, node: Address) -> Conduct | None:
        """A node's strikes and suspensions after the newest closed round; None for neither."""
        return self._conducts.get(node)

    def find_verdicts(self, node: Address) -> NodeVerdicts | None:
        """What the newest closed round says of a node."""
        return self._verdicts.get(node)

    async def refresh(self) -> None:
        """Look whether a round was closed or another has begun. To be called a few times a round."""
        newest = await self._ledger.read(find_newest_round)
        if newest is not None and newest != self._read_round:
            self._conducts, self._verdicts = await self._ledger.read(
                lambda con: (find_conducts(con, newest), read_verdicts(con, newest))
            )
            self._read_round = newest
        self._board.suspend(suspended_in(self._conducts, self._params.round_at(self._clock.now_ms())))
