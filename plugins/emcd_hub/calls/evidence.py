"""The evidence in an answer: taken out again where its client did not ask for it, and counted. Pure.

All calls of a model that can be verified ask for logprobs and token ids. Here an answer, or one event of
a stream, becomes what it would have been without that. Invariants: of what is cut, only the fields that an
answer of OpenAI's has get through, so that nothing a node makes up can; what is kept keeps its bytes; an
answer that can't be read is refused, never passed on whole; and one that is made of more parts than its
request has use for before they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.json_bound import is_too_fine
from emcd.proto.openai_evidence import MAX_LOGPROBS
from emcd.proto.openai_shape import MAX_CHOICES, Endpoint, Hidden

MAX_POSITIONS: Final = 1 << 17
"""Of the logprobs of a choice."""
MAX_NAMED: Final = 1 << 21
"""Token ids in an answer, or an event."""
_PARTS_A_POSITION: Final = 2 * (MAX_LOGPROBS + 2)
"""Objects and lists: the token's and its alternatives', and the bytes of each."""
_STRINGS_A_POSITION: Final = 4 * (MAX_LOGPROBS + 2)
_FEW: Final = 64
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
    token_ids: msgspec.Raw = _NONE
    prompt_token_ids: msgspec.Raw = _NONE


class _Answer(msgspec.Struct, omit_defaults=True):
    id: msgspec.Raw = _NONE
    object: msgspec.Raw = _NONE
    created: msgspec.Raw = _NONE
    model: msgspec.Raw = _NONE
    system_fingerprint: msgspec.Raw = _NONE
    service_tier: msgspec.Raw = _NONE
    choices: msgspec.Raw = _NONE
    usage: msgspec.Raw = _NONE
    error: msgspec.Raw = _NONE
    prompt_token_ids: msgspec.Raw = _NONE


class _Words(msgspec.Struct, gc=False):
    """A message or a delta: where it can hold text."""

    content: msgspec.Raw = _NULL
    reasoning_content: msgspec.Raw = _NULL
    reasoning: msgspec.Raw = _NULL
    refusal: msgspec.Raw = _NULL
    tool_calls: msgspec.Raw = _NULL
    function_call: msgspec.Raw = _NULL


class _ChatLogprob(msgspec.Struct, omit_defaults=True, gc=False):
    token: str
    logprob: msgspec.Raw
    bytes: msgspec.Raw = _NONE
    top_logprobs: list[msgspec.Raw] | None = None


class _ChatLogprobs(msgspec.Struct, omit_defaults=True):
    content: list[_ChatLogprob] | msgspec.UnsetType | None = msgspec.UNSET
    refusal: list[_ChatLogprob] | msgspec.UnsetType | None = msgspec.UNSET


class _Logprobs(msgspec.Struct, omit_defaults=True):
    tokens: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    token_logprobs: msgspec.Raw = _NONE
    top_logprobs: list[dict[str, float | None] | None] | msgspec.UnsetType | None = msgspec.UNSET
    text_offset: msgspec.Raw = _NONE


class Piece(NamedTuple):
    """An answer, or an event's data, for its client.

    Attributes:
        data: JSON without what is hidden.
        prompt_tokens: how many ids of the prompt stand in it; None: it names none.
        ids: of what came out, choice by choice; None: it names none.
        texts: messages, deltas and texts, as JSON.
        is_bare: whether a choice with text, or at its end, names no ids: then its tokens are not known.
        is_withheld: whether evidence is missing of a text.
    """

    data: bytes
    prompt_tokens: int | None
    ids: list[int] | None
    texts: list[bytes]
    is_bare: bool = False
    is_withheld: bool = False


class Bounds(NamedTuple):
    """How many choices, and positions of each, an answer or an event may have."""

    choices: int = MAX_CHOICES
    positions: int = MAX_POSITIONS


ANY_BOUNDS: Final = Bounds()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Answer).decode
_decode_ids = msgspec.json.Decoder(list[int] | None).decode
_decode_words = msgspec.json.Decoder(_Words | None).decode
_EMPTY: Final = frozenset((b"", b"null", b'""', b"[]"))
_decode_chat = msgspec.json.Decoder(_ChatLogprobs | None).decode
_decode_texts = msgspec.json.Decoder(_Logprobs | None).decode


def read_piece(endpoint: Endpoint, data: bytes, hidden: Hidden | None, bounds: Bounds = ANY_BOUNDS) -> Piece:
    """Take out of an answer, or of one event's data, what is hidden; None: nothing, it stays as it is.

    Raises: RemoteProtocolError EMC-1793 for what is no answer of chat or completions, or beyond the bounds.
    """
    try:
        answer = _decode(data)
        choices = _read_choices(answer.choices, bounds.choices)
        piece = _gather(answer, choices, data)
        if hidden is None:
            return piece
        for choice in choices:
            if choice.logprobs is not _NONE:
                choice.logprobs = _trim(endpoint, choice.logprobs, hidden.most_logprobs, bounds.positions)
            if hidden.token_ids:
                choice.token_ids = choice.prompt_token_ids = _NONE
        if hidden.token_ids:
            answer.prompt_token_ids = _NONE
        if answer.choices is not _NONE:
            answer.choices = msgspec.Raw(_encode(choices))
        return piece._replace(data=_encode(answer))
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError("EMC-1793", f"the node's answer can't be read: {exc}") from exc


def require_evidence(piece: Piece) -> None:
    """Raises: RemoteProtocolError EMC-1793 for text of a node that always promises evidence, and gives none."""
    if piece.is_withheld:
        raise RemoteProtocolError("EMC-1793", "the node withholds the evidence of its answer")


@lru_cache(maxsize=32)
def _choice_decoder(most: int) -> Callable[[msgspec.Raw], Any]:
    """Reads a list of at most so many choices, and stops at one more: no list of any length is ever made."""
    fields = [(f"c{number}", _Choice | msgspec.UnsetType, msgspec.UNSET) for number in range(most)]
    shape = msgspec.defstruct("Choices", fields, array_like=True, forbid_unknown_fields=True)
    return cast("Callable[[msgspec.Raw], Any]", msgspec.json.Decoder(shape | None).decode)


def _read_choices(raw: msgspec.Raw, most: int) -> list[_Choice]:
    if raw is _NONE:
        return []
    found = _choice_decoder(1 << (most - 1).bit_length())(raw)
    if found is None:
        return []
    choices = [choice for choice in msgspec.structs.astuple(found) if choice is not msgspec.UNSET]
    if len(choices) > most:
        raise ValueError("it has more choices than were asked for")
    return choices


def _gather(answer: _Answer, choices: list[_Choice], data: bytes) -> Piece:
    left = MAX_NAMED
    prompt, left = _read_ids(answer.prompt_token_ids, left)
    ids: list[int] | None = None
    texts = []
    is_bare = is_withheld = False
    for choice in choices:
        own_prompt, left = _read_ids(choice.prompt_token_ids, left)
        own, left = _read_ids(choice.token_ids, left)
        prompt = own_prompt if prompt is None else prompt
        if own is not None:
            ids = own if ids is None else ids + own
        if own is None or (own and bytes(choice.logprobs) in _EMPTY):
            has_text = _has_text(choice)
            is_withheld = is_withheld or has_text
            is_bare = is_bare or (own is None and (has_text or bytes(choice.finish_reason) not in _EMPTY))
        for text in (choice.message, choice.delta, choice.text):
            if text is not _NONE:
                texts.append(bytes(text))
    return Piece(data, None if prompt is None else len(prompt), ids, texts, is_bare, is_withheld)


def _read_ids(raw: msgspec.Raw, left: int) -> tuple[list[int] | None, int]:
    """The ids, and how many more an answer may name."""
    if raw is _NONE:
        return None, left
    left -= bytes(raw).count(b",") + 1
    if left < 0:
        raise ValueError("it names too many tokens")
    return _decode_ids(raw), left


def _has_text(choice: _Choice) -> bool:
    if bytes(choice.text) not in _EMPTY:
        return True
    for raw in (choice.message, choice.delta):
        words = None if raw is _NONE else _decode_words(raw)
        if words is not None and not _EMPTY.issuperset(map(bytes, msgspec.structs.astuple(words))):
            return True
    return False


def _trim(endpoint: Endpoint, logprobs: msgspec.Raw, most: int | None, positions: int) -> msgspec.Raw:
    """The logprobs of a choice, as who asked for so many alternatives gets them."""
    if most is None:
        return _NULL
    parts, strings = _FEW + positions * _PARTS_A_POSITION, _FEW + positions * _STRINGS_A_POSITION
    if is_too_fine(bytes(logprobs), parts, strings):
        raise ValueError("its logprobs are of more positions than it may have tokens")
    found: Any = (_decode_chat if endpoint is Endpoint.CHAT else _decode_texts)(logprobs)
    if found is None:
        return _NULL
    if isinstance(found, _ChatLogprobs):
        for entry in (*(found.content or ()), *(found.refusal or ())):
            if entry.top_logprobs is not None:
                del entry.top_logprobs[most:]
    elif found.top_logprobs:
        rows, tokens = found.top_logprobs, found.tokens or ()
        if len(rows) != len(tokens) or len(rows) > positions:
            raise ValueError("its logprobs are of different lengths, or more than it may have tokens")
        found.top_logprobs = [
            None if row is None else _keep(row, token, most) for row, token in zip(rows, tokens, strict=True)
        ]
    return msgspec.Raw(_encode(found))


def _keep(row: dict[str, float | None], token: str, most: int) -> dict[str, float | None]:
    """The likeliest alternatives of a position, and the token that was chosen."""

    def likelihood(name: str) -> float:
        value = row[name]
        return -math.inf if value is None else value

    kept = sorted(row, key=likelihood, reverse=True)[:most]
    return {name: row[name] for name in row if name in kept or name == token}
