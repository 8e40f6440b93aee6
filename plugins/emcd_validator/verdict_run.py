"""Judging an answer with the reference at hand: where what it says meets the model.

Blocking and pure but for the reference: the same request and answer have the same verdict wherever it
runs, within the noise of honest arithmetic. An answer can say whatever it likes: it is never an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from emcd.accounting.token_check import (
    Position,
    ProbeKind,
    TextJudgement,
    TextStatistics,
    judge_statistics,
    judge_text,
    judged_names,
    measure_spread,
)
from emcd.accounting.verdict import STATISTIC_SCALE, NumericClass
from emcd.inference.manifest import EmbeddingManifest, TextManifest
from emcd.proto.messages import Verdict
from emcd_validator.judge import EMBEDDINGS, HTTP_OK, Judgement, Numbers, unusable
from emcd_validator.judge_answer import read_text_answer
from emcd_validator.judge_embedding import (
    ReferenceRun,
    Vectors,
    confirm_judgement,
    judge_answer,
    read_answer,
)
from emcd_validator.judge_request import (
    CHAT,
    COMPLETIONS,
    GUMBEL,
    TextAsk,
    read_embedding_ask,
    read_text_ask,
)
from emcd_validator.judge_text import Claim, TextCase, Vocabulary, check_answer
from emcd_validator.model import JudgedModel, thresholds_of


class EmbeddingRuns(Protocol):
    """Own runs of an embedding model. Raises: RecoverableError, ConfigError when they can't be done."""

    def compute(self, texts: Sequence[str]) -> ReferenceRun: ...

    def compute_again(self, texts: Sequence[str]) -> list[Vectors]: ...


class TextRuns(Protocol):
    """Own runs of a text model. Raises: as `EmbeddingRuns`."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def find_prompt(self, ask: TextAsk) -> tuple[int, ...] | Judgement: ...

    def compute(self, case: TextCase) -> list[Position]: ...

    def compute_again(self, case: TextCase) -> list[list[Position]]: ...


def judge_vectors(
    runs: EmbeddingRuns, model: JudgedModel, path: str, request_body: bytes, response_body: bytes
) -> Judgement:
    """The verdict on an embeddings answer, rerun where it would not pass."""
    manifest = model.manifest
    assert isinstance(manifest, EmbeddingManifest)
    ask = read_embedding_ask(request_body) if path == EMBEDDINGS else unusable(f"{path} makes no vectors")
    if isinstance(ask, Judgement):
        return ask
    answer = read_answer(response_body, len(ask.texts), manifest.dimension)
    if isinstance(answer, Judgement):
        return answer
    reference = runs.compute(ask.texts)
    first = judge_answer(answer, reference, manifest.tau_e12)
    if not first.verdict.is_strike:
        return first
    return confirm_judgement(first, reference, runs.compute_again(ask.texts), manifest.tau_e12)


def judge_writing(
    runs: TextRuns,
    model: JudgedModel,
    path: str,
    request_body: bytes,
    response_body: bytes,
    receipt: Claim | None = None,
) -> Judgement:
    """The verdict on a written answer, rerun where it would not pass."""
    manifest = model.manifest
    assert isinstance(manifest, TextManifest)
    if path not in (CHAT, COMPLETIONS):
        return unusable(f"{path} is no way to ask for a text")
    ask = read_text_ask(path, request_body)
    if isinstance(ask, Judgement):
        return ask
    answer = read_text_answer(response_body, is_stream=ask.is_stream, most_tokens=manifest.context_tokens)
    if isinstance(answer, Judgement):
        return answer
    prompt = runs.find_prompt(ask)
    if isinstance(prompt, Judgement):
        return prompt
    if len(prompt) + len(answer.reports) > manifest.context_tokens:
        return unusable(f"{len(answer.reports)} tokens do not fit into the context after {len(prompt)}")
    case = check_answer(ask, answer, prompt, runs.vocabulary, manifest, receipt)
    if isinstance(case, Judgement):
        return case
    return _judge_case(runs, manifest, case)


def _judge_case(runs: TextRuns, manifest: TextManifest, case: TextCase) -> Judgement:
    numeric_class, thresholds = NumericClass(manifest.numeric_class), thresholds_of(manifest)
    judges_tokens = manifest.sampler == GUMBEL
    positions = runs.compute(case)
    first = judge_text(
        case.kind,
        positions,
        case.ask.sampling,
        numeric_class=numeric_class,
        thresholds=thresholds,
        judges_tokens=judges_tokens,
    )
    if first.verdict is Verdict.PASS:
        return _conclude(first, manifest, case, None)
    spread = TextStatistics()
    if case.end_missing:
        case = replace(case, end_token=positions[-1].chosen)
    for again in runs.compute_again(case):
        measured = measure_spread(case.kind, positions, again, case.ask.sampling, thresholds)
        spread = _widest(spread, measured)
    confirmed = judge_statistics(
        case.kind,
        first.statistics,
        numeric_class=numeric_class,
        thresholds=thresholds,
        judges_tokens=judges_tokens,
        spread=spread,
    )
    return _conclude(confirmed, manifest, case, spread)


def _widest(one: TextStatistics, other: TextStatistics) -> TextStatistics:
    return replace(
        one,
        d_e12=max(one.d_e12, other.d_e12),
        m_e12=max(one.m_e12, other.m_e12),
        w_e12=max(one.w_e12, other.w_e12),
        first_e12=max(one.first_e12, other.first_e12),
    )


def _conclude(
    judged: TextJudgement, manifest: TextManifest, case: TextCase, spread: TextStatistics | None
) -> Judgement:
    is_token_kind = case.kind in (ProbeKind.SEEDED, ProbeKind.GREEDY)
    names = judged_names(case.kind, judges_tokens=manifest.sampler == GUMBEL)
    shown = ("d", "m", "w") if is_token_kind else names
    thresholds = thresholds_of(manifest)._asdict()
    numbers = Numbers(
        case.kind,
        values={name: judged.statistics.value(name) for name in shown},
        taus={name: thresholds[f"{name}_e12"] for name in names},
        spreads={} if spread is None else {name: spread.value(name) for name in names},
        z_sum=judged.statistics.z_sum,
        z_variance=judged.statistics.z_variance,
        facts={"tokens": len(case.token_ids), "prompt": len(case.prompt_ids)},
    )
    reason = "" if spread is None else _describe_spread(numbers, judged.worst)
    return Judgement(judged.verdict, judged.statistic_e12, reason, numbers=numbers)


def _describe_spread(numbers: Numbers, worst: str) -> str:
    value, tau, spread = (
        table[worst] / STATISTIC_SCALE for table in (numbers.values, numbers.taus, numbers.spreads)
    )
    return f"{worst} is {value:.3g}, its threshold {tau:.3g}; own runs differ by {spread:.3g}"


def require_ok(status: int) -> Judgement | None:
    """What is said of an answer that is none: liveness, never a strike."""
    return None if status == HTTP_OK else unusable(f"status {status}")
