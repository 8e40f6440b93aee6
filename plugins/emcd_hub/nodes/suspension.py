"""Which nodes get no users' calls, since validators convicted them.

The facts are those of the newest closed round's bundle: until when its conduct suspends whom. A
suspended node stays connected and is probed, and who names it still reaches it; it earns nothing in
that time whatever it does. Without closed rounds nobody is suspended.
"""

from __future__ import annotations

from collections.abc import Mapping

from emcd.accounting.suspension import Conduct
from emcd.clock import Clock
from emcd.ledger import Ledger
from emcd.proto.params import NetworkParams
from emcd.types import Address
from emcd_hub.nodes.board import NodeBoard
from emcd_hub.rounds.bundle_row import find_conducts, find_newest_round


def suspended_in(conducts: Mapping[Address, Conduct], index: int) -> set[Address]:
    """The nodes that are suspended in a round."""
    return {node for node, conduct in conducts.items() if index < conduct.suspended_until_round}


class SuspensionWatch:
    """Tells the board whom the rounds suspend."""

    def __init__(self, *, board: NodeBoard, ledger: Ledger, clock: Clock, params: NetworkParams) -> None:
        self._board = board
        self._ledger = ledger
        self._clock = clock
        self._params = params
        self._read_round = -1
        self._conducts: Mapping[Address, Conduct] = {}

    async def refresh(self) -> None:
        """Look whether a round was closed or another has begun. To be called a few times a round."""
        newest = await self._ledger.read(find_newest_round)
        if newest is not None and newest != self._read_round:
            self._conducts = await self._ledger.read(lambda con: find_conducts(con, newest))
            self._read_round = newest
        self._board.suspend(suspended_in(self._conducts, self._params.round_at(self._clock.now_ms())))
