"""The pages about tasks: where peers bring them and read the answers, and what became of those given.

Invariants: the body of a task is read only after a member's signature for it; a source that brings what
is none is not listened to for a while; which tasks were decoys is shown only once no answer counts any more.
"""

from __future__ import annotations

from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.net.ratelimit import FailureLimiter
from emcd.proto.address import hex_hash, parse_hash
from emcd.proto.messages import Task, Verdict
from emcd_validator.page import FAILURES, fault, find_source, read_body, read_index, reply
from emcd_validator.queries.tasks import TaskRow, list_tasks
from emcd_validator.statement import write_task_result
from emcd_validator.task_desk import Taken, TaskDesk
from emcd_validator.task_form import HEADER, MAX_BODY_BYTES
from emcd_validator.validator import Validator

_READERS = 8
"""Bodies that are read at a time: so much memory, times a megabyte."""
_STATUS = {Taken.QUEUED: 202, Taken.FULL: 503, Taken.TOO_MANY: 429, Taken.LATE: 410}


class TaskPages:
    """The pages of one validator."""

    def __init__(self, validator: Validator, desk: TaskDesk) -> None:
        self._validator = validator
        self._desk = desk
        self._limiter = FailureLimiter(FAILURES)
        self._readers = trio.CapacityLimiter(_READERS)

    def routes(self) -> list[Route]:
        return [
            Route("/tasks", self._take, methods=["POST"]),
            Route("/tasks/{key}", self._find, methods=["GET"]),
        ]

    async def _take(self, request: Request) -> Response:
        source, now_s = find_source(request), trio.current_time()
        if not self._limiter.check_allowed(source, now_s):
            return reply(429, {"code": "EMC-1867", "reason": "too many tasks that are none"})
        try:
            task = await self._desk.read_task(request.headers.get(HEADER, ""))
            return await self._answer(task) or await self._read(request, task)
        except RemoteProtocolError as exc:
            self._limiter.add_failure(source, now_s)
            return fault(exc)
        except RecoverableError as exc:
            return fault(exc, 503)

    async def _answer(self, task: Task) -> Response | None:
        entry = await self._desk.find_answer(task.task_hash)
        return None if entry is None else reply(200, write_task_result(entry))

    async def _read(self, request: Request, task: Task) -> Response:
        room = self._desk.check_room(task)
        if room is not Taken.QUEUED:
            return reply(_STATUS[room], {"code": "EMC-1869", "reason": room.value})
        try:
            self._readers.acquire_on_behalf_of_nowait(request)
        except trio.WouldBlock:
            return reply(503, {"code": "EMC-1869", "reason": "too many tasks at once"})
        try:
            body = await read_body(request, MAX_BODY_BYTES)
        finally:
            self._readers.release_on_behalf_of(request)
        if body is None:
            return reply(413, {"code": "EMC-1867", "reason": f"more than {MAX_BODY_BYTES} bytes"})
        taken = await self._desk.take(task, body)
        return reply(_STATUS[taken], {"state": taken.value})

    async def _find(self, request: Request) -> Response:
        """The answer to a task, by its hash; or what became of the tasks that were given in a round."""
        index = read_index(request, "key")
        if index is not None:
            return await self._list(index)
        try:
            task_hash = parse_hash(request.path_params["key"])
        except RemoteProtocolError as exc:
            return fault(exc)
        entry = await self._desk.find_answer(task_hash)
        if entry is not None:
            return reply(200, write_task_result(entry))
        if self._desk.is_waiting(task_hash):
            return reply(202, {"state": Taken.QUEUED.value})
        return reply(404, {"reason": "no such task is known here"})

    async def _list(self, index: int) -> Response:
        validator = self._validator
        if validator.now_ms() < validator.tasks_end_ms(index):
            return reply(404, {"reason": "the tasks of the round are not due yet"})
        rows = await validator.read(lambda con: list_tasks(con, validator.address, index))
        return reply(200, {"tasks": [_show(row) for row in rows]})


def _show(row: TaskRow) -> dict[str, Any]:
    return {
        "receiver": row.receiver,
        "task_hash": hex_hash(row.task_hash),
        "is_decoy": row.is_decoy,
        "verdict": None if row.verdict is None else Verdict(row.verdict).name,
    }
