"""Tasks that peers give to this validator: taken, judged in turn, answered with a signature.

Invariants: of members of the round's frozen set alone, a few a peer and round; what waits is bounded;
one is judged at a time, so that tasks never crowd out probes; one answer a task, for good; nothing is
answered that this validator can't recompute, or while its own judge was caught wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import trio

from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.proto.messages import Task, TaskResult
from emcd.proto.transcript import Transcript
from emcd_validator.chain_view import ChainViews
from emcd_validator.entry import TaskEntry, read_task_item, task_item
from emcd_validator.metrics import TASKS
from emcd_validator.queries.items import Kind, find_item
from emcd_validator.rechecker import Judges, OwnJudge
from emcd_validator.signatory import issue
from emcd_validator.task_form import check_task, read_header, read_transcript
from emcd_validator.validator import Validator

TASKS_PER_PEER = 4
"""What a peer may give in a round; it gives fewer."""
MAX_WAITING = 64
"""Transcripts that wait in memory, each of at most a megabyte."""


class Taken(Enum):
    """What came of a task that was brought."""

    QUEUED = "queued"
    FULL = "full"
    TOO_MANY = "too many"
    LATE = "late"


@dataclass(frozen=True)
class _Waiting:
    task: Task
    transcript: Transcript


class TaskDesk:
    """The tasks received by one validator; `run` must be running for them to be judged."""

    def __init__(self, validator: Validator, views: ChainViews, judge: Judges, own_judge: OwnJudge) -> None:
        self._validator = validator
        self._views = views
        self._judge = judge
        self._own_judge = own_judge
        self._send, self._receive = trio.open_memory_channel[_Waiting](MAX_WAITING)
        self._given: dict[tuple[int, str], set[bytes]] = {}
        """Hashes of the tasks taken, by round and sender."""

    async def read_task(self, header: str) -> Task:
        """Whose task it is, before a byte of its body is read.

        Raises: RemoteProtocolError EMC-1867 (nobody's who may give one), RecoverableError (the chain is away).
        """
        task, signature = read_header(header)
        view = await self._views.fetch_view(self._require_current(task.round))
        await trio.to_thread.run_sync(
            check_task, self._validator.domain, view.members, self._validator.keys, task, signature
        )
        return task

    def check_room(self, task: Task) -> Taken:
        """Whether its transcript would be taken."""
        given = self._given.get((task.round, task.sender), set())
        if self._validator.now_ms() >= self._validator.tasks_end_ms(task.round):
            return Taken.LATE
        if task.task_hash not in given and len(given) >= TASKS_PER_PEER:
            return Taken.TOO_MANY
        if self._send.statistics().current_buffer_used >= MAX_WAITING:
            return Taken.FULL
        return Taken.QUEUED

    async def take(self, task: Task, body: bytes) -> Taken:
        """Keep a task to be judged; one that waits already is not kept twice.

        Raises: RemoteProtocolError EMC-1867, EMC-1990 (it is not the transcript of the task).
        """
        transcript = await trio.to_thread.run_sync(read_transcript, body, task.task_hash)
        taken = self.check_room(task)
        given = self._given.setdefault((task.round, task.sender), set())
        if taken is not Taken.QUEUED or task.task_hash in given:
            return taken
        try:
            self._send.send_nowait(_Waiting(task, transcript))
        except trio.WouldBlock:
            return Taken.FULL
        given.add(task.task_hash)
        for key in [key for key in self._given if key[0] < task.round - 1]:
            del self._given[key]
        return taken

    def is_waiting(self, task_hash: bytes) -> bool:
        """Whether the task was taken and has no answer yet."""
        return any(task_hash in given for given in self._given.values())

    async def find_answer(self, task_hash: bytes) -> TaskEntry | None:
        """What this validator signed of a task of the last rounds."""
        validator, current = self._validator, self._validator.current_round()
        for index in range(current, max(-1, current - 3), -1):
            for key in validator.keys:
                item = await validator.read(
                    lambda con, index=index, key=key: find_item(  # type: ignore[misc]
                        con, validator.address, Kind.TASK_RESULT, index, key, task_hash
                    )
                )
                if item is not None and item.signature is not None:
                    return read_task_item(item)
        return None

    async def run(self) -> None:
        """Judge what waits, until cancelled."""
        while True:
            waiting = await self._receive.receive()
            if await self._answer(waiting):
                TASKS.labels("answered").inc()
            else:
                TASKS.labels("not judged").inc()
                self._given[waiting.task.round, waiting.task.sender].discard(waiting.task.task_hash)

    async def _answer(self, waiting: _Waiting) -> bool:
        validator, task = self._validator, waiting.task
        until_ms = validator.tasks_end_ms(task.round)
        if task.round in self._own_judge.muted:
            return False
        with trio.move_on_after(max(0.0, (until_ms - validator.now_ms()) / 1000)) as scope:
            shown = waiting.transcript
            try:
                judgement = await self._judge.judge_transcript(
                    shown.model_hash,
                    shown.request_path,
                    shown.request_body,
                    shown.response_body,
                    shown.status,
                )
            except (RecoverableError, RemoteProtocolError) as exc:
                validator.log.info("task not judged", sender=task.sender, code=exc.code, detail=exc.detail)
                return False
        if scope.cancelled_caught or task.round in self._own_judge.muted:
            return False
        result = TaskResult(
            task.receiver, task.round, task.task_hash, int(judgement.verdict), judgement.statistic_e12
        )
        await issue(validator, task_item(TaskEntry(result, b""), validator.now_ms()))
        return True

    def _require_current(self, round_index: int) -> int:
        validator = self._validator
        ended = validator.now_ms() >= validator.params.round_end_ms(round_index)
        if not ended or round_index != validator.current_round() - 1:
            raise RemoteProtocolError("EMC-1867", f"round {round_index} is not in its grace")
        return round_index
