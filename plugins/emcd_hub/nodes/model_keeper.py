"""Keeps the last day of the models in the ledger, coarsely: once a minute and at a drain."""

from __future__ import annotations

import trio

from emcd.clock import Clock
from emcd.ledger import Ledger
from emcd_hub.nodes.model_book import ModelBook
from emcd_hub.nodes.model_row import upsert_slots

EVERY_S = 60.0


class ModelKeeper:
    """The ledger's side of a `ModelBook`."""

    def __init__(self, *, models: ModelBook, ledger: Ledger, clock: Clock) -> None:
        self._models = models
        self._ledger = ledger
        self._clock = clock

    async def run(self) -> None:
        """Write what changed, for ever. A crash loses a minute, which then counts as down."""
        while True:
            await trio.sleep(EVERY_S)
            await self.flush()

    async def flush(self) -> None:
        """Write what changed."""
        changes = self._models.take_changes()
        if changes:
            now_ms = self._clock.now_ms()
            await self._ledger.write(lambda con: upsert_slots(con, changes, now_ms))
