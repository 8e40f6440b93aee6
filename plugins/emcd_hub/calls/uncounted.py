"""Reasoning that an engine states and does not show: nobody can count it, and that is said. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

MARK: Final = b'"reasoning_tokens"'
"""An answer without it states no reasoning."""
REASONING: Final = b'"reasoning'
"""How the names begin under which engines show it, or state it."""
_MAX_TOKENS = 2**53 - 1
_SHOWN = re.compile(rb'"reasoning(?:_content)?": ?"[^"]')


class _Details(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Response(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


class _Answer(msgspec.Struct, frozen=True):
    usage: _Usage | None = None
    response: _Response | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def read_uncounted(data: bytes) -> int:
    """The tokens of reasoning that an answer, or the data of one event, states."""
    try:
        answer = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
    usage = answer.usage or (answer.response and answer.response.usage)
    details = usage and (usage.completion_tokens_details or usage.output_tokens_details)
    tokens = details and details.reasoning_tokens
    return min(tokens, _MAX_TOKENS) if tokens and tokens > 0 else 0


def shows_reasoning(piece: bytes) -> bool:
    """Whether an answer, or a piece of a stream, has reasoning in it."""
    return _SHOWN.search(piece) is not None
