"""Does a node's receipt fit what the hub saw? Pure.

A receipt that does not fit is thrown away, and the node's answer counts as its failure: nobody is
charged on its word. One whose times are off is kept; it proves the work, it only does not earn.
"""

from __future__ import annotations

import msgspec

from emcd.accounting.event_stream import TEMPLATE_TOKENS
from emcd.accounting.usage import Usage
from emcd.proto.params import MAX_CLOCK_SKEW_MS
from emcd.proto.records import Receipt

_MAX_NUMBER = 2**63 - 1


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What the hub saw of the call. `usage` is what the answer's body states; the bounds hold for its tokens."""

    forward_hash: bytes
    response_hash: bytes
    http_status: int
    usage: Usage | None
    input_bound_tokens: int
    output_bound_tokens: int
    started_at_ms: int
    finished_at_ms: int


def find_receipt_fault(receipt: Receipt, seen: Seen) -> str:
    """What is wrong with a receipt, in words that fit into a log; "" for nothing."""
    numbers = (receipt.input_tokens, receipt.output_tokens, receipt.started_at_ms, receipt.finished_at_ms)
    if min(numbers) < 0 or max(numbers) > _MAX_NUMBER:
        return f"its receipt holds a number that can't be: {numbers}"
    if receipt.forward_hash != seen.forward_hash:
        return "its receipt is for another call"
    if receipt.response_hash != seen.response_hash:
        return "its receipt is for another answer"
    if receipt.http_status != seen.http_status:
        return f"its receipt says status {receipt.http_status}, its answer {seen.http_status}"
    if not 200 <= seen.http_status < 300:
        return ""
    used = (receipt.input_tokens, receipt.output_tokens)
    if seen.usage is not None and used != (seen.usage.input_tokens, seen.usage.output_tokens):
        return f"its receipt says {used} tokens, its answer {seen.usage}"
    if receipt.input_tokens > seen.input_bound_tokens + TEMPLATE_TOKENS:
        return f"its receipt says {receipt.input_tokens} tokens went in, {seen.input_bound_tokens} can"
    if receipt.output_tokens > seen.output_bound_tokens:
        return f"its receipt says {receipt.output_tokens} tokens came out, {seen.output_bound_tokens} may"
    return ""


def is_on_time(receipt: Receipt, started_at_ms: int, finished_at_ms: int) -> bool:
    """Whether the node's clock agrees with the hub's well enough for the receipt to earn."""
    earliest, latest = started_at_ms - MAX_CLOCK_SKEW_MS, finished_at_ms + MAX_CLOCK_SKEW_MS
    return earliest <= receipt.started_at_ms <= receipt.finished_at_ms <= latest
