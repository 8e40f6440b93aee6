"""The one place where a validator judges: its models, its own runs of them, and the order of steps.

Owns which models are judged: one whose files or golden vectors are wrong here is judged by nobody's
guess, but not at all, and the role says so. Invariants: a verdict is given on an own run, never
without; judging never raises for what an answer says, only for what this machine can't do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

import trio

from emcd.errors import ConfigError, EmcdError, RecoverableError
from emcd.inference.golden import check_model
from emcd.proto.eip712 import Domain
from emcd.types import Address
from emcd_validator.judge import Blame, Exchange, Judgement, find_record_fault, unusable
from emcd_validator.judge_text import Claim
from emcd_validator.model import JudgedModel
from emcd_validator.reference import ReferenceSettings, make_runners
from emcd_validator.verdict_run import judge_vectors, judge_writing, require_ok

T = TypeVar("T")
GoldenOf = Callable[[JudgedModel, int], Awaitable[str]]
"""Why a model must not be judged here (arguments: it, threads), or ""."""


class Runs(Protocol):
    """Runs work with the open reference of one model, in a thread. Raises: as `Runner.run`."""

    async def run(self, work: Callable[[Any], T]) -> T: ...

    async def close_idle(self, idle_s: float) -> None: ...


class Judge:
    """Everything one validator judges with.

    Attributes:
        models: by name; those that failed here are taken out.
        complaint: why a model is not judged, with its code; else "".
    """

    def __init__(
        self,
        domain: Domain,
        hub: Address,
        models: dict[str, JudgedModel],
        runs: Mapping[str, Runs],
        settings: ReferenceSettings | None = None,
        golden_of: GoldenOf | None = None,
    ) -> None:
        """`golden_of` None: the runs are taken as they are."""
        self._domain = domain
        self._hub = hub
        self.models = models
        self._runs = runs
        self._settings = settings or ReferenceSettings()
        self._golden_of = golden_of
        self._passed: set[str] = set()
        self._checking = trio.Lock()
        self.complaint = ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pass the golden vectors (whoever judges meanwhile waits), then close what is idle until cancelled."""
        task_status.started()
        for model in tuple(self.models.values()):
            await self._check_golden(model)
        while True:
            await trio.sleep(self._settings.idle_s / 2)
            for runs in self._runs.values():
                await runs.close_idle(self._settings.idle_s)

    def find(self, model_hash: bytes) -> JudgedModel | None:
        """The model of a manifest, if it is judged here."""
        return next((model for model in self.models.values() if model.model_hash == model_hash), None)

    async def judge_exchange(self, exchange: Exchange) -> Judgement:
        """The verdict on one signed exchange.

        Raises: RecoverableError EMC-1811, EMC-16xx when the reference can't run now, EMC-1855 when the
        answer can't be reckoned with: no verdict then.
        """
        fault = find_record_fault(self._domain, self._hub, exchange)
        if fault is not None:
            return unusable(fault.reason, fault.blame)
        receipt = exchange.receipt.receipt
        assert receipt is not None
        judgement = await self._judge(
            exchange.model_hash,
            exchange.request_path,
            exchange.request_body,
            exchange.response_body,
            exchange.status,
            Claim(receipt.input_tokens, receipt.output_tokens),
        )
        return blame_node(judgement)

    async def judge_transcript(
        self, model_hash: bytes, path: str, request_body: bytes, response_body: bytes, status: int = 200
    ) -> Judgement:
        """The verdict on a request and its answer without records: nobody signed, nobody is to blame.

        Raises: as `judge_exchange`.
        """
        return await self._judge(model_hash, path, request_body, response_body, status, None)

    async def _judge(
        self,
        model_hash: bytes,
        path: str,
        request_body: bytes,
        response_body: bytes,
        status: int,
        receipt: Claim | None,
    ) -> Judgement:
        if (bad := require_ok(status)) is not None:
            return bad
        model = self.find(model_hash)
        if model is None:
            raise RecoverableError("EMC-1811", f"model 0x{bytes(model_hash).hex()} is not judged here")
        if model.is_text:
            return await self._run(
                model, lambda ref: judge_writing(ref, model, path, request_body, response_body, receipt)
            )
        return await self._run(
            model, lambda ref: judge_vectors(ref, model, path, request_body, response_body)
        )

    async def _check_golden(self, model: JudgedModel) -> None:
        """Once a model; one that does not give its golden vectors here is taken out, and the judge complains."""
        async with self._checking:
            if self._golden_of is None or model.name in self._passed or model.name not in self.models:
                return
            complaint = await self._golden_of(model, self._settings.threads)
            if not complaint:
                self._passed.add(model.name)
                return
            self.models.pop(model.name)
            known = f"{self.complaint}; " if self.complaint else ""
            self.complaint = f"{known}EMC-1850: {model.name}: {complaint}"

    async def _run(self, model: JudgedModel, work: Callable[[Any], Judgement]) -> Judgement:
        await self._check_golden(model)
        if model.name not in self.models:
            raise RecoverableError("EMC-1811", self.complaint)
        try:
            judgement = await self._runs[model.name].run(work)
        except ConfigError as exc:
            raise RecoverableError("EMC-1811", f"{model.name}: {exc.code}: {exc.detail}") from exc
        except (ValueError, ArithmeticError) as exc:
            raise RecoverableError("EMC-1855", f"{model.name}: {exc}") from exc
        return add_run_facts(judgement, model, self._settings.threads)


def add_run_facts(judgement: Judgement, model: JudgedModel, threads: int) -> Judgement:
    """Say with the numbers what they were computed by."""
    numbers = judgement.numbers
    if numbers is None:
        return judgement
    engine = f"onnxruntime {version('onnxruntime')}"
    run = {"class": model.numeric_class.value, "engine": engine, "threads": threads}
    return replace(judgement, numbers=replace(numbers, facts={**numbers.facts, **run}))


def blame_node(judgement: Judgement) -> Judgement:
    """Records that agree leave only the node to have made an answer that does not pass."""
    return replace(judgement, blame=Blame.NODE) if judgement.verdict.is_strike else judgement


def make_judge(
    domain: Domain, hub: Address, models: dict[str, JudgedModel], settings: ReferenceSettings
) -> Judge:
    """The judge with runs of its own."""
    return Judge(domain, hub, models, make_runners(models, settings), settings, find_golden_complaint)


async def find_golden_complaint(model: JudgedModel, threads: int) -> str:
    """Why a model must not be judged on this machine; "" when it gives its golden vectors."""
    try:
        check = await trio.to_thread.run_sync(
            lambda: check_model(model.models_dir, model.name, threads=threads)
        )
    except EmcdError as exc:
        return f"{exc.code}: {exc.detail}"
    return "" if check.ok else check.detail
