"""How one validator is watched and watches: tasks given and taken, false verdicts, challenged receipts.

Owns putting these parts together, and their tasks; each part has its own rules.
"""

from __future__ import annotations

from random import SystemRandom

import trio
from starlette.routing import Route

from emcd.ledger import Connection
from emcd_validator.chain_view import ChainViews
from emcd_validator.challenge_desk import ChallengeDesk
from emcd_validator.challenge_page import ChallengePages
from emcd_validator.false_verdict import FalseVerdictJudge
from emcd_validator.peer_client import PeerClient
from emcd_validator.queries.challenges import prune_challenges
from emcd_validator.queries.tasks import prune_tasks
from emcd_validator.rechecker import Judges, OwnJudge
from emcd_validator.task_desk import TaskDesk
from emcd_validator.task_giver import TaskGiver
from emcd_validator.task_page import TaskPages
from emcd_validator.validator import Validator


class Watch:
    """The parts of one validator; `run` must be running for tasks to be judged."""

    def __init__(
        self,
        validator: Validator,
        peers: PeerClient,
        views: ChainViews,
        judge: Judges,
        own_judge: OwnJudge,
    ) -> None:
        self._validator = validator
        self._own_judge = own_judge
        self.tasks = TaskDesk(validator, views, judge, own_judge)
        self.giver = TaskGiver(validator, peers, judge, own_judge, SystemRandom())
        self.challenges = ChallengeDesk(validator)
        self.false_verdicts = FalseVerdictJudge(judge)

    @property
    def complaint(self) -> str:
        """Why this validator's own verdicts are not believed by itself, with its code; else ""."""
        return self._own_judge.complaint

    def routes(self) -> list[Route]:
        """The pages for peers, nodes and users."""
        return [
            *TaskPages(self._validator, self.tasks).routes(),
            *ChallengePages(self.challenges).routes(),
        ]

    async def run(self) -> None:
        """Judge tasks and look for receipts that were not opened, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tasks.run)
            while True:
                await self.challenges.tell_expired()
                await trio.sleep(self._validator.poll_s)


def prune_watch(con: Connection, validator: Validator, before_round: int) -> None:
    """Drop tasks and challenges of rounds before this one."""
    prune_tasks(con, validator.address, before_round)
    prune_challenges(con, validator.address, before_round)
