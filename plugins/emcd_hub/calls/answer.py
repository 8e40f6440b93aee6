"""A node's whole answer: collected, judged, recorded, then passed on."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from emcd.accounting.usage import Usage, read_usage
from emcd.proto.control import CallEnd, ResponseHead, decode_part
from emcd.proto.hashing import keccak
from emcd.proto.openai import error_body
from emcd.proto.records import CallStatus, Receipt
from emcd_hub.calls.context import CallContext, NodeFault
from emcd_hub.calls.receipt_check import Seen, find_receipt_fault, is_on_time
from emcd_hub.nodes.link import OutgoingCall

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream"
_CLIENT_FAULTS = frozenset((400, 413, 415, 422))
LATE = "clock"


@dataclass(frozen=True, slots=True)
class Answer:
    """All that came from the node."""

    status: int
    content_type: str
    body: bytes
    receipt: Receipt


def require_status(head: ResponseHead) -> None:
    """Raises: NodeFault unless it is a success or the client's own fault: then another node may do better."""
    if not 200 <= head.status < 300 and head.status not in _CLIENT_FAULTS:
        raise NodeFault("status", f"the node answered with status {head.status}")


async def collect_answer(upstream: OutgoingCall, max_bytes: int) -> Answer:
    """Read a whole answer. Raises: what the tunnel and `require_status` raise."""
    raw_head, body, raw_end = await upstream.whole(max_bytes)
    head = decode_part(raw_head, ResponseHead)
    require_status(head)
    return Answer(head.status, head.content_type, body, decode_part(raw_end, CallEnd).receipt)


def judge_receipt(receipt: Receipt, seen: Seen) -> str:
    """Raises: NodeFault for a receipt that does not fit. Returns: what the call's row says of it."""
    fault = find_receipt_fault(receipt, seen)
    if fault:
        raise NodeFault("receipt", fault)
    return "" if is_on_time(receipt, seen.started_at_ms, seen.finished_at_ms) else LATE


def make_seen(
    context: CallContext, status: int, response_hash: bytes, usage: Usage | None, answer_bytes: int
) -> Seen:
    """What the hub saw of a call that ends now, with an answer of so many bytes."""
    request, call = context.request, context.call
    bound, limit = request.input_bound_tokens, call.info.max_input_tokens
    return Seen(
        forward_hash=call.forward_hash,
        response_hash=response_hash,
        http_status=status,
        usage=usage,
        input_bound_tokens=bound if limit is None else min(bound, request.inputs * limit),
        output_bound_tokens=context.limits.output_bound(request, answer_bytes),
        started_at_ms=call.forward.started_at_ms,
        finished_at_ms=context.recorder.now_ms(),
    )


async def deliver_answer(context: CallContext, answer: Answer) -> None:
    """Record a whole answer and send it. Raises: NodeFault while nothing was recorded or sent."""
    response_hash = keccak(answer.body)
    success = 200 <= answer.status < 300
    usage = read_usage(answer.body) if success else None
    seen = make_seen(context, answer.status, response_hash, usage, len(answer.body))
    remark = judge_receipt(answer.receipt, seen)
    if not success:
        await _deliver_refusal(context, answer, response_hash, remark)
        return
    cost = context.recorder.cost_of(context.call, answer.receipt.input_tokens, answer.receipt.output_tokens)
    settled = await context.settle(CallStatus.OK, answer.receipt, response_hash, cost, remark)
    content_type = JSON if answer.content_type.startswith("application/json") else b"application/octet-stream"
    headers = context.headers(content_type, b"x-emc-credits", settled.charge.total_micro)
    await context.reply.whole(answer.status, headers, answer.body)


async def _deliver_refusal(context: CallContext, answer: Answer, response_hash: bytes, remark: str) -> None:
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
    await context.settle(CallStatus.CLIENT_ERROR, answer.receipt, body_hash, 0, remark)
    await context.reply.whole(answer.status, context.headers(JSON, b"x-emc-credits", 0), body)


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
