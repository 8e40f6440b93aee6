"""The request a leaf becomes: what users' programs send. Pure.

A peer that holds seed, beacon, leaf and manifest rebuilds the very same bytes. The hub strips the provider
choice and asks every text model for evidence, so the node sees an ordinary request. Probes ask for the
evidence themselves: what they get is what the node signed, byte for byte. A prompt is cut so that prompt
and answer fit the model's context, as users' programs do; to what length is drawn, for a prompt that ends
exactly at the limit would be a mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.inference.manifest import CheckedManifest, TextManifest
from emcd.proto.openai import ENDPOINTS, Endpoint, read_request
from emcd.proto.records import request_hash
from emcd.types import Hash
from emcd_validator.call_shape import CallShape, draw_is_long, draw_shape
from emcd_validator.corpus import Leaf
from emcd_validator.plan import Draws, Slot
from emcd_validator.profile import DEFAULT

TOP_LOGPROBS: Final = 5
LONG_PERCENT: Final = (75, 85)
"""How much of the context the prompt of a `first` probe fills."""
LONG_INPUT_WORDS: Final = 200
"""A text that would fill a context is far too long for an embedding model: a part of it is sent."""
_TURN_TOKENS: Final = 8
"""What a chat template adds to a turn, at most."""
_ANSWER_LIMITS: Final = (4096, 2048, 1024, 512, 500, 256, 200, 128, 100, 64, 32, 16)
"""What users write as a limit: a larger one than the context leaves becomes the next of these."""

TokenCount = Callable[[str], int]
"""How many tokens a text has, special ones left out."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True)
class ProbeRequest:
    """What a probe sends, and where."""

    path: str
    body: bytes


@dataclass(frozen=True)
class _Prompt:
    """What is drawn for a text model, with the room that its context leaves."""

    shape: CallShape
    limit: int
    room: int
    cut: int
    """How many tokens of a prompt stay when it has more than `room`."""


def build_probe(
    draws: Draws,
    slot: Slot,
    leaf: Leaf,
    manifest: CheckedManifest,
    count: TokenCount,
    *,
    greedy: bool = False,
) -> ProbeRequest:
    """The request of a slot.

    Args:
        count: by the model's tokenizer.
        greedy: at temperature 0 whatever is drawn: for nodes whose free sampling looks odd.
    """
    if not isinstance(manifest, TextManifest):
        return _build_embedding(draws, slot, leaf, manifest.name)
    shape = leaf.call or _draw_call(draws, slot, leaf)
    if greedy:
        shape = replace_shape(shape, temperature_milli=0)
    if not manifest.can_chat:
        shape = replace_shape(shape, endpoint="completions", limit_name="max_tokens")
    prompt = _make_room(draws, slot, shape, manifest.context_tokens)
    table: dict[str, Any]
    if shape.endpoint == "chat":
        table = {"messages": _fit_turns(leaf.texts[: shape.turns], prompt, count), "model": manifest.name}
    else:
        room = prompt.room if count(leaf.texts[0]) <= prompt.room else prompt.cut
        table = {"model": manifest.name, "prompt": _cut(leaf.texts[0], room, count, is_long=shape.is_long)}
    table |= _list_parameters(prompt, draws.below(slot, "sampler seed", 1 << 63))
    table["provider"] = {"only": [slot.node]}
    endpoint = Endpoint.CHAT if shape.endpoint == "chat" else Endpoint.COMPLETIONS
    return ProbeRequest(endpoint.value, _encode(table))


def list_requests(
    draws: Draws, slot: Slot, leaf: Leaf, manifest: CheckedManifest, count: TokenCount
) -> tuple[ProbeRequest, ...]:
    """The requests that a slot may be: the drawn one, and of a text model the same at temperature 0."""
    drawn = build_probe(draws, slot, leaf, manifest, count)
    if not isinstance(manifest, TextManifest):
        return (drawn,)
    return drawn, build_probe(draws, slot, leaf, manifest, count, greedy=True)


def path_of(body: bytes) -> str:
    """Where a probe's body was sent to; "" for a body that is none."""
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    for name, endpoint in (
        ("input", Endpoint.EMBEDDINGS),
        ("messages", Endpoint.CHAT),
        ("prompt", Endpoint.COMPLETIONS),
    ):
        if name in fields:
            return endpoint.value
    return ""


def upstream_hash(path: str, body: bytes) -> Hash | None:
    """The request hash that hub and node must have signed for this body; None when it is no request."""
    endpoint = ENDPOINTS.get(path)
    if endpoint not in (Endpoint.EMBEDDINGS, Endpoint.CHAT, Endpoint.COMPLETIONS):
        return None
    try:
        return request_hash(path, read_request(endpoint, body, evidence=True).body)
    except RemoteProtocolError:
        return None


def replace_shape(shape: CallShape, **changes: Any) -> CallShape:
    """The shape with other fields."""
    return msgspec.structs.replace(shape, **changes)


def _build_embedding(draws: Draws, slot: Slot, leaf: Leaf, model: str) -> ProbeRequest:
    texts = leaf.texts if leaf.call is None else leaf.texts[: leaf.call.inputs]
    if leaf.call is not None and leaf.call.is_long:
        words = 4 + draws.below(slot, "input length", LONG_INPUT_WORDS)
        texts = tuple(_cut(text, words, _count_words) for text in texts)
    table: dict[str, Any] = {"input": list(texts) if leaf.as_list else texts[0], "model": model}
    if leaf.encoding:
        table["encoding_format"] = leaf.encoding
    table["provider"] = {"only": [slot.node]}
    return ProbeRequest(Endpoint.EMBEDDINGS.value, _encode(table))


def _draw_call(draws: Draws, slot: Slot, leaf: Leaf) -> CallShape:
    """How a leaf of the first form is asked of a text model."""

    def below(label: str, bound: int) -> int:
        return draws.below(slot, label, bound)

    turns = len(leaf.texts) - (len(leaf.texts) + 1) % 2
    is_long = draw_is_long(DEFAULT, below)
    return draw_shape(DEFAULT, below, turns, len(leaf.texts), is_long=is_long)


def _make_room(draws: Draws, slot: Slot, shape: CallShape, context: int) -> _Prompt:
    reserve = min(64, context // 16) + _TURN_TOKENS * (shape.turns + 1)
    if shape.is_long:
        first, last = LONG_PERCENT
        percent = first + draws.below(slot, "prompt length", last - first + 1)
        room = max(1, min(context * percent // 100, context - reserve - 1))
        return _Prompt(shape, 1, room, room)
    limit = min(shape.max_tokens, next((x for x in _ANSWER_LIMITS if x <= context // 2), 2))
    room = max(1, context - reserve - (limit or context // 4))
    share = 50 + draws.below(slot, "prompt length", 50)
    return _Prompt(shape, limit, room, max(1, room * share // 100))


def _fit_turns(texts: Sequence[str], prompt: _Prompt, count: TokenCount) -> list[dict[str, str]]:
    """The conversation, without its oldest turns or the end of its last one where it is too long."""
    system = prompt.shape.system
    used = count(system) if system else 0
    room, cut = max(1, prompt.room - used), max(1, prompt.cut - used)
    sizes = [count(text) for text in texts]
    while len(sizes) > 1 and sum(sizes) > room:
        sizes = sizes[2:]
    turns = list(texts[-len(sizes) :])
    if sum(sizes) > room:
        turns = [_cut(turns[0], cut, count, is_long=prompt.shape.is_long)]
    messages = [{"role": "system", "content": system}] if system else []
    for number, text in enumerate(turns):
        messages.append({"role": "assistant" if number % 2 else "user", "content": text})
    return messages


def _cut(text: str, room: int, count: TokenCount, *, is_long: bool = False) -> str:
    """The beginning of a text that has at most so many tokens; never empty.

    It ends with a line or a sentence where there is one in its second half (of a long prompt, in its last
    tenth), else with a word.
    """
    if count(text) <= room:
        return text
    whole = text
    while len(text) > 1 and (size := count(text)) > room:
        text = text[: max(1, min(len(text) - 1, len(text) * room // size))]
    ends = [text.rfind(mark) + len(mark.rstrip()) for mark in (". ", ".\n", "? ", "! ", "\n\n", "\n")]
    least = len(text) * 9 // 10 if is_long else len(text) // 2
    end = max(ends) if max(ends) > least else text.rfind(" ")
    text = text[:end].rstrip() if end > 0 else text
    return text if text.strip() else whole.strip()[:1]


def _list_parameters(prompt: _Prompt, seed: int) -> dict[str, Any]:
    shape = prompt.shape
    table: dict[str, Any] = {}
    if shape.temperature_milli is not None:
        table["temperature"] = _number(shape.temperature_milli)
    if shape.top_p_milli is not None:
        table["top_p"] = _number(shape.top_p_milli)
    if prompt.limit:
        table[shape.limit_name] = prompt.limit
    if shape.stream:
        table |= {"stream": True, "stream_options": {"include_usage": True}}
    table["seed"] = seed
    if shape.endpoint == "chat":
        table |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    else:
        table["logprobs"] = TOP_LOGPROBS
    table["return_token_ids"] = True
    return table


def _count_words(text: str) -> int:
    return len(text.split())


def _number(milli: int) -> int | float:
    return milli // 1_000 if milli % 1_000 == 0 else milli / 1_000
