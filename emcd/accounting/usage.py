"""Tokens used, read from an engine's answer in OpenAI's form.

Invariant: a count that is no non-negative integer is no usage. Chat, completions and embeddings say
`prompt_tokens` and `completion_tokens`, responses, sound and images `input_tokens` and `output_tokens`; a
sound may be metered in seconds instead, which is no usage here.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

_MAX_TOKENS = 2**53 - 1


class Usage(NamedTuple):
    """What a call used; embeddings have no output tokens."""

    input_tokens: int
    output_tokens: int


class _WireUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _WithUsage(msgspec.Struct, frozen=True):
    usage: _WireUsage | None = None


_decoder = msgspec.json.Decoder(_WithUsage)


def read_usage(body: bytes) -> Usage | None:
    """The usage of a whole answer, or of one event's data; None when it states none."""
    try:
        wire = _decoder.decode(body).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if wire is None:
        return None
    if wire.prompt_tokens is not None:
        entered, made = wire.prompt_tokens, wire.completion_tokens or 0
    elif wire.input_tokens is not None:
        entered, made = wire.input_tokens, wire.output_tokens or 0
    else:
        return None
    return Usage(entered, made) if 0 <= entered <= _MAX_TOKENS and 0 <= made <= _MAX_TOKENS else None
