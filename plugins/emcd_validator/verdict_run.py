"""Judging an exchange with the reference at hand: where `judge` meets the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from emcd.proto.eip712 import Domain
from emcd.proto.messages import Verdict
from emcd.types import Address
from emcd_validator.judge import (
    HTTP_OK,
    Exchange,
    Judgement,
    ReferenceRun,
    Vectors,
    confirm_judgement,
    find_receipt_fault,
    judge_answer,
    read_answer,
)
from emcd_validator.model import JudgedModel


class ReferenceRuns(Protocol):
    """Own runs of a model."""

    async def compute(self, texts: Sequence[str]) -> ReferenceRun: ...

    async def compute_again(self, texts: Sequence[str]) -> Vectors: ...


async def judge_exchange(
    domain: Domain,
    hub: Address,
    exchange: Exchange,
    texts: Sequence[str],
    model: JudgedModel,
    runs: ReferenceRuns,
) -> Judgement:
    """The verdict on one signed exchange, rerun where it would not pass.

    Raises: RecoverableError when the reference can't run now: no verdict is given then.
    """
    if fault := find_receipt_fault(domain, hub, exchange):
        return Judgement(Verdict.ERROR, reason=fault)
    if exchange.status != HTTP_OK:
        return Judgement(Verdict.ERROR, reason=f"status {exchange.status}")
    answer = read_answer(exchange.response_body, len(texts), model.manifest.dimension)
    if isinstance(answer, Judgement):
        return answer
    reference = await runs.compute(texts)
    first = judge_answer(answer, reference)
    if first.verdict in (Verdict.PASS, Verdict.TEMPLATE):
        return first
    return confirm_judgement(first, reference, await runs.compute_again(texts))
