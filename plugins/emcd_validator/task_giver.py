"""Tasks that this validator gives to its peers: blind, and half of them known to be wrong.

After a round it takes own probes that passed, spoils some, has its own judge look at what it spoilt, and
sends every peer one of both, rewritten for that peer. A peer that signs a PASS for a gross one has
proven that it did not judge. Invariants: nothing is given as a decoy that the own judge did not call
GROSS by the distance of its numbers, but for noise far below any threshold; an own judge that passes a
decoy is believed in nothing of that round; tasks are written down before they are sent, once a peer and
round; every wait has a deadline, a peer that stalls holds up nobody; nothing that a node or a peer says
ends the round.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random

import trio

from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.ledger import Connection
from emcd.proto.eip712 import digest
from emcd.proto.messages import Task, Verdict
from emcd.proto.openai import ENDPOINTS, read_request
from emcd.proto.signing import require_signer
from emcd.proto.transcript import transcript_hash
from emcd.types import Address
from emcd_validator.decoy import Sample, make_decoys, rewrite
from emcd_validator.entry import TaskEntry, task_item
from emcd_validator.false_verdict import is_gross_by_distance
from emcd_validator.metrics import TASKS_GIVEN
from emcd_validator.peer_client import PeerClient
from emcd_validator.probe_request import path_of
from emcd_validator.queries.items import hold_item
from emcd_validator.queries.rounds import ProbeRow, list_probes
from emcd_validator.queries.tasks import TaskRow, insert_task, list_tasks, set_task_verdict
from emcd_validator.rechecker import Judges, OwnJudge
from emcd_validator.statement import read_task_result
from emcd_validator.task_form import write_header, write_transcript
from emcd_validator.validator import Validator
from emcd_validator.view import RoundView

DECOYS = 2
"""That are made in a round: each costs an own run or two, and is rewritten for every peer that gets it."""
MAX_SAMPLE_BYTES = 256 << 10
"""Request and answer of a probe that is used: longer ones take more to rewrite than they are worth."""


class TaskGiver:
    """The tasks given by one validator."""

    def __init__(
        self,
        validator: Validator,
        peers: PeerClient,
        judge: Judges,
        own_judge: OwnJudge,
        rng: Random,
    ) -> None:
        """`rng`: whoever foresees it knows which tasks are decoys."""
        self._validator = validator
        self._peers = peers
        self._judge = judge
        self._own_judge = own_judge
        self._rng = rng
        self._limiter = trio.CapacityLimiter(1)
        """Of the threads that read and write answers."""

    async def run(self, view: RoundView) -> None:
        """From the end of a round until its tasks are due: give them, and take the answers.

        Raises: nothing but what ends the process; a fault is told.
        """
        await self._guard(view.round, partial(self._run, view))

    async def _guard(self, round_index: int, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as exc:  # noqa: BLE001 -- tasks are no reason to lose the round's votes
            self._validator.log.error(
                "tasks not given", code="EMC-1875", round=round_index, detail=f"{type(exc).__name__}: {exc}"
            )

    async def _run(self, view: RoundView) -> None:
        validator = self._validator
        left_s = (validator.tasks_end_ms(view.round) - validator.now_ms()) / 1000
        if left_s <= 0 or validator.speaker(view.members) not in view.members:
            return
        with trio.move_on_after(left_s):
            samples = await self._list_samples(view.round)
            decoys = await self._make_decoys(view.round, samples)
            async with trio.open_nursery() as nursery:
                for peer, endpoint in view.endpoints.items():
                    if peer not in validator.keys:
                        serve = partial(self._serve_peer, view, peer, endpoint, samples, decoys)
                        nursery.start_soon(self._guard, view.round, serve)
        await self._tell_unanswered(view.round)

    async def _list_samples(self, round_index: int) -> list[Sample]:
        validator = self._validator
        rows = await validator.read(lambda con: list_probes(con, validator.address, round_index))
        found = [
            await trio.to_thread.run_sync(self._read_sample, row, limiter=self._limiter)
            for row in rows
            if len(row.request_body) + len(row.response_body) <= MAX_SAMPLE_BYTES
        ]
        return [sample for sample in found if sample is not None]

    def _read_sample(self, row: ProbeRow) -> Sample | None:
        """What can be given to peers: a probe that passed, and whose answer can be written anew."""
        model, path = self._validator.models.get(row.model), path_of(row.request_body)
        if row.result is None or row.result.verdict != Verdict.PASS or model is None or not path:
            return None
        try:
            request = read_request(ENDPOINTS[path], row.request_body, evidence=True).body
        except RemoteProtocolError:
            return None
        sample = Sample(model.model_hash, path, request, row.response_body)
        return None if rewrite(sample, self._rng) is None else sample

    async def _make_decoys(self, round_index: int, samples: Sequence[Sample]) -> list[Sample]:
        """Wrong answers that the own judge calls gross; none where it can't judge now, or is wrong itself."""
        found: list[Sample] = []
        for sample in self._rng.sample(samples, min(len(samples), DECOYS)):
            decoy = await self._make_decoy(round_index, sample, samples)
            if decoy is not None:
                found.append(decoy)
        if round_index in self._own_judge.muted:
            return []
        if found:
            self._own_judge.note_right(round_index)
        return found

    async def _make_decoy(self, round_index: int, sample: Sample, samples: Sequence[Sample]) -> Sample | None:
        others = [
            item
            for item in samples
            if item is not sample and (item.model_hash, item.path) == (sample.model_hash, sample.path)
        ]
        decoys = await trio.to_thread.run_sync(make_decoys, sample, others, self._rng, limiter=self._limiter)
        for decoy in decoys:
            try:
                judgement = await self._judge.judge_transcript(
                    decoy.model_hash, decoy.path, decoy.request, decoy.response
                )
            except RecoverableError as exc:
                self._validator.log.info("no decoys", code=exc.code, detail=exc.detail)
                return None
            if is_gross_by_distance(judgement):
                return decoy
            if judgement.verdict is Verdict.PASS:
                reason = f"round {round_index}: the own judge passed a decoy"
                self._own_judge.note_passed(round_index, reason)
                self._validator.log.error("own judge is wrong", code="EMC-1866", round=round_index)
                return None
        return None

    async def _serve_peer(
        self,
        view: RoundView,
        peer: Address,
        endpoint: str,
        samples: Sequence[Sample],
        decoys: Sequence[Sample],
    ) -> None:
        for row in await self._ensure_tasks(view.round, peer, samples, decoys):
            if row.verdict is None:
                await self._pursue(view, row, endpoint)

    async def _ensure_tasks(
        self, round_index: int, peer: Address, samples: Sequence[Sample], decoys: Sequence[Sample]
    ) -> list[TaskRow]:
        """The task of a peer: the one written down earlier, else a new one, where there are decoys to mix in."""
        validator = self._validator

        def read(con: Connection) -> list[TaskRow]:
            return list_tasks(con, validator.address, round_index, peer)

        known = await validator.read(read)
        if known or not decoys:
            return known
        is_decoy = self._rng.random() < 0.5
        chosen = self._rng.choice(decoys if is_decoy else samples)
        transcript = await trio.to_thread.run_sync(rewrite, chosen, self._rng, limiter=self._limiter)
        if transcript is None:
            return []
        row = TaskRow(
            round_index,
            peer,
            transcript_hash(transcript),
            write_transcript(transcript),
            is_decoy,
            validator.now_ms(),
        )
        await validator.write(partial(insert_task, instance=validator.address, row=row))
        return await validator.read(read)

    async def _pursue(self, view: RoundView, row: TaskRow, endpoint: str) -> None:
        """Bring a task until it is taken, then ask until it is answered, or the time is up."""
        validator = self._validator
        me = validator.speaker(view.members)
        task = Task(me, row.receiver, row.round, row.task_hash)
        header = write_header(task, validator.sign(me, validator.domain, task))
        is_taken = False
        while True:
            try:
                page = await self._peers.find_task(endpoint, row.task_hash) if is_taken else None
                if page is None:
                    page = await self._peers.give_task(endpoint, header, row.transcript)
                    is_taken = True
                if "result" in page:
                    await self._take(row, read_task_result(page))
                    return
            except RecoverableError as exc:
                is_taken = False
                validator.log.debug("task not given", peer=row.receiver, code=exc.code, detail=exc.detail)
            except RemoteProtocolError as exc:
                validator.log.warning("peer at fault", peer=row.receiver, code=exc.code, detail=exc.detail)
                return
            await trio.sleep(validator.poll_s)

    async def _take(self, row: TaskRow, entry: TaskEntry) -> None:
        """Keep an answer; a decoy that it passes is found by `OffenceDesk`. Raises: RemoteProtocolError EMC-1868."""
        validator, said = self._validator, entry.result
        if (said.validator, said.round, said.task_hash) != (row.receiver, row.round, row.task_hash):
            raise RemoteProtocolError("EMC-1868", f"an answer of {said.validator} to another task")
        try:
            require_signer(validator.domain, said, entry.signature, row.receiver)
            verdict = Verdict(said.verdict)
        except (RemoteProtocolError, ValueError) as exc:
            raise RemoteProtocolError("EMC-1868", str(exc)) from exc
        item, hashed = task_item(entry, validator.now_ms()), digest(validator.domain, said)
        is_false = row.is_decoy and verdict is Verdict.PASS

        def keep(con: Connection) -> None:
            hold_item(con, validator.address, item, hashed)
            set_task_verdict(con, validator.address, row, int(verdict), keep_transcript=is_false)

        await validator.write(keep)
        self._count(row, verdict)

    def _count(self, row: TaskRow, verdict: Verdict) -> None:
        log = self._validator.log
        is_right = (verdict is Verdict.GROSS) if row.is_decoy else (verdict is Verdict.PASS)
        TASKS_GIVEN.labels("right" if is_right else "wrong").inc()
        if row.is_decoy and verdict is Verdict.PASS:
            log.error("a peer passed a decoy", code="EMC-1871", peer=row.receiver, round=row.round)
        elif not is_right:
            log.warning(
                "a peer judges a task otherwise",
                peer=row.receiver,
                round=row.round,
                is_decoy=row.is_decoy,
                verdict=verdict.name,
            )

    async def _tell_unanswered(self, round_index: int) -> None:
        validator = self._validator
        rows = await validator.read(lambda con: list_tasks(con, validator.address, round_index))
        for peer in sorted({row.receiver for row in rows if row.verdict is None}):
            count = sum(row.receiver == peer and row.verdict is None for row in rows)
            TASKS_GIVEN.labels("unanswered").inc(count)
            validator.log.warning("tasks unanswered", peer=peer, round=round_index, count=count)
