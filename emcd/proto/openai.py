"""OpenAI's API as the network speaks it: which bytes a node is asked, given those a client sent. Pure.

Owns the canonical upstream transform. It is a function of path, body and content type alone, so that
whoever sent a request can recompute its `proto.records.request_hash`. Invariants: of JSON the order of
the client's fields is kept, what the node gets never tells which node was asked for, nor how the client
writes JSON, and nothing but the fields named here is read or changed; a form's bytes stay as they are,
only its content type is written in one way. A call of a model that can be verified goes further than
that: see `openai_evidence`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from emcd.proto.json_bound import MAX_NESTED, MAX_STRINGS, is_too_fine
from emcd.proto.openai_evidence import EVIDENCE_ENDPOINTS, Asked, ask_evidence, order_fields
from emcd.proto.openai_media import name_form, read_form_request, read_media_request
from emcd.proto.openai_shape import (
    BASIC_ENDPOINTS,
    ENDPOINT_WORDS,
    ENDPOINTS,
    JSON,
    MAX_CHOICES,
    Endpoint,
    Hidden,
    Once,
    RequestError,
    UpstreamRequest,
    error_body,
    read_bool,
    read_number,
    require_model,
    wrong,
)
from emcd.proto.openai_wish import take_wish
from emcd.proto.wish import Wish

__all__ = [
    "BASIC_ENDPOINTS",
    "ENDPOINTS",
    "ENDPOINT_WORDS",
    "JSON",
    "Endpoint",
    "EvidenceRule",
    "Hidden",
    "Once",
    "RequestError",
    "UpstreamRequest",
    "error_body",
    "read_named",
    "read_request",
]

MAX_INPUTS: Final = 2048
_MAX_OUTPUT_TOKENS: Final = 2**31 - 1
_OVERHEAD_TOKENS: Final = 64
"""What a chat template or a tokenizer's special tokens add beyond one token a byte of JSON."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


EvidenceRule = Callable[[Endpoint, str], bool]
"""Whether calls of a model at an endpoint ask for evidence."""


class _Named(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None


_EMBEDDINGS, _RESPONSES, _CHAT = Endpoint.EMBEDDINGS, Endpoint.RESPONSES, Endpoint.CHAT
"""Names of this module: to read a member of an Enum costs four times as much."""
_NOTHING = Asked()
_decode_named = msgspec.json.Decoder(_Named).decode


def read_request(
    endpoint: Endpoint,
    body: bytes,
    content_type: str = JSON,
    *,
    evidence: bool | EvidenceRule = False,
    seed: int | Callable[[], int] | None = None,
) -> UpstreamRequest:
    """Read a client's request and make the node's out of it.

    `provider` is taken out; a streamed completion is made to report its usage; all else stays, but where
    evidence is asked for.

    Args:
        evidence: whether the model is one that can be verified, or a rule that tells it of the model.
        seed: of 63 bits, or what draws it, for a call with evidence whose client gave none.

    Raises: RequestError EMC-1701 (not JSON), EMC-1702 (a field is missing or wrong).
    """
    if endpoint.is_form:
        return read_form_request(endpoint, body, content_type)
    table = _decode_object(body)
    model = require_model(table.get("model"))
    wish = take_wish(table)
    asks = evidence is not False and _asks_evidence(endpoint, model, evidence)
    asked = ask_evidence(endpoint, table, seed) if asks else _NOTHING
    if endpoint is _EMBEDDINGS:
        return _read_texts(table, model, wish, asks)
    if endpoint.is_media:
        return read_media_request(endpoint, table, model, _encode(table), wish)
    if endpoint is _RESPONSES:
        return _read_response(table, model, wish)
    inputs = _count_messages(table) if endpoint is _CHAT else _count_inputs(table, "prompt")
    choices = inputs * _read_choices(table) if "n" in table or "best_of" in table else inputs
    output = _read_output_bound(table)
    if output is not None:
        output *= choices
    stream = read_bool(table, "stream") if "stream" in table else False
    wants_usage = _force_usage(table) if stream else False
    upstream = _encode(order_fields(table) if asks else table)
    bound = len(upstream) + _OVERHEAD_TOKENS * inputs
    return UpstreamRequest(
        endpoint, model, upstream, stream, wants_usage, inputs, choices, bound, output, wish, evidence=asks,
        hidden=asked.hidden, drawn_seed=asked.seed,
    )  # fmt: skip


def read_named(endpoint: Endpoint, body: bytes, content_type: str) -> tuple[str, bool]:
    """The model that an upstream request names, and whether its answer comes in pieces.

    Raises: RequestError EMC-1701, EMC-1702.
    """
    if endpoint.is_form:
        return name_form(body, content_type)
    try:
        named = _decode_named(body)
    except msgspec.ValidationError as exc:
        raise RequestError("EMC-1702", str(exc)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestError("EMC-1701", f"the body is not JSON: {exc}") from exc
    return named.model, bool(named.stream) or endpoint is Endpoint.SPEECH


def _decode_object(body: bytes) -> dict[str, Any]:
    if is_too_fine(body):
        detail = f"the body holds more than {MAX_NESTED} objects and lists, or {MAX_STRINGS} texts"
        raise RequestError("EMC-1702", detail)
    try:
        table = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestError("EMC-1701", f"the body is not JSON: {exc}") from exc
    if type(table) is not dict:
        raise RequestError("EMC-1701", "the body must be a JSON object")
    return table


def _asks_evidence(endpoint: Endpoint, model: str, rule: bool | EvidenceRule) -> bool:
    return endpoint in EVIDENCE_ENDPOINTS and (rule is True or (callable(rule) and rule(endpoint, model)))


def _read_texts(table: dict[str, Any], model: str, wish: Wish, asks: bool) -> UpstreamRequest:
    """A request for embeddings."""
    if table.get("stream"):
        raise wrong("stream", "embeddings are not streamed")
    upstream = _encode(order_fields(table) if asks else table)
    inputs = _count_inputs(table, "input")
    bound = len(upstream) + _OVERHEAD_TOKENS * inputs
    return UpstreamRequest(
        _EMBEDDINGS, model, upstream, False, False, inputs, 1, bound, 0, wish, evidence=asks
    )  # fmt: skip


def _read_response(table: dict[str, Any], model: str, wish: Wish) -> UpstreamRequest:
    """A request of /v1/responses. No node keeps what another one said, so the input must be whole."""
    for name in ("previous_response_id", "conversation", "background"):
        if table.get(name):
            raise wrong(name, f"{name} is not served: nothing is kept between calls, send the whole input")
    value = table.get("input")
    if not isinstance(value, (str, list)) or not value:
        raise wrong("input", "input must be a text or a list that is not empty")
    output = read_number(table, "max_output_tokens", _MAX_OUTPUT_TOKENS)
    stream = read_bool(table, "stream")
    upstream = _encode(table)
    bound = len(upstream) + _OVERHEAD_TOKENS
    return UpstreamRequest(
        Endpoint.RESPONSES, model, upstream, stream, True, 1, 1, bound, output, wish
    )  # fmt: skip


def _count_messages(table: dict[str, Any]) -> int:
    messages = table.get("messages")
    if type(messages) is list and messages:
        for item in messages:
            if type(item) is not dict:
                break
        else:
            return 1
    raise wrong("messages", "messages must be a list of objects, and not empty")


def _count_inputs(table: dict[str, Any], name: str) -> int:
    """How many texts: one text, a list of texts, a list of token numbers, or a list of those."""
    value = table.get(name)
    if isinstance(value, str):
        if value:
            return 1
        raise wrong(name, f"{name} must not be empty")
    if not isinstance(value, list) or not value:
        raise wrong(name, f"{name} must be a text or a list that is not empty")
    if set(map(type, value)) == {int} and min(value) >= 0:
        return 1
    if len(value) > MAX_INPUTS:
        raise wrong(name, f"{name} holds more than {MAX_INPUTS} texts")
    if all(isinstance(item, str) and item for item in value):
        return len(value)
    if all(
        isinstance(item, list) and item and all(type(n) is int and n >= 0 for n in item) for item in value
    ):
        return len(value)
    raise wrong(name, f"{name} must hold texts or token numbers, none of them empty")


def _read_choices(table: dict[str, Any]) -> int:
    return max(read_number(table, name, MAX_CHOICES) or 1 for name in ("n", "best_of"))


def _read_output_bound(table: dict[str, Any]) -> int | None:
    """The larger of both names for it: an engine may heed either."""
    one = read_number(table, "max_tokens", _MAX_OUTPUT_TOKENS)
    other = read_number(table, "max_completion_tokens", _MAX_OUTPUT_TOKENS)
    return other if one is None else one if other is None else max(one, other)


def _force_usage(table: dict[str, Any]) -> bool:
    """Make the stream report its usage. Returns: whether the client had asked for that."""
    options = table.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise wrong("stream_options", "stream_options must be an object")
    wanted = read_bool(options, "include_usage")
    table["stream_options"] = {**options, "include_usage": True}
    return wanted
