"""The events that the hub itself writes into a stream: a cut by the budget, an error. Pure.

What a node sends is read by `emcd.accounting.event_stream`. Invariant: whatever the hub ends early, it
ends in the way that the endpoint's clients know.
"""

from __future__ import annotations

from typing import Any

import msgspec

from emcd.accounting.event_stream import event_data
from emcd.accounting.usage import Usage
from emcd.proto.openai_shape import Endpoint

_encode = msgspec.json.Encoder().encode
DONE_EVENT = b"data: [DONE]\n\n"


def make_event(value: Any) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def make_cut(endpoint: Endpoint, first: bytes, usage: Usage | None, sequence: int = 0) -> bytes:
    """The end of a stream that the budget cut, as if max_tokens had been reached.

    Completions: finish_reason "length", usage if asked for, [DONE]; responses: `response.incomplete`.

    Args:
        first: the first event, whose id, model and time (or response) the last one repeats.
        sequence: how many events came before.
    """
    like = _read(first)
    if endpoint is Endpoint.RESPONSES:
        return _make_incomplete(like, usage, sequence)
    chat = endpoint is Endpoint.CHAT
    head = {name: like[name] for name in ("id", "object", "created", "model") if name in like}
    head.setdefault("object", "chat.completion.chunk" if chat else "text_completion")
    choice: dict[str, Any] = {"index": 0, "delta": {}} if chat else {"index": 0, "text": ""}
    out = make_event({**head, "choices": [{**choice, "finish_reason": "length"}]})
    if usage is not None:
        counts = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }
        out += make_event({**head, "choices": [], "usage": counts})
    return out + DONE_EVENT


def make_error(endpoint: Endpoint, body: bytes, sequence: int = 0) -> bytes:
    """An error body as a stream's last event.

    Clients of every endpoint look for `error` in the data; those of responses know the type `error`, too.
    """
    if endpoint is not Endpoint.RESPONSES:
        return b"data: " + body + b"\n\n"
    error = msgspec.json.decode(body)["error"]
    told = {name: error[name] for name in ("code", "message", "param")}
    return b"event: error\n" + make_event(
        {"type": "error", "sequence_number": sequence, **told, "error": error}
    )


def _make_incomplete(like: dict[str, Any], usage: Usage | None, sequence: int) -> bytes:
    response = like.get("response")
    response = dict(response) if isinstance(response, dict) else {"object": "response", "output": []}
    response["status"] = "incomplete"
    response["incomplete_details"] = {"reason": "max_output_tokens"}
    if usage is not None:
        response["usage"] = {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }
    event = {"type": "response.incomplete", "sequence_number": sequence, "response": response}
    return b"event: response.incomplete\n" + make_event(event)


def _read(event: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(event_data(event))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
