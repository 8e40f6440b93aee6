"""The life of a round in this validator: plan, probes, results, reveal, exchange. Started anew after a crash."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from emcd.accounting.offence import judged_rounds
from emcd.errors import LocalProtocolError
from emcd_validator.chain_view import ChainViews
from emcd_validator.committer import Committer
from emcd_validator.prober import Prober
from emcd_validator.queries.bundles import prune_bundles
from emcd_validator.queries.items import prune_items
from emcd_validator.queries.offences import prune_offences
from emcd_validator.queries.rounds import prune_rounds
from emcd_validator.queries.verdicts import prune_verdicts
from emcd_validator.revealer import reveal_round, sign_results
from emcd_validator.task_giver import TaskGiver
from emcd_validator.validator import Validator
from emcd_validator.voter import Voter
from emcd_validator.watch import prune_watch

KEPT_ROUNDS = 24
KEPT_EPOCHS = 4
"""Of orders to slash; the contract takes those of this epoch and the last."""


class RoundRunner:
    """Starts every round at its time, and at start those that are still going on."""

    def __init__(
        self,
        validator: Validator,
        views: ChainViews,
        committer: Committer,
        prober: Prober,
        voter: Voter,
        giver: TaskGiver,
    ) -> None:
        self._validator = validator
        self._views = views
        self._committer = committer
        self._prober = prober
        self._voter = voter
        self._giver = giver

    async def run(self) -> None:
        """Work rounds, each in a task of its own (three at a time), until cancelled."""
        validator = self._validator
        following = max(0, validator.current_round() - 1)
        async with trio.open_nursery() as nursery:
            while True:
                await validator.sleep_until(validator.params.round_start_ms(following))
                nursery.start_soon(self.run_round, following)
                following += 1

    async def run_round(self, round_index: int) -> None:
        """One round from its beacon to the comparison of seals. Idempotent."""
        validator = self._validator
        params = validator.params
        left_s = (params.grace_end_ms(round_index) - validator.now_ms()) / 1000
        view = None
        with trio.move_on_after(max(0.0, left_s)):
            view = await self._views.wait_view(round_index)
        if view is None:
            validator.log.error("no view of the round", code="EMC-1806", round=round_index)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._voter.gather_commitments, view)
            if validator.now_ms() < params.round_end_ms(round_index) and await self._committer.plan(view):
                await self._prober.run_round(round_index)
        await validator.sleep_until(params.round_end_ms(round_index))
        await self._sign(sign_results, round_index)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._giver.run, view)
            await self._voter.gather_results(view)
            await validator.sleep_until(validator.reveal_at_ms(round_index))
            await self._sign(reveal_round, round_index)
            await self._voter.run_grace(view)
        await validator.sleep_until(params.grace_end_ms(round_index))
        await self._voter.gather_seals(view)

    async def _sign(self, say: Callable[[Validator, int], Awaitable[object]], round_index: int) -> None:
        validator = self._validator
        try:
            await say(validator, round_index)
        except LocalProtocolError as exc:
            validator.log.error("not said", code=exc.code, round=round_index, detail=exc.detail)


async def prune(validator: Validator) -> None:
    """Drop what no round can need any more; sign-once rows stay for ever."""
    before = validator.current_round() - KEPT_ROUNDS

    await validator.write(lambda con: prune_rounds(con, validator.address, before))
    await validator.write(lambda con: prune_verdicts(con, validator.address, before))
    await validator.write(lambda con: prune_items(con, validator.address, before))
    await validator.write(lambda con: prune_watch(con, validator, before))
    await validator.write(lambda con: prune_bundles(con, validator.address, before))
    first, current = judged_rounds(validator.params, validator.current_round())
    epoch = validator.params.epoch_of(current) - KEPT_EPOCHS
    await validator.write(lambda con: prune_offences(con, validator.address, first, epoch))
