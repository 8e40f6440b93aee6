"""What goes with a text when it is sent to a text model: the parameters that users send. Pure.

Owns the shape and how one is drawn from a traffic profile. Entropy comes in as a function, so that the
builder of a corpus draws at random and a plan draws from seed and beacon. Temperatures and shares are
integers: every machine draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import msgspec

from emcd_validator.profile import UNSET, Profile

T = TypeVar("T")

MAX_SYSTEM_CHARS = 4_000
MAX_ANSWER_TOKENS = 1 << 20
SHARES = 1_000_000
"""Shares are drawn in millionths."""

Below = Callable[[str, int], int]
"""A number 0 <= x < bound for one purpose."""


class CallShape(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a leaf's texts are asked of a text model.

    Args:
        endpoint: a conversation, or a text to go on with.
        system: the system prompt, "" for none.
        temperature_milli, top_p_milli: in thousandths; None: not sent.
        max_tokens: 0: not sent.
        limit_name: which of the API's two names for it (chat has two).
        is_long: the prompt fills most of the context and one token is asked for.
        turns: how many of the leaf's texts make the conversation, an odd number.
        inputs: how many of them an embedding model gets.
    """

    endpoint: Literal["chat", "completions"]
    system: str
    stream: bool
    temperature_milli: int | None
    top_p_milli: int | None
    max_tokens: int
    limit_name: Literal["max_tokens", "max_completion_tokens"]
    is_long: bool
    turns: int
    inputs: int


def find_shape_fault(shape: CallShape, texts: int, *, as_list: bool) -> str:
    """Why a shape can't be used with so many texts, or an empty text."""
    if not (0 < shape.turns <= texts and shape.turns % 2 and 0 < shape.inputs <= texts):
        return f"{shape.turns} turns and {shape.inputs} inputs of {texts} texts"
    if shape.inputs > 1 and not as_list:
        return "several inputs only as a list"
    if len(shape.system) > MAX_SYSTEM_CHARS:
        return f"a system prompt has at most {MAX_SYSTEM_CHARS} characters"
    if shape.temperature_milli is not None and not 0 <= shape.temperature_milli <= 2_000:
        return "a temperature is between 0 and 2"
    if shape.top_p_milli is not None and not 0 < shape.top_p_milli <= 1_000:
        return "top_p is above 0 and at most 1"
    if not 0 <= shape.max_tokens <= MAX_ANSWER_TOKENS:
        return f"max_tokens is at most {MAX_ANSWER_TOKENS}"
    return ""


def draw_shape(profile: Profile, below: Below, turns: int, inputs: int, *, is_long: bool) -> CallShape:
    """Draw from the profile how texts are asked of a text model."""

    def has(label: str, share: float) -> bool:
        return below(label, SHARES) < round(share * SHARES)

    is_chat = has("chat", profile.chat)
    system = ""
    if is_chat and profile.system_prompts and has("system", profile.system):
        system = pick("system prompt", profile.system_prompts, below)
    temperature = pick("temperature", profile.temperatures, below)
    top_p = pick("top_p", profile.top_p, below)
    limit = pick("max_tokens", profile.max_tokens, below)
    renamed = is_chat and has("limit name", profile.max_completion_tokens)
    return CallShape(
        endpoint="chat" if is_chat else "completions",
        system=system,
        stream=has("stream", profile.stream),
        temperature_milli=_milli(temperature),
        top_p_milli=_milli(top_p),
        max_tokens=0 if limit == UNSET else int(limit),
        limit_name="max_completion_tokens" if renamed else "max_tokens",
        is_long=is_long,
        turns=turns,
        inputs=inputs,
    )


def draw_is_long(profile: Profile, below: Below) -> bool:
    """Whether a call asks for one token after a prompt that fills most of the context."""
    return below("long", SHARES) < round(profile.long * SHARES)


def pick(label: str, choices: Sequence[tuple[T, float]], below: Below) -> T:
    """One of the choices, by their shares."""
    weights = [round(share * SHARES) for _, share in choices]
    drawn = below(label, sum(weights))
    for (value, _), weight in zip(choices, weights, strict=True):  # noqa: B007
        if drawn < weight:
            break
        drawn -= weight
    return value


def _milli(value: float | str) -> int | None:
    return None if isinstance(value, str) else round(value * 1_000)
