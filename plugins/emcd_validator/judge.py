"""What a validator says of an answer. Pure: bytes and numbers in, a verdict out.

The order is VERIFICATION 5.3: records and hashes, then shape and token counts, then the statistic,
then (for what would not pass) a rerun that shows how much the validator's own arithmetic scatters.
The same functions judge a probe of one's own and one that a peer calls a strike.
"""

from __future__ import annotations

import binascii
import math
from base64 import b64decode
from dataclasses import dataclass, replace

import msgspec

from emcd.accounting.receipt import CallReceipt, check_receipt
from emcd.accounting.verdict import NumericClass, decode_float32, judge, max_statistic_e12
from emcd.proto.eip712 import Domain
from emcd.proto.messages import Verdict
from emcd.types import Address, Hash
from emcd_validator.probe_request import PATH, upstream_hash

HTTP_OK = 200

Vectors = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Judgement:
    """A verdict with its statistic; `reason` says what a person would ask next."""

    verdict: Verdict
    statistic_e12: int = 0
    reason: str = ""


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


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A call as its caller saw it."""

    node: Address
    call_id: bytes
    model_hash: Hash
    request_body: bytes
    status: int
    response_body: bytes
    receipt: CallReceipt


class _Datum(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float] | str


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int


class _Body(msgspec.Struct, frozen=True):
    data: list[_Datum]
    usage: _Usage


_decoder = msgspec.json.Decoder(_Body)


def find_receipt_fault(domain: Domain, hub: Address, exchange: Exchange) -> str:
    """Why hub and node did not both sign exactly this exchange, or an empty text.

    A fault here is never the node's strike: whoever altered something between caller and node
    did not sign what the other side saw.
    """
    call, request = exchange.receipt, upstream_hash(PATH, exchange.request_body)
    if call.forward.call_id != exchange.call_id:
        return "the receipt is of another call"
    if request is None or call.forward.request_hash != request:
        return "the hub forwarded another request than was sent"
    if call.forward.node != exchange.node:
        return f"the hub forwarded to {call.forward.node}"
    if call.forward.model_hash != exchange.model_hash:
        return "the hub forwarded for another model"
    outcome = check_receipt(domain, hub, call, body=exchange.response_body)
    if outcome.fault is not None:
        return f"{outcome.fault.code}: {outcome.fault.detail}"
    if call.receipt is None:
        return "the node signed no receipt"
    if call.receipt.response_hash != call.delivery.body_hash:
        return "the hub delivered another answer than the node signed"
    if call.receipt.http_status != exchange.status:
        return f"the node signed status {call.receipt.http_status}, {exchange.status} came"
    return ""


def read_answer(body: bytes, inputs: int, dimension: int) -> Answer | Judgement:
    """Read an embeddings answer. Returns: the answer, or ERROR when it can't be one."""
    try:
        parsed = _decoder.decode(body)
        rows = {item.index: _read_vector(item.embedding) for item in parsed.data}
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        return Judgement(Verdict.ERROR, reason=f"malformed answer: {exc}"[:200])
    if len(parsed.data) != inputs or set(rows) != set(range(inputs)):
        return Judgement(Verdict.ERROR, reason=f"{len(parsed.data)} vectors for {inputs} inputs")
    vectors = tuple(rows[index] for index in range(inputs))
    if any(len(vector) != dimension or not all(map(math.isfinite, vector)) for vector in vectors):
        return Judgement(Verdict.ERROR, reason=f"a vector is not {dimension} finite numbers")
    return Answer(vectors, parsed.usage.prompt_tokens)


def judge_answer(answer: Answer, reference: ReferenceRun) -> Judgement:
    """Compare an answer with the reference. Token counts first: they never make a strike."""
    if answer.prompt_tokens != reference.prompt_tokens:
        reason = f"{answer.prompt_tokens} tokens counted, the reference has {reference.prompt_tokens}"
        return Judgement(Verdict.TEMPLATE, reason=reason)
    statistic = max_statistic_e12(reference.vectors, answer.vectors)
    return Judgement(judge(reference.numeric_class, statistic), statistic)


def confirm_judgement(first: Judgement, reference: ReferenceRun, rerun: Vectors) -> Judgement:
    """Judge anew with the scatter between two own runs; a fragile input convicts nobody."""
    if first.verdict not in (Verdict.FAIL, Verdict.GROSS, Verdict.CLASS):
        return first
    spread = max_statistic_e12(reference.vectors, rerun)
    verdict = judge(reference.numeric_class, first.statistic_e12, spread_e12=spread)
    return replace(first, verdict=verdict, reason=f"own runs differ by {spread}e-12")


def _read_vector(embedding: list[float] | str) -> tuple[float, ...]:
    if isinstance(embedding, str):
        try:
            return decode_float32(b64decode(embedding, validate=True))
        except binascii.Error as exc:
            raise ValueError(f"base64: {exc}") from exc
    return tuple(embedding)
