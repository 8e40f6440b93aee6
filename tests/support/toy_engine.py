"""An engine that speaks all of OpenAI's API that nodes can serve, and makes everything up.

Its answers have the fields and the order of events of the real thing, so that unmodified clients read them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import trio

from emcd.net.http_exchange import Receive, Scope, Send
from emcd.net.http_limit import Limits
from emcd.net.http_server import serve_http

MODEL = "toy"
SOUND = b"ID3" + bytes(range(256)) * 64
PIXEL = "iVBORw0KGgo="
TOKENS = {"input_tokens": 11, "output_tokens": 4, "total_tokens": 15}
USAGE = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
         "system_fingerprint": "fp_1", "service_tier": "default"}  # fmt: skip
LOGPROB = {"token": "a", "logprob": -0.25, "bytes": [97], "top_logprobs": []}
TOOL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "find", "arguments": ""}}


def event(value: Any, name: str = "") -> bytes:
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + msgspec.json.encode(value) + b"\n\n"


def chat_chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    return event({**CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]})


CHAT_EVENTS = [
    chat_chunk({"role": "assistant", "content": "", "refusal": None}),
    chat_chunk({"content": "a"}, logprobs={"content": [LOGPROB], "refusal": None}, x_unknown={"k": [1.0]}),
    chat_chunk({"reasoning_content": "because"}),
    chat_chunk({"tool_calls": [TOOL]}),
    chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"usage":'}}]}),
    chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": ' "[DONE]"}'}}]}),
    chat_chunk({}, "tool_calls"),
]
USAGE_EVENT = event({**CHUNK, "choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
MESSAGE = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
           "content": [{"type": "output_text", "text": "a b", "annotations": []}]}  # fmt: skip
RESPONSE = {"id": "resp_1", "object": "response", "created_at": 1, "model": MODEL, "error": None,
            "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True,
            "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "tools": []}  # fmt: skip
WHOLE_RESPONSE = {
    **RESPONSE,
    "status": "completed",
    "output": [MESSAGE],
    "usage": {
        **TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    },
}


def response_events() -> list[bytes]:
    """Typed events, numbered; the usage stands in the last, and nothing follows it."""
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    begun = {**RESPONSE, "status": "in_progress", "output": [], "usage": None}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": {**MESSAGE, "content": []}}),
        ("response.content_part.added", {**where, "part": part}),
        ("response.output_text.delta", {**where, "delta": "a", "logprobs": []}),
        ("response.output_text.delta", {**where, "delta": " b", "logprobs": []}),
        ("response.output_text.done", {**where, "text": "a b", "logprobs": []}),
        ("response.output_item.done", {"output_index": 0, "item": MESSAGE}),
        ("response.completed", {"response": WHOLE_RESPONSE}),
    ]
    return [event({"type": n, "sequence_number": at, **v}, n) for at, (n, v) in enumerate(events)]


@dataclass
class Seen:
    """A request as the engine got it."""

    path: str
    content_type: str
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class ToyEngine:
    """The engine; `endless`: streams of chat never end; `cut`: no answer has its end; `broken`: paths
    that are answered like this.
    """

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    endless: bool = False
    cut: bool = False
    left_at: list[float] = field(default_factory=list)
    sent: int = 0
    broken: dict[str, tuple[int, str, list[bytes]]] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["path"].removeprefix("/v1")
        kind = dict(scope["headers"]).get(b"content-type", b"").decode()
        if scope["method"] == "GET" and path != "/models":  # which engine is this?
            await self._send(send, 404, "application/json", [b"{}"])
            return
        if path != "/models":
            self.seen.append(Seen(path, kind, body))
        if path in self.broken:
            await self._send(send, *self.broken[path])
        elif path == "/chat/completions" and self.endless:
            await self._stream_without_end(send)
        else:
            await self._send(send, *answer(path, kind, body))

    async def _send(self, send: Send, status: int, kind: str, pieces: list[bytes]) -> None:
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if self.cut:
            raise OSError("the engine died")
        await send({"type": "http.response.body", "body": b""})

    async def _stream_without_end(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while True:
                await send({"type": "http.response.body", "body": CHAT_EVENTS[1], "more_body": True})
                self.sent += 1
                await trio.sleep(0.01)
        except (OSError, trio.Cancelled):
            self.left_at.append(trio.current_time())
            raise


def answer(path: str, kind: str, body: bytes) -> tuple[int, str, list[bytes]]:
    """Status, content type and pieces."""
    if path == "/models":
        return _json({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
    if kind.startswith("multipart/form-data"):
        return _answer_form(path, body)
    table = msgspec.json.decode(body)
    stream = bool(table.get("stream"))
    match path:
        case "/chat/completions" if stream:
            return 200, "text/event-stream; charset=utf-8", [*CHAT_EVENTS, USAGE_EVENT, DONE]
        case "/chat/completions":
            choice = {"index": 0, "finish_reason": "stop", "logprobs": None,
                      "message": {"role": "assistant", "content": "a b"}}  # fmt: skip
            return _json({**CHUNK, "object": "chat.completion", "choices": [choice], "usage": USAGE})
        case "/completions":
            choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "text": "a b"}
            value = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}
            if stream:
                last = event({**value, "choices": [], "usage": USAGE})
                return 200, "text/event-stream", [event({**value, "choices": [choice]}), last, DONE]
            return _json({**value, "choices": [choice], "usage": USAGE})
        case "/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
            return _json({"object": "list", "data": data, "model": MODEL, "usage": {"prompt_tokens": 11}})
        case "/responses":
            return (200, "text/event-stream", response_events()) if stream else _json(WHOLE_RESPONSE)
    return _answer_media(path, table)


def _answer_media(path: str, table: dict[str, Any]) -> tuple[int, str, list[bytes]]:
    stream = bool(table.get("stream"))
    match path:
        case "/audio/speech" if table.get("stream_format") == "sse":
            done = event({"type": "speech.audio.done", "usage": TOKENS})
            return 200, "text/event-stream", [event({"type": "speech.audio.delta", "audio": PIXEL}), done]
        case "/audio/speech":
            return 200, "audio/mpeg", [SOUND[at : at + 4096] for at in range(0, len(SOUND), 4096)]
        case "/images/generations" if stream:
            value = {"b64_json": PIXEL, "created_at": 1, "size": "1024x1024", "quality": "high",
                     "background": "opaque", "output_format": "png"}  # fmt: skip
            part = {"type": "image_generation.partial_image", "partial_image_index": 0, **value}
            last = {"type": "image_generation.completed", **value, "usage": TOKENS}
            return 200, "text/event-stream", [event(part, part["type"]), event(last, last["type"])]
        case "/images/generations":
            return _json({"created": 1, "data": [{"b64_json": PIXEL}], "usage": TOKENS})
    return 404, "application/json", [b"{}"]


def _answer_form(path: str, body: bytes) -> tuple[int, str, list[bytes]]:
    if path.startswith("/images/"):
        return _json({"created": 1, "data": [{"b64_json": PIXEL}], "usage": TOKENS})
    if b'name="stream"\r\n\r\ntrue' in body:
        delta = event({"type": "transcript.text.delta", "delta": "a b"})
        return 200, "text/event-stream", [delta, event({"type": "transcript.text.done", "text": "a b",
                                                        "usage": {"type": "tokens", **TOKENS}})]  # fmt: skip
    if b'name="response_format"\r\n\r\ntext' in body:
        return 200, "text/plain; charset=utf-8", [b"a b\n"]
    return _json({"text": "a b", "usage": {"type": "duration", "seconds": 9}})


def _json(value: Any) -> tuple[int, str, list[bytes]]:
    return 200, "application/json", [msgspec.json.encode(value)]


@asynccontextmanager
async def toy_engine() -> AsyncIterator[ToyEngine]:
    """A running engine on a free port of loopback."""
    engine = ToyEngine()
    async with trio.open_nursery() as nursery:
        limits = Limits(body_bytes=64 << 20)
        port = await nursery.start(partial(serve_http, engine, host="127.0.0.1", port=0, limits=limits))
        engine.url = f"http://127.0.0.1:{port}/v1"
        yield engine
        nursery.cancel_scope.cancel()
