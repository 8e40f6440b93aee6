"""Judging vectors: the answer's shape, its token count, then the relative L2 distance. Pure."""

from __future__ import annotations

import binascii
import math
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from emcd.accounting.token_check import ProbeKind
from emcd.accounting.verdict import NumericClass, decode_float32, judge, max_statistic_e12
from emcd_validator.judge import MAX_ANSWER_BYTES, Judgement, Numbers, mismatch, unusable

Vectors = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Answer:
    """An embeddings answer that has the right shape."""

    vectors: Vectors
    prompt_tokens: int


@dataclass(frozen=True)
class ReferenceRun:
    """The validator's own vectors for the same texts, and the tokens they have."""

    vectors: Vectors
    prompt_tokens: int
    numeric_class: NumericClass = NumericClass.FP32


class _Datum(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float] | str


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int


class _Body(msgspec.Struct, frozen=True):
    data: list[_Datum]
    usage: _Usage


_decoder = msgspec.json.Decoder(_Body)


def read_answer(body: bytes, inputs: int, dimension: int) -> Answer | Judgement:
    """Read an embeddings answer. Returns: the answer, or ERROR when it can't be one."""
    if len(body) > MAX_ANSWER_BYTES:
        return unusable(f"an answer of {len(body)} bytes")
    try:
        parsed = _decoder.decode(body)
        rows = {item.index: _read_vector(item.embedding) for item in parsed.data}
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        return unusable(f"malformed answer: {exc}")
    if len(parsed.data) != inputs or set(rows) != set(range(inputs)):
        return unusable(f"{len(parsed.data)} vectors for {inputs} inputs")
    vectors = tuple(rows[index] for index in range(inputs))
    if any(len(vector) != dimension or not all(map(math.isfinite, vector)) for vector in vectors):
        return unusable(f"a vector is not {dimension} finite numbers")
    return Answer(vectors, parsed.usage.prompt_tokens)


def judge_answer(answer: Answer, reference: ReferenceRun, tau_e12: int | None = None) -> Judgement:
    """Compare an answer with the reference. Token counts first: they never make a strike."""
    if answer.prompt_tokens != reference.prompt_tokens:
        return mismatch(
            f"{answer.prompt_tokens} tokens counted, the reference has {reference.prompt_tokens}",
            Numbers(ProbeKind.EMBED, facts={"tokens": reference.prompt_tokens}),
        )
    statistic = max_statistic_e12(reference.vectors, answer.vectors)
    numbers = Numbers(
        ProbeKind.EMBED,
        values={"l2": statistic},
        taus={} if tau_e12 is None else {"l2": tau_e12},
        facts={"tokens": reference.prompt_tokens, "texts": len(answer.vectors)},
    )
    verdict = judge(reference.numeric_class, statistic, tau_e12=tau_e12)
    return Judgement(verdict, statistic, numbers=numbers)


def confirm_judgement(
    first: Judgement, reference: ReferenceRun, reruns: Sequence[Vectors], tau_e12: int | None = None
) -> Judgement:
    """Judge anew with the scatter between own runs; a fragile input convicts nobody."""
    if not first.verdict.is_strike or first.numbers is None:
        return first
    spread = max((max_statistic_e12(reference.vectors, rerun) for rerun in reruns), default=0)
    verdict = judge(reference.numeric_class, first.statistic_e12, tau_e12=tau_e12, spread_e12=spread)
    return replace(
        first,
        verdict=verdict,
        reason=f"own runs differ by {spread}e-12",
        numbers=replace(first.numbers, spreads={"l2": spread}),
    )


def _read_vector(embedding: list[float] | str) -> tuple[float, ...]:
    if isinstance(embedding, str):
        try:
            return decode_float32(b64decode(embedding, validate=True))
        except binascii.Error as exc:
            raise ValueError(f"base64: {exc}") from exc
    return tuple(embedding)
