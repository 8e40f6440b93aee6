"""What the benchmarks ask and what their engine answers: OpenAI's JSON, prepared once as bytes."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, NamedTuple

MODEL = "stub-model"
ENGINE_MODEL = f"{MODEL}-http"
"""What is served by a node with an engine behind HTTP, where both kinds of node are there."""
PROMPT_TOKENS = 12
ANSWER = "Seven words of an answer, no more."
_CHUNK: dict[str, Any] = {
    "id": "chatcmpl-bench",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": MODEL,
}
_MARK = "t@"
_TIME = "TIME"
STAMP = re.compile(rb"t@(\d{19})")
"""When a chunk was sent, in nanoseconds of the monotonic clock."""
COUNT_MARK = _MARK.encode()

_STREAM = re.compile(rb'"stream": ?true')
_USAGE = re.compile(rb'"include_usage": ?true')
_MAX_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')
_PACE = re.compile(rb"pace=(\d+)")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _event(choices: list[Any], **more: Any) -> bytes:
    return b"data: " + _json({**_CHUNK, "choices": choices, **more}) + b"\n\n"


def _delta(delta: dict[str, str], finish: str | None = None) -> list[Any]:
    return [{"index": 0, "delta": delta, "finish_reason": finish}]


def _usage(output: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": output,
        "total_tokens": PROMPT_TOKENS + output,
    }


WHOLE = _json(
    {
        **_CHUNK,
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
        ],
        "usage": _usage(8),
    }
)
EMBEDDINGS = _json(
    {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 1.0]}],
        "model": MODEL,
        "usage": {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS},
    }
)
MODELS = _json(
    {"object": "list", "data": [{"id": name, "object": "model"} for name in (MODEL, ENGINE_MODEL)]}
)
FINISH = _event(_delta({}, "stop"))
DONE = b"data: [DONE]\n\n"
_BEFORE, _AFTER = _event(_delta({"role": "assistant", "content": f"{_MARK}{_TIME} "})).split(_TIME.encode())


def make_chunk(sent_at_ns: int) -> bytes:
    """One event of a stream."""
    return b"%b%019d%b" % (_BEFORE, sent_at_ns, _AFTER)


@cache
def usage_event(chunks: int) -> bytes:
    """The event before the last, where the client asked for it."""
    return _event([], usage=_usage(chunks))


class Wish(NamedTuple):
    """The stream that a request asks for."""

    chunks: int
    pace_ns: int
    wants_usage: bool


def read_wish(request: bytes) -> Wish | None:
    """None: the request wants a whole answer. Looks at the end alone of what is long."""
    part = request if len(request) < 4096 else request[-2048:]
    if _STREAM.search(part) is None:
        return None
    chunks, pace = _MAX_TOKENS.search(part), _PACE.search(part)
    return Wish(
        int(chunks[1]) if chunks else 1,
        int(pace[1]) * 1000 if pace else 0,
        _USAGE.search(part) is not None,
    )


def chat_body(*, model: str = MODEL, prompt_bytes: int = 0, chunks: int = 0, pace_us: int = 0) -> bytes:
    """A chat request: a whole answer, or with `chunks` a stream of so many."""
    text = "x" * prompt_bytes + f" pace={pace_us} say seven words"
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text.strip()}]}
    if chunks:
        return _json({**asked, "max_tokens": chunks, "stream": True})
    return _json({**asked, "max_tokens": 16})
