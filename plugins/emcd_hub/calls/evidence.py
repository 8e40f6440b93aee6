"""The evidence in an answer: taken out again where its client did not ask for it, and counted. Pure.

All calls of a model that can be verified ask for logprobs and token ids. Here an answer, or one event of
a stream, becomes what it would have been without that. Invariants: of what is cut, only the fields that an
answer of OpenAI's has get through, so that nothing a node makes up can; what is kept keeps its bytes; an
answer that can't be read is refused, never passed on whole.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.openai_shape import Endpoint, Hidden

_NONE: Final = msgspec.Raw(b"")
"""A field that does not stand there."""
_NULL: Final = msgspec.Raw(b"null")


class _Choice(msgspec.Struct, omit_defaults=True, gc=False):
    index: msgspec.Raw = _NONE
    message: msgspec.Raw = _NONE
    delta: msgspec.Raw = _NONE
    text: msgspec.Raw = _NONE
    logprobs: msgspec.Raw = _NONE
    finish_reason: msgspec.Raw = _NONE
    stop_reason: msgspec.Raw = _NONE
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Answer(msgspec.Struct, omit_defaults=True):
    id: msgspec.Raw = _NONE
    object: msgspec.Raw = _NONE
    created: msgspec.Raw = _NONE
    model: msgspec.Raw = _NONE
    system_fingerprint: msgspec.Raw = _NONE
    service_tier: msgspec.Raw = _NONE
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NONE
    error: msgspec.Raw = _NONE
    prompt_token_ids: list[int] | None = None


class _ChatLogprob(msgspec.Struct, omit_defaults=True, gc=False):
    token: str
    logprob: msgspec.Raw
    bytes: msgspec.Raw = _NONE
    top_logprobs: list[msgspec.Raw] | None = None


class _ChatLogprobs(msgspec.Struct, omit_defaults=True):
    content: list[_ChatLogprob] | None
    refusal: msgspec.Raw = _NONE


class _Logprobs(msgspec.Struct, omit_defaults=True):
    tokens: list[str]
    token_logprobs: msgspec.Raw
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: msgspec.Raw = _NONE


class Piece(NamedTuple):
    """An answer, or an event's data, for its client.

    Attributes:
        data: JSON without what is hidden.
        prompt_tokens: how many ids of the prompt stand in it; None: it names none.
        ids: of what came out, choice by choice; None: it names none.
        texts: messages, deltas and texts, as JSON.
    """

    data: bytes
    prompt_tokens: int | None
    ids: list[int] | None
    texts: list[bytes]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Answer).decode
_decode_chat = msgspec.json.Decoder(_ChatLogprobs | None).decode
_decode_texts = msgspec.json.Decoder(_Logprobs | None).decode


def read_piece(endpoint: Endpoint, data: bytes, hidden: Hidden | None) -> Piece:
    """Take out of an answer, or of one event's data, what is hidden; None: nothing, it stays as it is.

    Raises: RemoteProtocolError EMC-1793 for what is no answer of chat or completions.
    """
    try:
        answer = _decode(data)
        prompt_tokens, ids, texts = _gather(answer)
        if hidden is None:
            return Piece(data, prompt_tokens, ids, texts)
        for choice in answer.choices or ():
            if choice.logprobs is not _NONE:
                choice.logprobs = _trim(endpoint, choice.logprobs, hidden.most_logprobs)
            if hidden.token_ids:
                choice.token_ids = choice.prompt_token_ids = None
        if hidden.token_ids:
            answer.prompt_token_ids = None
        return Piece(_encode(answer), prompt_tokens, ids, texts)
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1793", f"the node's answer can't be read: {exc}") from exc


def _gather(answer: _Answer) -> tuple[int | None, list[int] | None, list[bytes]]:
    prompt = answer.prompt_token_ids
    ids: list[int] | None = None
    texts = []
    for choice in answer.choices or ():
        if prompt is None:
            prompt = choice.prompt_token_ids
        if choice.token_ids is not None:
            ids = choice.token_ids if ids is None else ids + choice.token_ids
        for text in (choice.message, choice.delta, choice.text):
            if text is not _NONE:
                texts.append(bytes(text))
    return None if prompt is None else len(prompt), ids, texts


def _trim(endpoint: Endpoint, logprobs: msgspec.Raw, most: int | None) -> msgspec.Raw:
    """The logprobs of a choice, as who asked for so many alternatives gets them."""
    if most is None:
        return _NULL
    found: Any = (_decode_chat if endpoint is Endpoint.CHAT else _decode_texts)(logprobs)
    if found is None:
        return _NULL
    if isinstance(found, _ChatLogprobs):
        for entry in found.content or ():
            if entry.top_logprobs is not None:
                del entry.top_logprobs[most:]
    elif found.top_logprobs is not None:
        rows = found.top_logprobs
        if len(rows) != len(found.tokens):
            raise ValueError("its logprobs are of different lengths")
        found.top_logprobs = [
            None if row is None else _keep(row, token, most)
            for row, token in zip(rows, found.tokens, strict=True)
        ]
    return msgspec.Raw(_encode(found))


def _keep(row: dict[str, float], token: str, most: int) -> dict[str, float]:
    """The likeliest alternatives of a position, and the token that was chosen."""
    kept = sorted(row, key=row.__getitem__, reverse=True)[:most]
    return {name: row[name] for name in row if name in kept or name == token}
