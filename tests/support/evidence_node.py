"""A stub of a node whose text model can be verified: it answers with evidence where it is asked for it."""

from __future__ import annotations

from typing import Any

import msgspec

from emcd.inference.manifest import TextManifest
from emcd.net.tunnel import IncomingCall
from emcd.proto.control import CallMeta, ResponseHead, encode
from emcd.proto.hashing import keccak
from tests.support.hub_world import MODEL, StubNode, sse

FILES = dict.fromkeys(("model.onnx", "tokenizer.json", "chat_template.jinja", "golden.json"), "ab" * 32)
TEXT_MANIFEST = TextManifest(
    name=MODEL, files=FILES, context_tokens=512, vocab_tokens=2048, bos_token=None, stop_tokens=(0,)
)
WORDS = ["one", ' "two"', " 3é"]
PROMPT_IDS = [11, 12, 13, 14]
USED = (len(PROMPT_IDS), len(WORDS))
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")


def chat_logprobs(words: list[str], most: int) -> dict[str, Any]:
    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    top = [entry(name, -0.5 - n) for n, name in enumerate(NAMES[:most])]
    return {"content": [{**entry(word, -0.25), "top_logprobs": top} for word in words], "refusal": None}


def text_logprobs(words: list[str], most: int) -> dict[str, Any]:
    top = {name: -0.5 - n for n, name in enumerate(NAMES[:most])}
    return {
        "tokens": words,
        "token_logprobs": [-0.25] * len(words),
        "top_logprobs": [{**top, word: -0.25} for word in words],
        "text_offset": [0] * len(words),
    }


def whole_body(asked: dict[str, Any]) -> bytes:
    """What an honest node says to a request, whichever of both endpoints it is of."""
    is_chat = "messages" in asked
    words, text = WORDS, "".join(WORDS)
    choice: dict[str, Any] = {"index": 0}
    if is_chat:
        choice["message"] = {"role": "assistant", "content": text}
        wanted, most = asked.get("logprobs"), asked.get("top_logprobs", 0)
    else:
        choice["text"] = text
        wanted, most = asked.get("logprobs") is not None, asked.get("logprobs") or 0
    make = chat_logprobs if is_chat else text_logprobs
    choice["logprobs"] = make(words, most) if wanted else None
    choice["finish_reason"] = "stop"
    answer: dict[str, Any] = {
        "id": "x-1",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        "usage": {"prompt_tokens": USED[0], "completion_tokens": USED[1], "total_tokens": sum(USED)},
    }
    if asked.get("return_token_ids"):
        choice["token_ids"] = list(range(len(words)))
        answer["prompt_token_ids"] = PROMPT_IDS
    return msgspec.json.encode(answer)


def stream_events(asked: dict[str, Any]) -> list[bytes]:
    """The same as events of a chat."""
    head = {"id": "x-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    events = []
    for number, word in enumerate([*WORDS, ""]):
        choice: dict[str, Any] = {"index": 0, "delta": {"content": word} if word else {}}
        choice["logprobs"] = None
        if asked.get("logprobs") and word:
            choice["logprobs"] = chat_logprobs([word], asked.get("top_logprobs", 0))
        choice["finish_reason"] = None if word else "stop"
        chunk: dict[str, Any] = {**head, "choices": [choice]}
        if asked.get("return_token_ids"):
            choice["token_ids"] = [number] if word else []
            if not number:
                chunk["prompt_token_ids"] = PROMPT_IDS
        events.append(sse(chunk))
    usage = {"prompt_tokens": USED[0], "completion_tokens": USED[1], "total_tokens": sum(USED)}
    if asked.get("stream_options"):
        events.append(sse({**head, "choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"]


async def answer_with_evidence(node: StubNode, call: IncomingCall, meta: CallMeta) -> None:
    asked = msgspec.json.decode(call.body)
    if asked.get("stream"):
        await call.start(encode(ResponseHead(200, "text/event-stream")))
        body = b""
        for event in stream_events(asked):
            await call.send(event)
            body += event
    else:
        body = whole_body(asked)
        await call.start(encode(ResponseHead(200, "application/json")))
        await call.send(body)
    await node.finish(call, meta, keccak(body), 200, USED)
