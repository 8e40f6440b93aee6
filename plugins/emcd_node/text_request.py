"""Requests for text, read strictly: what is served, and OpenAI's 400 for what is not.

Pure. Invariants: a field that this model does not heed is refused by name unless its value changes
nothing, so that nobody pays for an answer other than the one asked for; a field that nobody knows is
refused, too; what is read here is bounded before any work is done for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from emcd.inference.token_choice import MAX_TOP_LOGPROBS, Sampling
from emcd_node.served_model import Refused

MAX_STOP_TEXTS: Final = 4
MAX_STOP_CHARS: Final = 256
COMPLETION_TOKENS: Final = 16
"""What a completion has when its request does not say: OpenAI's number."""
_SIGNED_64 = 2**63
_PLACE = re.compile(r"`\$\.(\w+)[^`]*`$")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")

_Tokens = Annotated[int, msgspec.Meta(ge=1)]
_Seed = Annotated[int, msgspec.Meta(ge=-_SIGNED_64, le=_SIGNED_64 - 1)]
_Top = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)]

_ANYTHING: Final = frozenset(
    (
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        "parallel_tool_calls",
    )
)
"""What may be sent and says nothing about the answer."""
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
"""What is not served, and the values (beside null) that ask for nothing."""


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None
    refusal: None = None
    audio: None = None
    annotations: list[Any] | None = None
    tool_calls: None = None
    function_call: None = None


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    max_tokens: _Tokens | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    stop: str | list[str] | None = None
    seed: _Seed | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    return_token_ids: bool | None = None


class _Chat(_Common, frozen=True, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: _Top | None = None


class _Completion(_Common, frozen=True, kw_only=True):
    prompt: str | list[Any]
    logprobs: _Top | None = None


_Kind = TypeVar("_Kind", bound=_Common)


@dataclass(frozen=True)
class TextWish:
    """What a request asks for.

    Args:
        messages: of a conversation, else empty; prompt: a text, or tokens, to be completed.
        max_tokens: None: as many as the context leaves.
        logprobs: whether each token's are wanted; `sampling.top_logprobs` says how many beside it.
        has_seed: whether the client gave it; if not, `sampling` has none yet.
    """

    messages: list[dict[str, Any]]
    prompt: str | list[int]
    max_tokens: int | None
    sampling: Sampling
    has_seed: bool
    stop_texts: tuple[str, ...]
    stream: bool
    wants_usage: bool
    logprobs: bool
    token_ids: bool


def read_chat(body: bytes) -> TextWish | Refused:
    """A request of /v1/chat/completions."""
    found = _read(body, _Chat)
    if isinstance(found, Refused):
        return found
    if found.top_logprobs is not None and not found.logprobs:
        return bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    limits = {found.max_tokens, found.max_completion_tokens} - {None}
    if len(limits) > 1:
        return bad_request("give max_completion_tokens or max_tokens, not both", "max_tokens")
    limit = next(iter(limits), None)
    messages = [_plain_message(message) for message in found.messages]
    return _make_wish(found, messages, "", limit, bool(found.logprobs), found.top_logprobs or 0)


def read_completion(body: bytes) -> TextWish | Refused:
    """A request of /v1/completions."""
    found = _read(body, _Completion)
    if isinstance(found, Refused):
        return found
    prompt = found.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            return _not_served("prompt", "several prompts in one call")
        prompt = prompt[0]
    if not prompt:
        return bad_request("prompt must not be empty", "prompt")
    if isinstance(prompt, list) and set(map(type, prompt)) != {int}:
        return bad_request("prompt must be a text or a list of token numbers", "prompt")
    limit = COMPLETION_TOKENS if found.max_tokens is None else found.max_tokens
    return _make_wish(found, [], prompt, limit, found.logprobs is not None, found.logprobs or 0)


def bad_request(message: str, param: str | None = None) -> Refused:
    """A 400 in OpenAI's shape."""
    return Refused(400, "EMC-2005", message, param=param)


def _read(body: bytes, kind: type[_Kind]) -> _Kind | Refused:
    """Fields that are served as `kind` has them, all others by the tables above."""
    try:
        table = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.ValidationError:
        return bad_request("the body must be a JSON object")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        return bad_request(f"the body is not JSON: {exc}")
    for name in table.keys() - set(kind.__struct_fields__):
        value = table.pop(name)
        if value is None or name in _ANYTHING:
            continue
        if name not in _NEUTRAL:
            return Refused(
                400,
                "EMC-2025",
                f"Unknown parameter: '{name[:80]}'.",
                code="unknown_parameter",
                param=name[:80],
            )
        if value not in _NEUTRAL[name] or isinstance(value, bool) != isinstance(_first(name), bool):
            return _not_served(name, name)
    try:
        found = msgspec.convert(table, kind)
    except msgspec.ValidationError as exc:
        return _explain(str(exc))
    return found


def _first(name: str) -> Any:
    return next(iter(_NEUTRAL[name]), None)


def _explain(complaint: str) -> Refused:
    unknown = _UNKNOWN.match(complaint)
    place = _PLACE.search(complaint)
    param = place[1] if place else None
    if unknown and unknown[1] in ("tool_call_id", "tool_calls", "function_call"):
        return _not_served("messages", "tools")
    return bad_request(complaint, param)


def _not_served(param: str, what: str) -> Refused:
    return Refused(
        400, "EMC-2025", f"{what} is not served by this model", code="unsupported_parameter", param=param
    )


def _plain_message(message: _Message) -> dict[str, Any]:
    content = message.content
    plain: dict[str, Any] = {
        "role": message.role,
        "content": content if isinstance(content, str) else [{"text": part.text} for part in content],
    }
    return plain if message.name is None else {**plain, "name": message.name}


def _make_wish(
    found: _Common,
    messages: list[dict[str, Any]],
    prompt: str | list[int],
    max_tokens: int | None,
    logprobs: bool,
    top_logprobs: int,
) -> TextWish | Refused:
    stops = (found.stop,) if isinstance(found.stop, str) else tuple(found.stop or ())
    if len(stops) > MAX_STOP_TEXTS or not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        return bad_request(
            f"stop must be a text, or up to {MAX_STOP_TEXTS}, of 1 to {MAX_STOP_CHARS} characters", "stop"
        )
    options = found.stream_options
    return TextWish(
        messages=messages,
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=Sampling(
            temperature=1.0 if found.temperature is None else found.temperature,
            top_p=1.0 if found.top_p is None else found.top_p,
            top_k=found.top_k or 0,
            seed=found.seed or 0,
            top_logprobs=top_logprobs,
        ),
        has_seed=found.seed is not None,
        stop_texts=stops,
        stream=bool(found.stream),
        wants_usage=bool(options and options.include_usage),
        logprobs=logprobs,
        token_ids=bool(found.return_token_ids),
    )
