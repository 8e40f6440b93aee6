"""Reading a written answer: chat or completion, whole or streamed, in OpenAI's forms. Pure.

Owns nothing but the shape. What it reads comes from a node that may lie: every number is bounded, every
list as long as the bytes that were bounded before, and what does not fit is an ERROR, never an exception.
Source: OpenAI's API reference; `prompt_token_ids` and `token_ids` as vLLM serves them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from emcd.accounting.event_stream import EventSplitter, event_data
from emcd.errors import RemoteProtocolError
from emcd.proto.json_bound import MAX_STRINGS
from emcd_validator.judge import MAX_ANSWER_BYTES, Judgement, unusable

MAX_EVENTS = 1 << 17
MAX_TOKENS = 1 << 17
MAX_ALTERNATIVES = 32
_MAX_TOKEN_ID = 2**31
_DONE = b"[DONE]"
_NAMED_ID = "token_id:"


@dataclass(frozen=True)
class Token:
    """One token as it is named in the logprobs.

    Args:
        name: its text, or `token_id:N`, or `bytes:\\x..`; `data` its bytes where they are given.
    """

    name: str
    data: bytes | None
    logprob: float


@dataclass(frozen=True)
class Report:
    """One output token and its alternatives."""

    chosen: Token
    alternatives: tuple[Token, ...]


@dataclass(frozen=True)
class TextAnswer:
    """An answer that has the right shape; `prompt_ids` and `token_ids` are None where they are not given."""

    text: str
    finish_reason: str
    reports: tuple[Report, ...]
    prompt_ids: tuple[int, ...] | None
    token_ids: tuple[int, ...] | None
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0


class _Entry(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _ChatToken(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_Entry] | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    """Chat says `content`, completions the parallel lists."""

    content: list[_ChatToken] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float] | None = None
    top_logprobs: list[dict[str, float]] | None = None


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Details(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    completion_tokens_details: _Details | None = None


class _Body(msgspec.Struct, frozen=True):
    """A whole answer, or one event of a stream."""

    choices: list[_Choice]
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None


_decoder = msgspec.json.Decoder(_Body)


def read_text_answer(
    body: bytes, *, is_stream: bool, most_tokens: int = MAX_TOKENS
) -> TextAnswer | Judgement:
    """Read an answer. Returns: ERROR when it is none, has too many tokens, or lacks what a judge needs."""
    if len(body) > MAX_ANSWER_BYTES or body.count(b'"') > 2 * MAX_STRINGS * 4:
        return unusable(f"an answer of {len(body)} bytes")
    try:
        parts = list(_read_stream(body)) if is_stream else [_decoder.decode(body)]
        return _join(parts, min(most_tokens, MAX_TOKENS))
    except (msgspec.MsgspecError, ValueError, RecursionError, RemoteProtocolError) as exc:
        return unusable(f"malformed answer: {exc}")


def _read_stream(body: bytes) -> Iterator[_Body]:
    """The chunks of a stream. Raises: ValueError when it does not come to its end."""
    splitter = EventSplitter()
    for number, event in enumerate(splitter.feed(body)):
        data = event_data(event)
        if data == _DONE:
            return
        if number >= MAX_EVENTS:
            raise ValueError(f"more than {MAX_EVENTS} events")
        if data:
            yield _decoder.decode(data)
    raise ValueError("the stream does not come to its end")


def _join(parts: Sequence[_Body], most_tokens: int) -> TextAnswer | Judgement:
    """Put the chunks together; a whole answer is one chunk."""
    choices = [choice for part in parts for choice in part.choices]
    if not choices:
        return unusable("the answer holds no choice")
    if _holds_several(parts, choices):
        return unusable("the answer holds more than the one choice that was asked for")
    usage = next((part.usage for part in reversed(parts) if part.usage is not None), None)
    if usage is None or not (_is_count(usage.prompt_tokens) and _is_count(usage.completion_tokens)):
        return unusable("the answer states no usage")
    count = sum(map(_count_tokens, choices))
    if not 0 < count <= most_tokens:
        return unusable(f"the answer brings logprobs of {count} tokens")
    ids = [choice.token_ids for choice in choices if choice.token_ids is not None]
    token_ids = tuple(token for item in ids for token in item) if ids else None
    prompt_ids = next((found for found in map(_find_prompt, parts) if found is not None), None)
    reports = tuple(
        report
        for choice in choices
        if choice.logprobs is not None
        for report in _read_logprobs(choice.logprobs)
    )
    if not _are_tokens(token_ids) or not _are_tokens(prompt_ids):
        return unusable("token ids that are none, or too many of them")
    if token_ids is not None and len(token_ids) != len(reports):
        return unusable(f"{len(token_ids)} token ids with logprobs of {len(reports)}")
    ends = [choice.finish_reason for choice in choices if choice.finish_reason]
    return TextAnswer(
        "".join(map(_text_of, choices)),
        ends[-1] if ends else "",
        reports,
        prompt_ids,
        token_ids,
        usage.prompt_tokens,
        usage.completion_tokens,
        _count_reasoning(usage, choices),
    )


def _holds_several(parts: Sequence[_Body], choices: Sequence[_Choice]) -> bool:
    """Whether there is a choice with another number, beside the first one, or after its end."""
    if any(choice.index != 0 for choice in choices) or any(len(part.choices) > 1 for part in parts):
        return True
    end = next((place for place, choice in enumerate(choices) if choice.finish_reason), len(choices))
    return any(_text_of(choice) or _count_tokens(choice) or choice.token_ids for choice in choices[end + 1 :])


def _find_prompt(part: _Body) -> tuple[int, ...] | None:
    """vLLM puts them at the top of a chat's answer, into the choice of a completion's."""
    lists = [part.prompt_token_ids, *(choice.prompt_token_ids for choice in part.choices)]
    return next((tuple(item) for item in lists if item is not None), None)


def _count_tokens(choice: _Choice) -> int:
    """How many tokens its logprobs are of."""
    logprobs = choice.logprobs
    if logprobs is None:
        return 0
    return len(logprobs.content if logprobs.content is not None else logprobs.tokens or ())


def _text_of(choice: _Choice) -> str:
    message = choice.message or choice.delta
    return (choice.text if message is None else message.content) or ""


def _count_reasoning(usage: _Usage, choices: Sequence[_Choice]) -> int:
    """Tokens said to be thought and not shown; 1 where there are such and no number is given."""
    details = usage.completion_tokens_details
    stated = (details.reasoning_tokens or 0) if details is not None else 0
    messages = [choice.message or choice.delta for choice in choices]
    is_shown = any(item is not None and (item.reasoning_content or item.reasoning) for item in messages)
    return max(stated, 1) if stated > 0 or is_shown else 0


def _read_logprobs(logprobs: _Logprobs) -> Iterator[Report]:
    """Raises: ValueError for numbers and lists that can't be."""
    if logprobs.content is not None:
        for item in logprobs.content:
            alternatives = tuple(
                _token(entry.token, entry.bytes, entry.logprob) for entry in item.top_logprobs or ()
            )
            yield _report(_token(item.token, item.bytes, item.logprob), alternatives)
        return
    names, values = logprobs.tokens or [], logprobs.token_logprobs or []
    tops = logprobs.top_logprobs or [{}] * len(names)
    if not len(names) == len(values) == len(tops):
        raise ValueError("tokens, token_logprobs and top_logprobs have different lengths")
    for name, value, top in zip(names, values, tops, strict=True):
        yield _report(
            _token(name, None, value), tuple(_token(other, None, found) for other, found in top.items())
        )


def _report(chosen: Token, alternatives: tuple[Token, ...]) -> Report:
    if len(alternatives) > MAX_ALTERNATIVES:
        raise ValueError(f"{len(alternatives)} alternatives of one token")
    return Report(chosen, alternatives)


def _token(name: str, data: list[int] | None, logprob: float) -> Token:
    if not math.isfinite(logprob):
        raise ValueError("a logprob is not finite")
    return Token(name, None if data is None else bytes(data), logprob)


def named_id(name: str) -> int | None:
    """The id in `token_id:N`, the form in which engines name tokens that are no text."""
    digits = name.removeprefix(_NAMED_ID)
    if digits == name or not digits.isascii() or not digits.isdigit() or len(digits) > 10:
        return None
    return int(digits)


def _is_count(number: int) -> bool:
    return 0 <= number < 2**53


def _are_tokens(ids: Sequence[int] | None) -> bool:
    return ids is None or (len(ids) <= 8 * MAX_TOKENS and all(0 <= token < _MAX_TOKEN_ID for token in ids))
