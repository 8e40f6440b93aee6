"""The task of offences: collect, compare with the peers, sign orders. Started anew after a crash."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from emcd.errors import EmcdError, FatalError
from emcd_validator.offence_desk import OffenceDesk
from emcd_validator.offence_exchange import OffenceExchange
from emcd_validator.slash_desk import SlashDesk
from emcd_validator.validator import Validator

COMPARISONS_PER_ROUND = 2
LEAST_PAUSE_S = 1.0
"""Offences are judged for many rounds: nothing of this is as urgent as the round itself."""


class OffenceRunner:
    """The offences of one validator. What may pass is written down and tried again."""

    def __init__(
        self, validator: Validator, desk: OffenceDesk, exchange: OffenceExchange, slashes: SlashDesk
    ) -> None:
        self._validator = validator
        self._desk = desk
        self._exchange = exchange
        self._slashes = slashes

    async def run(self) -> None:
        """Look until cancelled."""
        params, poll_s = self._validator.params, self._validator.poll_s
        compare_s = max(2 * LEAST_PAUSE_S, params.round_s / COMPARISONS_PER_ROUND)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat, self._compare, compare_s)
            nursery.start_soon(self._repeat, self._judge, max(LEAST_PAUSE_S, poll_s))

    async def _judge(self) -> None:
        await self._desk.collect()
        await self._slashes.step()

    async def _compare(self) -> None:
        await self._exchange.step()

    async def _repeat(self, step: Callable[[], Awaitable[None]], pause_s: float) -> None:
        told = ""
        while True:
            try:
                await step()
                told = ""
            except FatalError:
                raise
            except EmcdError as exc:
                if exc.code != told:
                    self._validator.log.warning("offences delayed", code=exc.code, detail=exc.detail)
                told = exc.code
            await trio.sleep(pause_s)
