"""A node's whole answer: collected and judged. Nothing here waits but for the node, and for a thread.

Invariant: an answer counts only with a receipt that fits it; nothing is charged before.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import msgspec
import trio

from emcd.accounting.usage import Usage, read_usage
from emcd.proto.control import CallEnd, ResponseHead, decode_part
from emcd.proto.hashing import keccak
from emcd.proto.openai_media import find_answer_type
from emcd.proto.openai_shape import JSON as JSON_TYPE
from emcd.proto.openai_shape import Endpoint, error_body
from emcd.proto.records import CallStatus, Receipt
from emcd_hub.calls.context import CallContext, NodeFault
from emcd_hub.calls.evidence import MAX_POSITIONS, Bounds, read_piece, require_evidence
from emcd_hub.calls.held import Held
from emcd_hub.calls.receipt_check import Seen, find_receipt_fault, is_on_time
from emcd_hub.calls.uncounted import MARK, read_uncounted, shows_reasoning
from emcd_hub.nodes.link import OutgoingCall

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream"
_CLIENT_FAULTS = frozenset((400, 413, 415, 422))
_ANY_TOKENS = 2**53
NO_USAGE = Usage(0, 0)
LATE = "clock"
LARGE_BYTES = 1 << 20
"""An answer from this size on is judged beside the loop: to hash a megabyte takes 2.5 ms."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """All that came from the node."""

    status: int
    content_type: str
    body: bytes
    receipt: Receipt


class Judged(NamedTuple):
    """What an answer is worth, and what the client gets of it. The first five settle the call.

    Attributes:
        status: how the call ends by it; http_status, content_type, body: the client's answer.
        remark: what the call's row says of it.
    """

    status: CallStatus
    receipt: Receipt
    body_hash: bytes
    cost_micro: int
    remark: str
    http_status: int
    content_type: bytes
    body: bytes


def require_status(head: ResponseHead) -> None:
    """Raises: NodeFault unless it is a success or the client's own fault: then another node may do better."""
    if not 200 <= head.status < 300 and head.status not in _CLIENT_FAULTS:
        raise NodeFault("status", f"the node answered with status {head.status}")


async def collect_answer(upstream: OutgoingCall, max_bytes: int) -> Answer:
    """Read a whole answer. Raises: what the tunnel and `read_answer` raise."""
    raw_head, body, raw_end = await upstream.whole(max_bytes)
    return read_answer(raw_head, body, raw_end)


def read_answer(raw_head: bytes, body: bytes, raw_end: bytes) -> Answer:
    """Raises: RemoteProtocolError EMC-1498; what `require_status` raises."""
    head = _read_head(raw_head)
    if head.status != 200:
        require_status(head)
    return Answer(head.status, head.content_type, body, decode_part(raw_end, CallEnd).receipt)


@lru_cache(maxsize=256)
def _read_head(raw: bytes) -> ResponseHead:
    """Nearly all heads are the same few."""
    return decode_part(raw, ResponseHead)


def judge_receipt(receipt: Receipt, seen: Seen) -> str:
    """Raises: NodeFault for a receipt that does not fit. Returns: what the call's row says of it."""
    fault = find_receipt_fault(receipt, seen)
    if fault:
        raise NodeFault("receipt", fault)
    return "" if is_on_time(receipt, seen.started_at_ms, seen.finished_at_ms) else LATE


def make_seen(
    context: CallContext, status: int, response_hash: bytes, usage: Usage | None, answer_bytes: int
) -> Seen:
    """What the hub saw of a call that ends now, with an answer of so many bytes, evidence not counted."""
    request, call = context.request, context.call
    bound, limit = request.input_bound_tokens, call.info.max_input_tokens
    output_bound = context.limits.output_bound(request, answer_bytes)
    if request.endpoint.is_media:  # charged what was reserved at most, whatever the engine counts
        usage, bound, output_bound = usage or NO_USAGE, _ANY_TOKENS, _ANY_TOKENS
    return Seen(
        call.forward_hash,
        response_hash,
        status,
        usage,
        bound if limit is None else min(bound, request.inputs * limit),
        output_bound,
        call.forward.started_at_ms,
        context.recorder.now_ms(),
    )


def make_seen_of_left(
    context: CallContext, response_hash: bytes, usage: Usage, answer_bytes: int, most_output_tokens: int
) -> Seen:
    """What the hub saw of a stream that it stopped, which may have put out so many tokens at most.

    The request's own bounds hold for a sound or an image, too.
    """
    request = context.request
    seen = make_seen(context, 200, response_hash, usage, answer_bytes)
    output_bound = min(context.limits.output_bound(request, answer_bytes), most_output_tokens)
    return msgspec.structs.replace(
        seen,
        input_bound_tokens=min(seen.input_bound_tokens, request.input_bound_tokens),
        output_bound_tokens=output_bound,
    )


def judge_answer(context: CallContext, answer: Answer) -> Judged:
    """Raises: NodeFault for an answer that does not count: another node may do better."""
    http_status, body, receipt = answer.status, answer.body, answer.receipt
    response_hash = keccak(body)
    success = 200 <= http_status < 300
    kind = find_answer_type(context.request.endpoint, answer.content_type)
    if not success:
        remark = judge_receipt(receipt, make_seen(context, http_status, response_hash, None, len(body)))
        return _judge_refusal(answer, response_hash, remark)
    usage = read_usage(body) if kind == JSON_TYPE else None
    body_hash = response_hash
    if context.request.evidence:
        told = _take_evidence(context, body)
        body_hash = response_hash if told is body else keccak(told)
        body = told
    remark = judge_receipt(receipt, make_seen(context, http_status, response_hash, usage, len(body)))
    if MARK in body and not shows_reasoning(body):
        context.call.uncounted_tokens = read_uncounted(body)
    status, cost, claim = context.price(receipt)
    remark = claim or remark
    content_type = JSON if kind == JSON_TYPE else kind.encode() or b"application/octet-stream"
    return Judged(status, receipt, body_hash, cost, remark, http_status, content_type, body)


async def judge_aside(context: CallContext, answer: Answer) -> Judged:
    """As `judge_answer`, beside the loop where it is large. Nothing cancels it: then it is recorded, too."""
    if len(answer.body) < LARGE_BYTES:
        judged = judge_answer(context, answer)
    else:
        with trio.CancelScope(shield=True):
            judged = await trio.to_thread.run_sync(judge_answer, context, answer)
    return judged


def _take_evidence(context: CallContext, body: bytes) -> bytes:
    """What the client gets of an answer that has evidence in it. Raises: RemoteProtocolError EMC-1793."""
    request, call = context.request, context.call
    call.held = held = Held(request.inputs)
    if request.endpoint is Endpoint.EMBEDDINGS:
        return body
    longest = (request.output_bound_tokens, call.info.context_tokens, MAX_POSITIONS)
    bounds = Bounds(request.choices, min(tokens for tokens in longest if tokens is not None))
    piece = read_piece(request.endpoint, body, request.hidden, bounds)
    if call.owes_evidence:
        require_evidence(piece)
    held.add(piece)
    if request.hidden is not None and len(piece.data) > context.limits.answer_bytes:
        raise NodeFault("size", "the node's answer is too large")
    return piece.data


def _judge_refusal(answer: Answer, response_hash: bytes, remark: str) -> Judged:
    """The node says that the request is wrong: its words, if they have OpenAI's shape."""
    body, body_hash = answer.body, response_hash
    if not _is_error_body(body):
        body = error_body(
            "EMC-1713",
            "the node refused the request (EMC-1713)",
            type="invalid_request_error",
            code="invalid_request",
        )
        body_hash = keccak(body)
    return Judged(CallStatus.CLIENT_ERROR, answer.receipt, body_hash, 0, remark, answer.status, JSON, body)


class _Error(msgspec.Struct, frozen=True):
    message: str


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _Error


_decode_error = msgspec.json.Decoder(_ErrorBody).decode


def _is_error_body(body: bytes) -> bool:
    try:
        _decode_error(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True
